"""Data sets in image folders: `train/<class>/*` and `test/<class>/*` or `val/<class>/*`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainers.data.files import LabelledFile, LabelledFiles, image_files, is_folder
from trainers.data.source import SplitName
from trainers.errors import DataError

__all__ = ["FolderSource", "find"]


@dataclass(frozen=True)
class FolderSource(LabelledFiles):
    """Classes are the sub-folders of `train` in sorted order. Images may lie deeper; they are taken
    in the order of their paths."""

    train: Path
    test: Path
    kind: str = "folder"

    def class_names(self) -> tuple[str, ...]:
        return tuple(sorted(entry.name for entry in self.train.iterdir() if is_folder(entry)))

    def folder_of(self, class_name: str) -> Path:
        return self.train / class_name

    def labelled(self, split: SplitName) -> list[LabelledFile]:
        root = self.train if split == "train" else self.test
        classes = {name: index for index, name in enumerate(self.class_names())}
        found: list[LabelledFile] = []
        for entry in sorted(filter(is_folder, root.iterdir())):
            if entry.name not in classes:
                raise DataError(
                    f"{entry} is a class that {self.train} does not have",
                    "give training images of every class",
                )
            found += [(file, classes[entry.name]) for file in image_files(entry)]
        return found


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


def _has_classes(root: Path) -> bool:
    return root.is_dir() and any(is_folder(entry) for entry in root.iterdir())
