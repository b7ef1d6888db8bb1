"""ImageNet-1k as it is unpacked from the official archives.

    train/<wnid>/*.JPEG
    val/<wnid>/*.JPEG                 as everybody sorts them, or
    val/ILSVRC2012_val_*.JPEG         flat as they come, with a list of their classes:
        LOC_val_solution.csv          Kaggle's: `ImageId,PredictionString`, which begins with a wnid
        val_labels.txt                `<file> <wnid>` a line, or a wnid a line in the files' order

`val` is the test split; labels follow the sorted wnids. The devkit's ground truth numbers classes
in another order and is refused rather than misread.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainers.data.files import LabelledFile, LabelledFiles, image_files, is_folder
from trainers.data.source import UNLISTED_BEFORE, SplitName
from trainers.errors import DataError

__all__ = ["ImageNetSource", "find"]

_WNID = re.compile(r"n\d{8}")
_KAGGLE = Path("ILSVRC") / "Data" / "CLS-LOC"
_LISTS = ("LOC_val_solution.csv", "val_labels.txt")


@dataclass(frozen=True)
class ImageNetSource(LabelledFiles):
    """root: the folder of `train` and `val`. labels: the list of a flat `val`'s classes."""

    root: Path
    labels: Path | None = None
    kind: str = "imagenet"

    def class_names(self) -> tuple[str, ...]:
        return tuple(sorted(entry.name for entry in _classes(self.root / "train")))

    def folder_of(self, class_name: str) -> Path:
        return self.root / "train" / class_name

    def listing(self) -> list[tuple[str, int]]:
        """Without sizes: asking for those of 1.3 million files takes minutes on a network disk."""
        val = self.root / "val"
        tops = [*_classes(self.root / "train"), *_classes(val)]
        found: list[tuple[str, int]] = []
        if self.labels is None:
            found += [(f"val/{name}", 0) for name in os.listdir(val)]
        else:
            tops.append(val)
            said = self.labels.read_bytes()
            found.append((self.labels.name, len(said)))
            found.append((hashlib.sha256(said).hexdigest(), UNLISTED_BEFORE))
        for top in tops:
            for folder, folders, files in os.walk(top, onerror=_refuse):
                where = Path(folder).relative_to(self.root).as_posix()
                size = 0 if Path(folder) == top else UNLISTED_BEFORE
                found += [(f"{where}/{name}", size) for name in (*folders, *files)]
        return sorted(found)

    def labelled(self, split: SplitName) -> list[LabelledFile]:
        classes = {name: label for label, name in enumerate(self.class_names())}
        root = self.root / ("train" if split == "train" else "val")
        if split == "test" and self.labels is not None:
            return _listed(self.labels, image_files(root), classes)
        found: list[LabelledFile] = []
        for entry in _classes(root):
            if entry.name not in classes:
                raise DataError(
                    f"{entry} is a class that {self.root / 'train'} does not have",
                    "give training images of every class",
                )
            found += [(file, classes[entry.name]) for file in image_files(entry)]
        return found


def find(name: str, path: Path) -> ImageNetSource | None:
    """ImageNet's folders at `path` or within; None where `train` has no wnid or `val` is missing.
    Raises DataError for a flat `val` without a list of its classes."""
    for root in (path / name, path, path / _KAGGLE):
        if not (_classes(root / "train") and (root / "val").is_dir()):
            continue
        if _classes(root / "val"):
            return ImageNetSource(root)
        places = [folder / file for folder in (root / "val", root, path) for file in _LISTS]
        labels = next((place for place in places if place.is_file()), None)
        if labels is None:
            raise DataError(
                f"{root / 'val'} has no folders by class and no list of its images' classes",
                f"move the images into val/<wnid>/, or add {' or '.join(_LISTS)} to {root}",
            )
        return ImageNetSource(root, labels)
    return None


def _refuse(error: OSError) -> None:
    """A folder that cannot be read is not an empty one."""
    raise error


def _classes(root: Path) -> list[Path]:
    """Sorted folders that are named as a wnid."""
    if not root.is_dir():
        return []
    named = (entry for entry in root.iterdir() if _WNID.fullmatch(entry.name))
    return sorted(entry for entry in named if is_folder(entry))


def _listed(labels: Path, files: list[Path], classes: Mapping[str, int]) -> list[LabelledFile]:
    """The flat split: each file with the class that the list gives it."""
    names = _read_list(labels, files)
    found: list[LabelledFile] = []
    for file in files:
        wnid = names.get(file.stem)
        if wnid is None or wnid not in classes:
            says = "nothing" if wnid is None else repr(wnid)
            raise DataError(
                f"{labels} says {says} of {file.name}, not one of the {len(classes)} wnids",
                "give a list of wnids; the devkit's numbers are in another order",
            )
        found.append((file, classes[wnid]))
    _check_number(labels, len(names), files)
    return found


def _check_number(labels: Path, listed: int, files: list[Path]) -> None:
    if listed != len(files):
        raise DataError(
            f"{labels} lists {listed} images, but there are {len(files)} in val",
            "unpack the validation images again",
        )


def _read_list(labels: Path, files: list[Path]) -> dict[str, str]:
    """wnids by file name without suffix."""
    lines = [line for line in labels.read_text().splitlines() if line.strip()]
    if labels.suffix == ".csv":
        pairs = [line.partition(",")[::2] for line in lines[1:]]
        return {name: (prediction.split() or [""])[0] for name, prediction in pairs}
    words = [line.split() for line in lines]
    if all(len(line) == 1 for line in words):
        _check_number(labels, len(words), files)
        return {file.stem: line[0] for file, line in zip(files, words, strict=True)}
    return {Path(line[0]).stem: line[-1] for line in words}
