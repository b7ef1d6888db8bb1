"""A prepared data set on disk: a folder of memory-mappable arrays, and how it is read.

    train-images.npy  train-labels.npy  test-images.npy  test-labels.npy  meta.json (last)

Every file appears by write, fsync, rename; `meta.json` is what makes the data set exist.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainers.data.images import ImageData, content_fingerprint
from trainers.data.info import DatasetInfo
from trainers.data.source import SPLITS
from trainers.errors import DataError

__all__ = ["META", "load", "load_info", "open_arrays", "read_meta", "replacing"]

META = "meta.json"


def load_info(folder: Path) -> DatasetInfo:
    """What a prepared data set is. Raises DataError if `folder` holds none."""
    meta = read_meta(folder)
    values: dict[str, Any] = {field.name: meta[field.name] for field in fields(DatasetInfo)}
    values |= {key: tuple(values[key]) for key in ("mean", "std")}  # JSON has lists only
    return DatasetInfo(**values)


def load(folder: Path, *, verify: bool = True) -> ImageData:
    """A prepared data set, memory-mapped. verify: hash the content (CIFAR: half a second) and raise
    DataError if it is not what `prepare` wrote."""
    info, arrays = load_info(folder), open_arrays(folder)
    if verify and (actual := content_fingerprint(*arrays)) != read_meta(folder)["content"]:
        raise DataError(
            f"the arrays in {folder} are not those that were prepared (content {actual[:16]})",
            "delete the folder and prepare the data set again",
        )
    train_images, train_labels, test_images, test_labels = map(torch.from_numpy, arrays)
    return ImageData(
        info=info,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
    )


def read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta: dict[str, Any] = json.loads((folder / META).read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} holds no prepared data set: {error}",
            "delete the folder and prepare the data set again",
        ) from error
    return meta


def open_arrays(folder: Path) -> tuple[npt.NDArray[Any], ...]:
    """train images, train labels, test images, test labels, copy-on-write: torch wants writable
    memory, and the files must never change."""
    names = [f"{split}-{what}.npy" for split in SPLITS for what in ("images", "labels")]
    try:
        return tuple(np.load(folder / name, mmap_mode="c") for name in names)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{folder} lacks an array, or it is damaged: {error}",
            "delete the folder and prepare the data set again",
        ) from error


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A unique temporary path beside `target` that becomes `target` if the block succeeds."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
