"""Pictures that stay encoded: Arrow IPC shards of their bytes, memory-mapped, read by index.

    train-00000.arrow …               column `image`; `PICTURES_PER_SHARD` each, the last one fewer
    train-labels.npy                  int64 (N,)
    train-sizes.npy                   int32 (N, 2): height, width
    train-digests.npy                 uint8 (N, 32): SHA-256 of each picture's bytes

and the same of `test`. The fingerprint is one over labels and digests; a picture's bytes are held
against its digest whenever they are read, so what is trained on is what the fingerprint says.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainers.data.source import Labels, SplitName
from trainers.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "PICTURES_PER_BATCH",
    "PICTURES_PER_SHARD",
    "VIEW_SIZE",
    "EncodedImages",
    "encoded_fingerprint",
    "shard_name",
    "sizes_fingerprint",
]

VIEW_SIZE = 224
"""Pixels of the views of encoded pictures, unless a run says otherwise (`image_size`)."""

PICTURES_PER_SHARD = 4096
"""ImageNet: 313 shards of 450 MB; each is an open file of the process."""

PICTURES_PER_BATCH = 256
"""Of one Arrow record batch: what is held in memory while a shard is written."""

_REMEDY = "delete the folder and prepare the data set again"


def shard_name(split: SplitName, index: int) -> str:
    return f"{split}-{index:05d}.arrow"


class EncodedImages:
    """One split in the prepared folder `folder`. Reading is safe from several threads.

    sizes: int32 (N, 2), height and width in pixels.
    """

    def __init__(
        self,
        folder: Path,
        split: SplitName,
        sizes: npt.NDArray[np.int32],
        digests: npt.NDArray[np.uint8],
    ) -> None:
        self.sizes = sizes
        self._digests = digests
        self._folder = folder
        self._split: SplitName = split
        self._shards: dict[int, list[pa.Array]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.sizes)

    def where(self, index: int) -> str:
        """The picture in words, for an error message."""
        shard, row = divmod(index, PICTURES_PER_SHARD)
        return f"picture {row} of {self._folder / shard_name(self._split, shard)}"

    def read(self, index: int) -> memoryview:
        """The encoded bytes of a picture. Raises DataError unless they are those prepared."""
        shard, row = divmod(index, PICTURES_PER_SHARD)
        batch, row = divmod(row, PICTURES_PER_BATCH)
        try:
            encoded = memoryview(self._columns(shard)[batch][row].as_buffer())
        except (LookupError, TypeError, AttributeError) as error:
            raise DataError(f"{self.where(index)} is not there", _REMEDY) from error
        if hashlib.sha256(encoded).digest() != self._digests[index].tobytes():
            raise DataError(f"{self.where(index)} is not what was prepared", _REMEDY)
        return encoded

    def _columns(self, shard: int) -> list[pa.Array]:
        """The record batches of a shard, mapped when it is first needed."""
        with self._lock:
            if shard not in self._shards:
                self._shards[shard] = _open(self._folder / shard_name(self._split, shard))
            return self._shards[shard]


def _open(path: Path) -> list[Any]:
    import pyarrow as pa

    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        return [file.get_batch(i).column("image") for i in range(file.num_record_batches)]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{path} is not a readable shard: {error}", _REMEDY) from error


def encoded_fingerprint(
    arrays: Iterable[tuple[Labels, npt.NDArray[np.uint8]]], num_classes: int
) -> str:
    """SHA-256 (64 hex digits) over (labels, digests) of the training and of the test split, in
    order, and the number of classes, which may exceed what the labels show."""
    digest = hashlib.sha256(f"encoded {num_classes}".encode())
    for labels, digests in arrays:
        digest.update(f"{len(labels)}".encode())
        digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
        digest.update(np.ascontiguousarray(digests).data)
    return digest.hexdigest()


def sizes_fingerprint(train: npt.NDArray[np.int32], test: npt.NDArray[np.int32]) -> str:
    """SHA-256 (64 hex digits) over the pictures' sizes, which say where crops may lie."""
    digest = hashlib.sha256()
    for sizes in (train, test):
        digest.update(np.ascontiguousarray(sizes, dtype="<i4").data)
    return digest.hexdigest()
