"""The images that all contenders train on: CIFAR-10 from Parquet files, or noise of its shape."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from trainers.data.catalogue import OFFICIAL
from trainers.data.images import ImageData
from trainers.data.info import DatasetInfo
from trainers.data.parquet import ParquetSource

__all__ = ["load_images", "noise"]

_INFO = OFFICIAL["cifar10"]


def load_images(files: Sequence[Path], *, train: int, test: int) -> ImageData:
    """At most `train` and `test` images. files: Parquet files with image bytes and labels, or
    folders of them; those with `train` in their name are the training split, the others the test
    split. No file: noise, which costs the same: no kernel's time depends on a pixel's value."""
    if not files:
        return noise(train, test)
    paths = sorted(path for file in files for path in _parquet_files(file))
    source = ParquetSource(
        train=tuple(path for path in paths if "train" in path.name),
        test=tuple(path for path in paths if "train" not in path.name),
    )
    if not source.train or not source.test:
        raise SystemExit("--data needs a file of the training split and one of the test split")
    return _image_data(*_read(source, "train", train), *_read(source, "test", test))


def _parquet_files(path: Path) -> list[Path]:
    return sorted(path.glob("cifar10_*.parquet")) if path.is_dir() else [path]


def _read(source: ParquetSource, split: str, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    found = source.read(split, _INFO.image_size)  # type: ignore[arg-type]
    images = np.stack([image for image, _ in islice(found.images, most)])
    return torch.from_numpy(images), torch.from_numpy(found.labels[: len(images)])


def noise(train: int, test: int, info: DatasetInfo = _INFO) -> ImageData:
    """As many random images and labels of that shape."""
    rng = np.random.default_rng(0)
    shape = (3, info.image_size, info.image_size)
    arrays = []
    for count in (train, test):
        arrays.append(torch.from_numpy(rng.integers(0, 256, (count, *shape), dtype=np.uint8)))
        arrays.append(torch.from_numpy(rng.integers(0, info.num_classes, count)))
    return _image_data(*arrays, info=info)


def _image_data(
    train_images: torch.Tensor,
    train_labels: torch.Tensor,
    test_images: torch.Tensor,
    test_labels: torch.Tensor,
    info: DatasetInfo = _INFO,
) -> ImageData:
    return ImageData(
        info=info,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
    )
