"""Where a data set comes from, in the one form that `prepare` reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["SPLITS", "Image", "Labels", "LocatedImage", "Source", "Split", "SplitName"]

SplitName = Literal["train", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "test")

Image = npt.NDArray[np.uint8]
"""One image, (3, H, W)."""

Labels = npt.NDArray[np.int64]
"""Class indices, (N,)."""

LocatedImage = tuple[Image, str]
"""An image and where it came from, in words an error message can use."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """labels: (N,). images: N images in the same order, decoded as they are taken, once."""

    labels: Labels
    images: Iterator[LocatedImage]


class Source(Protocol):
    """A data set on disk. Opening one reads nothing but file names; `read` decodes.

    kind: `sklearn`, `archive`, `parquet` or `folder`. files: everything that is read.
    official_fingerprint: the identity in `catalogue.OFFICIAL` if the bytes are verified against it.
    """

    @property
    def kind(self) -> str: ...

    @property
    def files(self) -> tuple[Path, ...]: ...

    @property
    def official_fingerprint(self) -> str | None: ...

    def class_names(self) -> tuple[str, ...] | None: ...

    def read(self, split: SplitName, image_size: int | None) -> Split:
        """One split. image_size: resize the shorter side to it and centre-crop; None leaves images
        as they are. Raises DataError, also while the images are taken."""
        ...
