"""IPC subsets: a fixed number of training images per class."""

from __future__ import annotations

import numpy as np
import torch

from trainers import rng
from trainers.errors import UnsuitableError

__all__ = ["ipc_indices"]


def ipc_indices(labels_N: torch.Tensor, *, ipc: int | None, subset_seed: int) -> torch.Tensor:
    """Ascending int64 indices of the subset into the full training set, (ipc · classes,).

    Per class the first `ipc` of one permutation drawn from ("data", subset_seed, "subset", class):
    subsets of one seed nest. `ipc` None is the full set, (N,).

    Raises UnsuitableError if a class has fewer than `ipc` images.
    """
    if ipc is None:
        return torch.arange(len(labels_N))
    labels = labels_N.numpy()
    chosen = [
        _first_of_class(np.flatnonzero(labels == c), ipc, c, subset_seed)
        for c in range(int(labels.max()) + 1)
    ]
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def _first_of_class(
    members: np.ndarray[tuple[int], np.dtype[np.int64]], ipc: int, class_index: int, seed: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    if not 1 <= ipc <= len(members):
        raise UnsuitableError(
            f"ipc {ipc} does not fit class {class_index}, which has {len(members)} training images",
            f"take an ipc from 1 to {len(members)}, or the full set",
        )
    permutation = rng.generator("data", seed, "subset", class_index).permutation(len(members))
    return members[permutation[:ipc]]
