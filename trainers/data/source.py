"""Where a data set comes from, in the one form that `prepare` reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

__all__ = [
    "SPLITS",
    "UNLISTED_BEFORE",
    "EncodedSource",
    "EncodedSplit",
    "Image",
    "Labels",
    "LocatedImage",
    "LocatedPicture",
    "Source",
    "Split",
    "SplitName",
]

SplitName = Literal["train", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "test")

UNLISTED_BEFORE = -1
"""In a listing, where a file's size stands: of what was not in it when data sets were told apart by
names and sizes alone."""

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


LocatedPicture = tuple[Callable[[], bytes], str]
"""A function that gets an encoded picture, for any thread to call, and where it came from."""


@dataclass(frozen=True, kw_only=True)
class EncodedSplit:
    """labels: (N,), of the whole split. pictures: in the same order, from the asked one on."""

    labels: Labels
    pictures: Iterator[LocatedPicture]


class Source(Protocol):
    """A data set on disk. Opening one reads nothing but file names; `read` decodes.

    kind: `sklearn`, `archive`, `parquet`, `folder`, `tinyimagenet` or `imagenet`. files: everything
    that is read. listing: what tells these files from others, cheap enough to ask on every run.
    official_fingerprint: the identity in `catalogue.OFFICIAL` if the bytes are verified against it.
    """

    @property
    def kind(self) -> str: ...

    @property
    def files(self) -> tuple[Path, ...]: ...

    def listing(self) -> list[tuple[str, int]]:
        """(file name, size), sorted; below its class, `train/<class>/<name>`, where a file belongs
        to one. (SHA-256, UNLISTED_BEFORE) of a file that says which file belongs to which."""
        ...

    @property
    def official_fingerprint(self) -> str | None: ...

    def class_names(self) -> tuple[str, ...] | None: ...

    def read(self, split: SplitName, image_size: int | None) -> Split:
        """One split. image_size: resize the shorter side to it and centre-crop; None leaves images
        as they are. Raises DataError, also while the images are taken."""
        ...


@runtime_checkable
class EncodedSource(Source, Protocol):
    """A source whose pictures can be had as they are encoded."""

    def encoded(self, split: SplitName, start: int = 0) -> EncodedSplit:
        """One split, its pictures from number `start` on. Raises DataError, also on the way."""
        ...
