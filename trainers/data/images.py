"""A prepared data set in memory: tensors over memory-mapped files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from trainers.data.encoded import EncodedImages
from trainers.data.info import DatasetInfo
from trainers.data.pool import PlainViews

__all__ = ["ImageData", "content_fingerprint"]

_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """train_images, test_images: uint8 (N, 3, H, W), H = W = info.image_size; where train_images
    stay encoded, test_images are decoded when somebody looks. train_labels, test_labels: int64
    (N,).

    The tensors share memory with the files, copy-on-write: pages are read when first used, and
    writing to a tensor never changes the file.
    """

    info: DatasetInfo
    train_images: torch.Tensor | EncodedImages = field(repr=False)
    train_labels: torch.Tensor = field(repr=False)
    test_images: torch.Tensor | PlainViews = field(repr=False)
    test_labels: torch.Tensor = field(repr=False)


def content_fingerprint(
    images_train: npt.NDArray[np.uint8],
    labels_train: npt.NDArray[np.int64],
    images_test: npt.NDArray[np.uint8],
    labels_test: npt.NDArray[np.int64],
) -> str:
    """SHA-256 (64 hex digits) over dtype, shape and bytes of the four arrays, in that order."""
    digest = hashlib.sha256()
    for array in (images_train, labels_train, images_test, labels_test):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, data.size, _CHUNK_BYTES):  # a memory-mapped file is never held whole
            digest.update(data[start : start + _CHUNK_BYTES].data)
    return digest.hexdigest()
