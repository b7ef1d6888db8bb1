"""Label revision: a teacher's soft targets, put right by the ground truth (arXiv 2404.03693).

    p = β · p^t + (1 − β) · y,   β = η / (p^t_max − p^t_target + 1),   η in (0, 1)

β is below 1 / (p^t_max − p^t_target + 1), and that bound is what makes the true class the largest:
p_target − p_c ≥ (1 − β) − β · (p^t_max − p^t_target) > 0. Ratios among the wrong classes stay as
they are. Revision acts after the temperature, on the target that the student sees.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.spec import Revision

__all__ = ["revise"]


def _excess(targets_NC: Tensor, truth_NC: Tensor) -> Tensor:
    """(N, 1) p^t_max − p^t_target: above 0 where the target is wrong; a tie is right."""
    return targets_NC.amax(1, keepdim=True) - (targets_NC * truth_NC).sum(1, keepdim=True)


def revise(targets_NC: Tensor, truth_NC: Tensor, revision: Revision | None) -> Tensor:
    """(N, C) revised soft targets; their rows sum to one. None leaves them as they are.

    truth_NC: one-hot rows, whose class every η makes the largest. Of a mixed image it is the
    mixture of two classes, and p^t_target what the target expects of it: then the formula holds and
    the bound does not say which class is the largest, and with `only_wrong` all are revised whose
    target has a class above that expectation.
    """
    if revision is None:
        return targets_NC
    excess_N1 = _excess(targets_NC, truth_NC)
    beta_N1 = revision.eta / (excess_N1 + 1)
    if revision.only_wrong:
        beta_N1 = torch.where(excess_N1 > 0, beta_N1, 1.0)
    return beta_N1 * targets_NC + (1 - beta_N1) * truth_NC
