"""A prepared data set on disk: a folder of memory-mappable arrays, and how it is read.

    train-images.npy  train-labels.npy  test-images.npy  test-labels.npy  meta.json (last)

or, where pictures stay encoded, shards (`encoded`). Every file appears by write, fsync, rename;
`meta.json` is what makes the data set exist.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainers.data.decode import fit_array
from trainers.data.encoded import EncodedImages, encoded_fingerprint, sizes_fingerprint
from trainers.data.images import ImageData, content_fingerprint
from trainers.data.meta import load_info, read_meta
from trainers.data.pool import PlainViews
from trainers.data.source import SPLITS
from trainers.errors import DataError

__all__ = ["changed", "load", "open_arrays", "open_described", "replacing"]


def load(
    folder: Path,
    *,
    verify: bool = True,
    image_size: int | None = None,
    threads: int | None = None,
) -> ImageData:
    """A prepared data set, memory-mapped. verify: hash the content (CIFAR: half a second; of
    encoded pictures labels and digests) and raise DataError if it is not what `prepare` wrote.

    image_size: pixels of the images that a run sees; None is the data set's own. Other sizes are
    resized here, once, in memory. Encoded pictures of the test split are decoded when somebody
    looks at them first, by `threads`; None takes the cores there are.
    """
    if read_meta(folder).get("encoded"):
        return _load_encoded(folder, verify=verify, image_size=image_size, threads=threads)
    info, arrays = load_info(folder), open_arrays(folder)
    if verify and (actual := content_fingerprint(*arrays)) != read_meta(folder)["content"]:
        raise changed(folder, "arrays", actual)
    train_images, train_labels, test_images, test_labels = map(torch.from_numpy, arrays)
    if image_size not in (None, info.image_size):
        assert image_size is not None
        info = replace(info, image_size=image_size)
        train_images, test_images = (_resized(i, image_size) for i in (train_images, test_images))
    return ImageData(
        info=info,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
    )


def _load_encoded(
    folder: Path, *, verify: bool, image_size: int | None, threads: int | None
) -> ImageData:
    info = load_info(folder)
    train, test = open_described(folder, verify=verify)
    info = replace(info, image_size=image_size or info.image_size)
    return ImageData(
        info=info,
        train_images=EncodedImages(folder, "train", *train[1:]),
        train_labels=torch.from_numpy(train[0]),
        test_images=PlainViews(
            EncodedImages(folder, "test", *test[1:]), info.image_size, threads=threads
        ),
        test_labels=torch.from_numpy(test[0]),
    )


def open_described(
    folder: Path, *, verify: bool = True
) -> tuple[tuple[npt.NDArray[Any], ...], ...]:
    """(labels, sizes, digests) of the training and of the test split of encoded pictures. verify:
    raises DataError if they are not those prepared."""
    what = ("labels", "sizes", "digests")
    train, test = (
        tuple(_open_array(folder, f"{split}-{name}") for name in what) for split in SPLITS
    )
    if verify:
        info, described = load_info(folder), ((train[0], train[2]), (test[0], test[2]))
        if (actual := encoded_fingerprint(described, info.num_classes)) != info.fingerprint:
            raise changed(folder, "labels or digests", actual)
        actual = sizes_fingerprint(train[1], test[1])
        if actual != read_meta(folder).get("sizes", actual):  # sets of older versions do not say
            raise changed(folder, "sizes", actual)
    return train, test


def changed(folder: Path, what: str, actual: str) -> DataError:
    return DataError(
        f"the {what} in {folder} are not those that were prepared (content {actual[:16]})",
        "delete the folder and prepare the data set again",
    )


def _resized(images_NCHW: torch.Tensor, image_size: int) -> torch.Tensor:
    """uint8 images of another size, bilinear with antialias. By Pillow, as they are prepared:
    integer arithmetic, alike on every machine."""
    resized = np.empty((len(images_NCHW), 3, image_size, image_size), dtype=np.uint8)
    pixels = images_NCHW.numpy()

    def fill(rows: Sequence[int]) -> None:
        for row in rows:
            resized[row] = fit_array(pixels[row], image_size)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        chunks = [range(i, min(i + 1000, len(pixels))) for i in range(0, len(pixels), 1000)]
        list(pool.map(fill, chunks))
    return torch.from_numpy(resized)


def open_arrays(folder: Path) -> tuple[npt.NDArray[Any], ...]:
    """train images, train labels, test images, test labels, copy-on-write: torch wants writable
    memory, and the files must never change."""
    names = [f"{split}-{what}" for split in SPLITS for what in ("images", "labels")]
    return tuple(_open_array(folder, name) for name in names)


def _open_array(folder: Path, name: str) -> npt.NDArray[Any]:
    try:
        return np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False)  # type: ignore[no-any-return]
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
