"""Data sets with a file for each image, whatever the layout of their folders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from trainers.data.decode import decode_all
from trainers.data.source import SPLITS, EncodedSplit, LocatedPicture, Split, SplitName
from trainers.errors import DataError

__all__ = ["LabelledFile", "LabelledFiles", "image_files", "is_folder", "stat_listing"]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}

LabelledFile = tuple[Path, int]


class LabelledFiles(ABC):
    """A source that knows which file has which label; a layout says how it finds out."""

    kind: str
    official_fingerprint: None = None

    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels."""

    @abstractmethod
    def labelled(self, split: SplitName) -> list[LabelledFile]:
        """Files with labels, in a fixed order. Raises DataError."""

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file for split in SPLITS for file, _ in self.labelled(split))

    def listing(self) -> list[tuple[str, int]]:
        """With each file's class: one that moves to another is another data set."""
        classes = self.class_names()
        return sorted(
            (f"{split}/{classes[label]}/{file.name}", file.stat().st_size)
            for split in SPLITS
            for file, label in self.labelled(split)
        )

    def read(self, split: SplitName, image_size: int | None) -> Split:
        found = self.encoded(split)
        encoded = ((get(), where) for get, where in found.pictures)
        return Split(labels=found.labels, images=decode_all(encoded, image_size))

    def encoded(self, split: SplitName, start: int = 0) -> EncodedSplit:
        labelled = self.labelled(split)
        labels = np.array([label for _, label in labelled], dtype=np.int64)
        if split == "train":
            self._check_classes(set(labels.tolist()))
        return EncodedSplit(labels=labels, pictures=_pictures(labelled[start:]))

    def _check_classes(self, found: set[int]) -> None:
        """A class without images would still be a class of the model: mostly half a copy."""
        empty = [name for label, name in enumerate(self.class_names()) if label not in found]
        if empty:
            raise DataError(
                f"{self.folder_of(empty[0])} holds no image",
                "add the images of this class, or remove its folder",
            )

    @abstractmethod
    def folder_of(self, class_name: str) -> Path:
        """Where the training images of a class lie."""


def _pictures(labelled: Iterable[LabelledFile]) -> Iterator[LocatedPicture]:
    for file, _ in labelled:
        yield file.read_bytes, str(file)


def image_files(root: Path) -> list[Path]:
    """The image files in `root` and below, in the order of their paths."""
    return [
        file
        for file in sorted(root.rglob("*"))
        if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")
    ]


def is_folder(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def stat_listing(files: Iterable[Path]) -> list[tuple[str, int]]:
    """(file name, size), sorted: one system call a file."""
    return sorted((file.name, file.stat().st_size) for file in files)
