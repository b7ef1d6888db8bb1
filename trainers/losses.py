"""Losses of the paper (equations 1 to 3), and that of conventional distillation, as pure functions
over logits and (N, C) targets.

All targets are (N, C) rows that sum to one: hard labels become one-hot rows at one door
(`strategies.one_hot`). All losses are means over the batch; only `distillation_loss` has a T².
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["classifier_loss", "distillation_loss", "projection_loss", "target_entropy"]


def projection_loss(
    logits_NC: Tensor, targets_NC: Tensor, *, student_temperature: float = 1.0
) -> Tensor:
    """L_B of equation 1: mean over the batch of KL(ψ(x) ‖ g(φ(x))), in nats; 0·log 0 = 0.

    Under strategy A, whose targets are one-hot, this is the cross-entropy of g.
    """
    log_probabilities = F.log_softmax(logits_NC.float() / student_temperature, dim=1)
    return F.kl_div(log_probabilities, targets_NC, reduction="batchmean")


def classifier_loss(logits_NC: Tensor, targets_NC: Tensor) -> Tensor:
    """L_H of equation 2: mean cross-entropy −Σ_c y_c log h(φ(x))_c, in nats. `targets_NC` are
    one-hot rows, or their mixture where the images are mixed."""
    return -(targets_NC * F.log_softmax(logits_NC.float(), dim=1)).sum(1).mean()


def distillation_loss(
    logits_NC: Tensor,
    truth_NC: Tensor,
    teacher_NC: Tensor,
    revised_NC: Tensor,
    *,
    temperature: float,
    alpha_N: Tensor,
    revised_weight: float,
) -> Tensor:
    """Mean over the batch of what one classifier learns by (Hinton et al. 2015; with revision and
    selection the three terms of arXiv 2404.03693):

        (1 − α) · CE(y, q) + α · T² · [(1 − ρ) · KL(p^t ‖ q_T) + ρ · KL(p ‖ q_T)]

    with q the softmax of the logits and q_T that of logits / T. α: alpha_N, (N,), is the weight of
    the teacher for each sample: 0 in D^s, which learns from its label alone. ρ: revised_weight, the
    part of the revised targets p; p^t are the teacher's own, both softened by T. Only the ratio of
    the terms matters to AdamW. In ρ the gradient is that of the one target (1 − ρ)·p^t + ρ·p.
    """
    logits_NC = logits_NC.float()
    log_q_NC = F.log_softmax(logits_NC / temperature, dim=1)
    ce_N = -(truth_NC * F.log_softmax(logits_NC, dim=1)).sum(1)
    own_N = F.kl_div(log_q_NC, teacher_NC, reduction="none").sum(1)
    revised_N = F.kl_div(log_q_NC, revised_NC, reduction="none").sum(1)
    kl_N = (1 - revised_weight) * own_N + revised_weight * revised_N
    return ((1 - alpha_N) * ce_N + alpha_N * temperature**2 * kl_N).mean()


def target_entropy(targets_NC: Tensor) -> Tensor:
    """(N,) entropy of each target, in nats; 0·log 0 = 0."""
    entropies_NC: Tensor = torch.special.entr(targets_NC)
    return entropies_NC.sum(1)
