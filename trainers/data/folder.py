"""Data sets in image folders: `train/<class>/*` and `test/<class>/*` or `val/<class>/*`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainers.data.decode import decode_all
from trainers.data.source import Split, SplitName
from trainers.errors import DataError

__all__ = ["FolderSource", "find"]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}


@dataclass(frozen=True)
class FolderSource:
    """Classes are the sub-folders of `train` in sorted order. Images may lie deeper, as in
    Tiny-ImageNet's `train/<class>/images/`; they are taken in the order of their paths."""

    train: Path
    test: Path
    kind: str = "folder"
    official_fingerprint: None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file for root in (self.train, self.test) for file, _ in self._labelled(root))

    def class_names(self) -> tuple[str, ...]:
        return tuple(sorted(entry.name for entry in self.train.iterdir() if _is_class(entry)))

    def read(self, split: SplitName, image_size: int | None) -> Split:
        root = self.train if split == "train" else self.test
        labelled = list(self._labelled(root))
        if split == "train":
            self._check_classes({label for _, label in labelled})
        labels = np.array([label for _, label in labelled], dtype=np.int64)
        encoded = ((file.read_bytes(), str(file)) for file, _ in labelled)
        return Split(labels=labels, images=decode_all(encoded, image_size))

    def _check_classes(self, found: set[int]) -> None:
        """A class without images would still be a class of the model: mostly half a copy."""
        empty = [name for label, name in enumerate(self.class_names()) if label not in found]
        if empty:
            raise DataError(
                f"{self.train / empty[0]} holds no image",
                "add the images of this class, or remove its folder",
            )

    def _labelled(self, root: Path) -> Iterator[tuple[Path, int]]:
        classes = {name: index for index, name in enumerate(self.class_names())}
        for entry in sorted(filter(_is_class, root.iterdir())):
            if entry.name not in classes:
                raise DataError(
                    f"{entry} is a class that {self.train} does not have",
                    "give training images of every class",
                )
            for file in sorted(entry.rglob("*")):
                if file.suffix.lower() in _SUFFIXES and not file.name.startswith("."):
                    yield file, classes[entry.name]


def find(name: str, path: Path) -> FolderSource | None:
    """The image folders of `name` in `path` or `path/name`; None if there is no `train/<class>`.
    Raises DataError if there is no test split beside it."""
    for root in (path / name, path):
        if not _has_classes(root / "train"):
            continue
        for test in (root / "test", root / "val"):
            if _has_classes(test):
                return FolderSource(root / "train", test)
        raise DataError(
            f"{root} holds train/<class>/ but no test split",
            "add test/<class>/ or val/<class>/ with images",
        )
    return None


def _is_class(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _has_classes(root: Path) -> bool:
    return root.is_dir() and any(_is_class(entry) for entry in root.iterdir())
