"""Wrong training labels, drawn: what a study of noisy labels corrupts a data set with.

Symmetric noise: a share of all training samples gets a label drawn evenly from the other classes.
Test labels stay as they are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainers import rng
from trainers.spec import Dataset

__all__ = ["noisy_labels"]


def noisy_labels(labels_N: Tensor, dataset: Dataset, *, num_classes: int) -> Tensor:
    """(N,) int64 labels as runs on `dataset` see them; `labels_N` are the true ones of the full
    training set.

    Exactly round(label_noise · N) are wrong. One permutation and one wrong label a sample are drawn
    from ("data", noise_seed, "label_noise"), so more noise keeps what was wrong with less.
    """
    count = round(dataset.label_noise * len(labels_N))
    if count == 0:
        return labels_N
    draw = rng.generator("data", dataset.noise_seed, "label_noise", 0)
    wrong = draw.permutation(len(labels_N))[:count]
    shifts = draw.integers(1, num_classes, size=len(labels_N))
    labels = labels_N.numpy().astype(np.int64)
    labels[wrong] = (labels[wrong] + shifts[wrong]) % num_classes
    return torch.from_numpy(labels)
