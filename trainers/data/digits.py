"""`digits`: 1,797 handwritten digits of 8×8 pixels that come with scikit-learn, so that a sweep can
be tried without a download. 1,438 training and 359 test images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainers.data.decode import fit_array
from trainers.data.source import Labels, Split, SplitName

__all__ = ["DIGITS_FINGERPRINT", "DigitsSource"]

DIGITS_FINGERPRINT = "b47d483e78025045c26078b1a6140a4a5271dcd4a5191ec71f6b4c49d8154112"
"""Content fingerprint of the arrays below; the split is part of it."""

_TEST_SHARE = 0.2


@dataclass(frozen=True)
class DigitsSource:
    """scikit-learn's digits, grey levels 0 to 16 scaled to 0 to 255, repeated on three channels.

    The split is stratified and fixed: a fifth of each class, rounded, drawn from stream
    ("data", 0, "subset", 0), is the test split.
    """

    kind: str = "sklearn"
    files: tuple[Path, ...] = ()
    official_fingerprint: str | None = DIGITS_FINGERPRINT

    def listing(self) -> list[tuple[str, int]]:
        return []

    def class_names(self) -> tuple[str, ...]:
        return tuple("0123456789")

    def read(self, split: SplitName, image_size: int | None) -> Split:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        labels = np.asarray(bunch.target, dtype=np.int64)
        grey = np.rint(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)
        chosen = np.flatnonzero(_is_test(labels) == (split == "test"))
        images = np.repeat(grey[:, None], 3, axis=1)
        located = ((fit_array(images[i], image_size), f"digit {i}") for i in chosen)
        return Split(labels=labels[chosen], images=located)


def _is_test(labels: Labels) -> npt.NDArray[np.bool_]:
    from trainers import rng  # and torch with it; a plan asks for the fingerprint alone

    generator = rng.generator("data", 0, "subset", 0)
    is_test = np.zeros(len(labels), dtype=np.bool_)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        is_test[generator.permutation(members)[: round(len(members) * _TEST_SHARE)]] = True
    return is_test
