"""Tiny-ImageNet-200 as it is published.

    wnids.txt                         the classes
    train/<wnid>/images/*.JPEG
    val/images/*.JPEG                 val/val_annotations.txt: file, wnid and a box, tab-separated
    test/images/*.JPEG                without labels: nobody reads it

`val` is the test split, and labels follow the sorted wnids, as in torchvision's ImageFolder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainers.data.files import LabelledFile, LabelledFiles, image_files
from trainers.data.source import SplitName
from trainers.errors import DataError

__all__ = ["TinyImageNetSource", "find"]

_FOLDER = "tiny-imagenet-200"
_ANNOTATIONS = Path("val") / "val_annotations.txt"


@dataclass(frozen=True)
class TinyImageNetSource(LabelledFiles):
    """root: the folder that holds wnids.txt."""

    root: Path
    kind: str = "tinyimagenet"

    def class_names(self) -> tuple[str, ...]:
        return tuple(sorted((self.root / "wnids.txt").read_text().split()))

    def folder_of(self, class_name: str) -> Path:
        return self.root / "train" / class_name

    def labelled(self, split: SplitName) -> list[LabelledFile]:
        classes = {name: label for label, name in enumerate(self.class_names())}
        if split == "test":
            return self._validation(classes)
        found: list[LabelledFile] = []
        for name, label in classes.items():
            found += [(file, label) for file in image_files(self.folder_of(name))]
        return found

    def _validation(self, classes: dict[str, int]) -> list[LabelledFile]:
        """In the order of the annotations."""
        annotations = self.root / _ANNOTATIONS
        found: list[LabelledFile] = []
        for line in annotations.read_text().splitlines():
            fields = line.split("\t")
            file = self.root / "val" / "images" / fields[0]
            if len(fields) < 2 or fields[1] not in classes or not file.is_file():
                raise DataError(
                    f"{annotations} says {line!r}: no such image, or no such class in wnids.txt",
                    "unpack the archive again",
                )
            found.append((file, classes[fields[1]]))
        return found


def find(name: str, path: Path) -> TinyImageNetSource | None:
    """The official folder of Tiny-ImageNet at `path` or within; None if it is none."""
    for root in (path / name, path / _FOLDER, path):
        if (root / "wnids.txt").is_file() and (root / _ANNOTATIONS).is_file():
            return TinyImageNetSource(root)
    return None
