"""Data selection: which of a student's samples learn from the teacher (arXiv 2404.03693).

The training set is split by score: D^t, the highest, is supervised by the teacher and the truth;
D^s, the rest, by the truth alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainers.errors import UnsuitableError

__all__ = ["num_selected", "selected"]


def num_selected(fraction: float, count: int) -> int:
    """|D^t| of `count` samples: the fraction, rounded up."""
    return math.ceil(round(fraction * count, 6))


def selected(scores_S: Tensor, samples_K: Tensor, fraction: float) -> Tensor:
    """(S,) bool, true for D^t: of a student's `samples_K` (indices in the full training set) the
    fraction with the highest scores; of equal scores the lower index.

    Raises UnsuitableError when a sample has no score, or one that is not finite.
    """
    if len(samples_K) and int(samples_K.max()) >= len(scores_S):
        raise UnsuitableError(
            f"sample {int(samples_K.max())} has no score; there are {len(scores_S)}",
            "delete the scores' run; they are made again for the whole training set",
        )
    scores_K = scores_S[samples_K]
    if not bool(torch.isfinite(scores_K).all()):
        first = int(samples_K[~torch.isfinite(scores_K)][0])
        raise UnsuitableError(
            f"the score of sample {first} is not finite",
            "train the student that scores with a lower learning rate, or for fewer steps",
        )
    highest = torch.argsort(scores_K, descending=True, stable=True)
    chosen = torch.zeros(len(scores_S), dtype=torch.bool)
    chosen[samples_K[highest[: num_selected(fraction, len(samples_K))]]] = True
    return chosen
