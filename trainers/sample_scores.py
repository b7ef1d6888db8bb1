"""Scores of samples that need no curvature, each a pure function. A higher score is a sample that
the model has more to learn from, or that is harder, or whose label is wrong."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainers import rng
from trainers.pulse import PULSE

__all__ = [
    "cross_entropies",
    "error_norms",
    "errors",
    "random_scores",
    "samples_at_once",
    "squared_gradient_norms",
]

_GRADIENT_FLOATS = 2**27
"""Of per-sample gradients held at a time: 0.5 GB."""

_AT_MOST = 64
"""Samples at a time, which keep a device busy: activations are held for each."""


def random_scores(count: int, *, seed: int) -> Tensor:
    """(N,) float32, even in [0, 1): one draw of ("data", seed, "selection")."""
    draw = rng.generator("data", seed, "selection", 0)
    return torch.from_numpy(draw.random(count, dtype="float32"))


def cross_entropies(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """(N,) −log softmax(h)_y, in nats."""
    return -torch.log_softmax(logits_NC.double(), 1).gather(1, labels_N[:, None]).squeeze(1)


def errors(logits_NC: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """p = softmax(h) and e = p − onehot(y), float64 (N, C) each. e is the gradient of the
    cross-entropy with respect to the logits."""
    p_NC = torch.softmax(logits_NC.double(), 1)
    return p_NC, p_NC - F.one_hot(labels_N, p_NC.shape[1])


def error_norms(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """(N,) ‖softmax(h) − onehot(y)‖₂: EL2N of one model (Paul, Ganguli & Dziugaite 2021, arXiv
    2107.07075, definition 2.2, which averages it over several)."""
    norms: Tensor = torch.linalg.vector_norm(errors(logits_NC, labels_N)[1], dim=1)
    return norms


def samples_at_once(num_parameters: int) -> int:
    """How many per-sample gradients are held at a time."""
    return min(max(_GRADIENT_FLOATS // max(num_parameters, 1), 1), _AT_MOST)


def squared_gradient_norms(
    model: nn.Module, weights: Mapping[str, Tensor], views_NCHW: Tensor, labels_N: Tensor
) -> Tensor:
    """(N,) float64 ‖∇_θ ℓ(z)‖²: one checkpoint's term of TracInCP's self-influence, without its
    learning rate (Pruthi et al. 2020, arXiv 2002.08484, section 3).

    model: images (N, 3, H, W) to logits (N, C), in evaluation mode: no sample sees another.
    weights: its parameters, by name, which are θ; buffers are the model's own. ℓ is the
    cross-entropy. The gradient is that of the loss alone: AdamW's preconditioner is not in it.
    """

    def loss(theta: dict[str, Tensor], view: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, theta, (view.unsqueeze(0),))
        return F.cross_entropy(logits, label.unsqueeze(0))

    theta = {name: value.detach() for name, value in weights.items()}
    of_each = vmap(grad(loss), in_dims=(None, 0, 0), randomness="error")
    size = samples_at_once(sum(value.numel() for value in theta.values()))
    norms = []
    batches = zip(torch.split(views_NCHW, size), torch.split(labels_N, size), strict=True)
    for views, labels in batches:
        PULSE.beat()
        with sdpa_kernel(SDPBackend.MATH):  # vmap goes through fused attention sample by sample
            gradients = of_each(theta, views, labels)
        parts = [part.flatten(1).square().sum(1).double() for part in gradients.values()]
        norms.append(torch.stack(parts).sum(0))
    return torch.cat(norms)
