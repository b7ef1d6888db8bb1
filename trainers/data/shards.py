"""Writing shards of encoded pictures (`encoded` says what they are), so that a kill loses little.

`preparing.json` says of what the shards are; with another origin all of them are made again. A
shard appears by rename when it is whole: what is there is taken, and the next one begun.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainers.data.decode import opened, rgb
from trainers.data.encoded import PICTURES_PER_BATCH, PICTURES_PER_SHARD, shard_name
from trainers.data.meta import META, meta_text
from trainers.data.prepared import replacing
from trainers.data.source import EncodedSplit, LocatedPicture, SplitName

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["PREPARING", "Recoding", "SplitArrays", "begin", "finish", "write_split"]

PREPARING = "preparing.json"
_QUALITY = 90
"""Of pictures that are resized while nothing is said about quality."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Recoding:
    """What becomes of the pictures. shorter_side: larger ones are resized to it, smaller ones never
    upscaled. jpeg_quality: all are encoded again; None keeps the bytes of those not resized."""

    shorter_side: int | None = None
    jpeg_quality: int | None = None


@dataclass(frozen=True)
class SplitArrays:
    """labels: (N,). sizes: int32 (N, 2). digests: uint8 (N, 32)."""

    labels: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    digests: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Picture:
    encoded: bytes
    digest: bytes
    height: int
    width: int


def begin(out: Path, origin: Mapping[str, Any]) -> None:
    """Keeps the shards in `out` if they are of this origin, else clears the folder for them."""
    out.mkdir(parents=True, exist_ok=True)
    wanted = json.dumps({**origin, "shard": PICTURES_PER_SHARD}, indent=2, sort_keys=True) + "\n"
    (out / META).unlink(missing_ok=True)  # first: no reader may take new files for the old set
    for unfinished in out.glob(".*.arrow.*"):
        unfinished.unlink()
    mark = out / PREPARING
    if mark.exists() and mark.read_text() == wanted:
        return
    mark.unlink(missing_ok=True)
    for old in (*out.glob("*.arrow"), *out.glob("*.npy")):
        old.unlink()
    with replacing(mark) as temporary:
        temporary.write_text(wanted)


def write_split(
    out: Path,
    name: SplitName,
    encoded: Callable[[SplitName, int], EncodedSplit],
    recoding: Recoding,
    progress: Progress | None = None,
) -> SplitArrays:
    """Writes the shards that are missing and the arrays beside them. encoded: a split's pictures
    from a number on. Every picture is decoded once, so that a damaged one is found now.

    Raises DataError that names it.
    """
    labels = encoded(name, 0).labels
    total = len(labels)
    whole = _whole_shards(out, name, total)
    done = min(whole * PICTURES_PER_SHARD, total)
    if progress is not None:
        progress(done, total)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        pictures = encoded(name, done).pictures
        for index in range(whole, _num_shards(total)):
            of_shard = islice(pictures, PICTURES_PER_SHARD)
            for written in _write_shard(out / shard_name(name, index), of_shard, recoding, pool):
                done += written
                if progress is not None:
                    progress(done, total)
    arrays = _arrays(out, name, labels)
    for what in ("labels", "sizes", "digests"):
        with replacing(out / f"{name}-{what}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, getattr(arrays, what))
    return arrays


def finish(out: Path, meta: Mapping[str, Any]) -> None:
    """Makes the data set exist."""
    with replacing(out / META) as temporary:
        temporary.write_text(meta_text(meta))
    (out / PREPARING).unlink(missing_ok=True)


def _num_shards(total: int) -> int:
    return -(-total // PICTURES_PER_SHARD)


def _whole_shards(out: Path, name: SplitName, total: int) -> int:
    """How many shards from the first on are there."""
    for index in range(_num_shards(total)):
        if not (out / shard_name(name, index)).exists():
            return index
    return _num_shards(total)


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("image", pa.large_binary()),
            ("sha256", pa.binary(32)),
            ("height", pa.int32()),
            ("width", pa.int32()),
        ]
    )


def _write_shard(
    path: Path, pictures: Iterator[LocatedPicture], recoding: Recoding, pool: ThreadPoolExecutor
) -> Iterator[int]:
    """Writes one shard; yields the pictures of each record batch when they are written."""
    import pyarrow as pa

    def encode(item: LocatedPicture) -> _Picture:
        get, where = item
        return _encode(get(), where, recoding)

    with replacing(path) as temporary:
        with (
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, _schema()) as writer,
        ):
            while window := list(islice(pictures, PICTURES_PER_BATCH)):
                batch = list(pool.map(encode, window))
                columns = (
                    [picture.encoded for picture in batch],
                    [picture.digest for picture in batch],
                    [picture.height for picture in batch],
                    [picture.width for picture in batch],
                )
                arrays = [pa.array(c, f.type) for c, f in zip(columns, _schema(), strict=True)]
                writer.write_batch(pa.record_batch(arrays, schema=_schema()))
                yield len(batch)


def _encode(encoded: bytes, where: str, recoding: Recoding) -> _Picture:
    """A picture as it is stored. Raises DataError if it cannot be decoded."""
    from PIL.Image import Resampling

    with opened(encoded, where) as picture:
        width, height = picture.size
        shorter, asked = min(width, height), recoding.shorter_side
        is_large = asked is not None and shorter > asked
        if not is_large and recoding.jpeg_quality is None:
            picture.draft(None, (max(width // 8, 1), max(height // 8, 1)))
            picture.load()  # at an eighth: finds what is damaged or cut off at half the price
        else:
            image = rgb(picture)
            if is_large:
                assert asked is not None
                width, height = asked * width // shorter, asked * height // shorter
                image = image.resize((width, height), Resampling.LANCZOS)
            sink = io.BytesIO()
            image.save(sink, "JPEG", quality=recoding.jpeg_quality or _QUALITY)
            encoded = sink.getvalue()
    return _Picture(encoded, hashlib.sha256(encoded).digest(), height, width)


def _arrays(out: Path, name: SplitName, labels: npt.NDArray[np.int64]) -> SplitArrays:
    """What the shards say of their pictures, those made before a kill included."""
    import pyarrow as pa

    sizes, digests = [], []
    for index in range(_num_shards(len(labels))):
        with pa.memory_map(str(out / shard_name(name, index))) as file:
            table = pa.ipc.open_file(file).read_all().select(["sha256", "height", "width"])
            sides = [table[side].to_numpy() for side in ("height", "width")]
            digests.append(np.frombuffer(b"".join(table["sha256"].to_pylist()), np.uint8))
            sizes.append(np.stack(sides, axis=1).astype(np.int32))
    return SplitArrays(
        labels, np.concatenate(sizes), np.concatenate(digests).reshape(len(labels), 32)
    )
