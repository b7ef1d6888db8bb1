"""Strategy C's soft targets: one (N, C) array for a whole training split, keyed by sample index.

An Arrow IPC file with one fixed-size-list column, memory-mapped: all C students of one snapshot
share one file and, on one node, its pages. Its identity stands in the schema's metadata, and a
reader that expects another teacher, data set, temperature, view or dtype is refused. A
SHA-256 of all its bytes stands before the footer: damage is noticed when the file is opened.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from trainers.augment import normalise
from trainers.control import StopFlag
from trainers.data.encoded import EncodedImages
from trainers.data.images import ImageData
from trainers.data.pool import plain_batches
from trainers.errors import TargetsError
from trainers.pulse import PULSE
from trainers.strategies import soft_target

__all__ = ["SoftTargets", "TargetsIdentity", "compute_targets", "seal_targets", "write_targets"]

_KEY = b"targetsweep.identity"
_REMEDY = "delete it; it is made again"
_MARK = b"targetsweep-targets-seal-1".ljust(31) + b"\n"
_SEAL_BYTES = len(_MARK) + 32
_TAIL_BYTES = 10
"""Of an Arrow file: the footer's length, then the magic."""


@dataclass(frozen=True, kw_only=True)
class TargetsIdentity:
    """What makes two soft-target files the same. teacher_digest: SHA-256 of the snapshot."""

    teacher_digest: str
    dataset_fingerprint: str
    split: str
    view: str
    temperature: float
    dtype: str


@torch.inference_mode()
def compute_targets(
    teacher: nn.Module,
    data: ImageData,
    *,
    temperature: float,
    device: torch.device,
    dtype: str = "float32",
    decode_threads: int | None = None,
    stop: StopFlag | None = None,
) -> np.ndarray | None:
    """(N, C) softmax(teacher(x_i) / T) of every un-augmented training sample, in evaluation mode
    and fp32, by sample index, kept as `dtype`. Encoded pictures pass by once, in their plain
    view. None: it was stopped, and has nothing to keep."""
    teacher = teacher.to(device).eval()
    targets_NC = np.empty((len(data.train_labels), data.info.num_classes), dtype=dtype)
    first = 0
    for images in _plain_images(data, decode_threads):
        if stop is not None and stop.is_set():
            return None
        PULSE.beat()
        views = normalise(images.to(device), data.info.mean, data.info.std)
        rows = soft_target(teacher(views), temperature).cpu().numpy()
        targets_NC[first : first + len(rows)] = rows
        first += len(rows)
    return targets_NC


def _plain_images(data: ImageData, threads: int | None) -> Iterable[Tensor]:
    """The un-augmented training images in order, uint8 (N, 3, H, W) at a time."""
    if isinstance(data.train_images, EncodedImages):
        return plain_batches(data.train_images, data.info.image_size, threads=threads)
    return torch.split(data.train_images, 1000)


def write_targets(path: Path, targets_NC: np.ndarray, identity: TargetsIdentity) -> None:
    """Writes `path` in one go; the caller gives a temporary name and renames it."""
    kept_NC = np.ascontiguousarray(targets_NC, dtype=identity.dtype)
    column = pa.FixedSizeListArray.from_arrays(pa.array(kept_NC.ravel()), kept_NC.shape[1])
    schema = pa.schema([("target", column.type)], {_KEY: json.dumps(asdict(identity)).encode()})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([column], schema=schema))
    _seal(path)


def _seal(path: Path) -> None:
    """Puts a mark and the SHA-256 of all other bytes before the footer, which readers find from the
    end: batches lie at absolute offsets, so nobody looks there."""
    with path.open("rb+") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = _footer_start(data)
        tail, digest = data[start:], hashlib.sha256(data).digest()
        file.seek(start)
        file.write(_MARK + digest + tail)


def _check_seal(path: Path) -> None:
    """Before Arrow reads it: a damaged file can crash the reader. Raises TargetsError, OSError and
    ValueError (an empty file)."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = _footer_start(data)
        start = end - _SEAL_BYTES
        if start < 0 or data[start : start + len(_MARK)] != _MARK:
            raise TargetsError(f"{path.name} is damaged: its checksum is missing", _REMEDY)
        with memoryview(data) as view, view[:start] as head, view[end:] as tail:
            digest = hashlib.sha256(head)
            digest.update(tail)
        if digest.digest() != data[start + len(_MARK) : end]:
            raise TargetsError(f"{path.name} is damaged: its checksum does not fit", _REMEDY)


def _footer_start(data: mmap.mmap) -> int:
    length = int.from_bytes(data[-_TAIL_BYTES:-6], "little")
    start = len(data) - _TAIL_BYTES - length
    if data[-6:] != b"ARROW1" or start < 0:
        raise ValueError("it is cut off or no Arrow file")
    return start


def seal_targets(path: Path, out: Path) -> None:
    """Writes `out`: the file of an older version, with the digest it lacks. Its values are taken
    for what they are. Raises TargetsError when it cannot be read, or has a digest."""
    if _MARK in path.read_bytes()[-100_000:]:
        raise TargetsError(f"{path.name} has a checksum already", _REMEDY)
    targets_NC, identity = _open(path)
    write_targets(out, targets_NC, identity)


def _open(path: Path) -> tuple[np.ndarray, TargetsIdentity]:
    """The values, mapped, and what they say they are. Raises TargetsError."""
    try:
        with pa.ipc.open_file(pa.memory_map(str(path))) as file:
            batch = file.get_batch(0)
        identity = TargetsIdentity(**json.loads((batch.schema.metadata or {})[_KEY]))
        return _array(batch.column(0), identity.dtype), identity
    except (pa.ArrowException, LookupError, TypeError, ValueError, OSError) as error:
        raise TargetsError(f"{path.name} is not a soft-target file: {error}", _REMEDY) from error


class SoftTargets:
    """A soft-target file opened for reading; `rows(samples)` gives each sample its own target."""

    def __init__(self, path: Path, expected: TargetsIdentity | None) -> None:
        """Raises TargetsError when the file is damaged or is of another identity. expected: None
        takes any. Reads the file once (ImageNet's, 2.5 GB, takes 2 to 5 s)."""
        try:
            _check_seal(path)
        except (OSError, ValueError) as error:
            raise TargetsError(
                f"{path.name} is not a soft-target file: {error}", _REMEDY
            ) from error
        self._targets_SC, found = _open(path)
        if expected is not None:
            _refuse_mismatch(path, found, expected)
        self.identity = found

    def __len__(self) -> int:
        return len(self._targets_SC)

    def rows(self, samples_N: Tensor) -> Tensor:
        """(N, C) targets in the stored dtype. Raises TargetsError for a sample without a row."""
        without = samples_N[(samples_N < 0) | (samples_N >= len(self))]
        if len(without):
            raise TargetsError(
                f"sample {int(without[0])} has no soft target; the file holds {len(self)} rows",
                "delete the file; it is made again for the whole training set",
            )
        return torch.from_numpy(self._targets_SC[samples_N.cpu().numpy()])


def _array(column: pa.Array, dtype: str) -> np.ndarray:
    """The (S, C) view of a fixed-size-list column, without a copy. Raises TypeError, ValueError."""
    if not pa.types.is_fixed_size_list(column.type):
        raise TypeError(f"its column is {column.type}")
    values: np.ndarray = column.flatten().to_numpy(zero_copy_only=True)
    if values.dtype != dtype:
        raise TypeError(f"its values are {values.dtype}, not {dtype}")
    return values.reshape(len(column), column.type.list_size)


def _refuse_mismatch(path: Path, found: TargetsIdentity, expected: TargetsIdentity) -> None:
    wanted = asdict(expected)
    for field, value in asdict(found).items():
        if value != wanted[field]:
            raise TargetsError(
                f"{path.name} holds soft targets of another {field}: {value}, "
                f"wanted {wanted[field]}",
                "delete the file; it is made again for what is wanted",
            )
