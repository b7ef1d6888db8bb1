"""Sample-to-target mappings ψ of the paper (section 2.1), as pure functions.

A: every view of a class to the class's one-hot target.       ψ_A(x_i^(j)) = c
B: every augmented view to a soft target of its own.          ψ_B(x_i^(j)) = y_i^(j)
C: every view of a sample to the sample's one soft target.    ψ_C(x_i^(j)) = y_i
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["one_hot", "shared_target", "soft_target"]


def one_hot(labels_N: Tensor, num_classes: int) -> Tensor:
    """ψ_A: (N,) class indices to (N, C) float32 rows."""
    return F.one_hot(labels_N, num_classes).float()


def soft_target(teacher_logits_NC: Tensor, temperature: float) -> Tensor:
    """ψ_B of the view the logits came from: softmax(logits / T), (N, C) float32."""
    return torch.softmax(teacher_logits_NC.float() / temperature, dim=1)


def shared_target(stored_SC: Tensor, samples_N: Tensor) -> Tensor:
    """ψ_C: rows of the soft-target store by sample index, (S, C) and (N,) to (N, C) float32."""
    return stored_SC.index_select(0, samples_N).float()
