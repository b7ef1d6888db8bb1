"""Losses of the paper (equations 1 to 3), as pure functions over logits and (N, C) targets.

All targets are (N, C) rows that sum to one: hard labels become one-hot rows at one door
(`strategies.one_hot`). All losses are means over the batch, without a T² factor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["classifier_loss", "projection_loss", "target_entropy"]


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


def target_entropy(targets_NC: Tensor) -> Tensor:
    """(N,) entropy of each target, in nats; 0·log 0 = 0."""
    entropies_NC: Tensor = torch.special.entr(targets_NC)
    return entropies_NC.sum(1)
