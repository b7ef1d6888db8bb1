"""Data sets in Parquet files: encoded images (PNG, JPEG, WebP) with integer labels.

Both plain binary columns and Hugging Face's `{bytes, path}` structs are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainers.data.decode import decode_all
from trainers.data.files import stat_listing
from trainers.data.source import EncodedSplit, Labels, LocatedPicture, Split, SplitName
from trainers.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["IMAGE_COLUMNS", "LABEL_COLUMNS", "ParquetSource", "find", "patterns"]

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label")
_ROWS = 256

_STEMS: dict[SplitName, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val")}


@dataclass(frozen=True, kw_only=True)
class ParquetSource:
    """image_column, label_column: None takes the first of IMAGE_COLUMNS, of LABEL_COLUMNS."""

    train: tuple[Path, ...]
    test: tuple[Path, ...]
    image_column: str | None = None
    label_column: str | None = None
    kind: str = "parquet"
    official_fingerprint: None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.train, *self.test)

    def listing(self) -> list[tuple[str, int]]:
        return stat_listing(self.files)

    def class_names(self) -> tuple[str, ...] | None:
        """From the schema's metadata: `classes` (JSON list), or Hugging Face's ClassLabel."""
        schema = _open(self.train[0]).schema_arrow
        metadata = schema.metadata or {}
        try:
            if b"classes" in metadata:
                return tuple(str(name) for name in json.loads(metadata[b"classes"]))
            features = json.loads(metadata[b"huggingface"])["info"]["features"]
            return tuple(str(name) for name in features[self._label(schema, "")]["names"])
        except (KeyError, TypeError, ValueError):
            return None

    def read(self, split: SplitName, image_size: int | None) -> Split:
        found = self.encoded(split)
        encoded = ((get(), where) for get, where in found.pictures)
        return Split(labels=found.labels, images=decode_all(encoded, image_size))

    def encoded(self, split: SplitName, start: int = 0) -> EncodedSplit:
        paths = self.train if split == "train" else self.test
        labels = np.concatenate([self._labels(path) for path in paths])
        return EncodedSplit(labels=labels, pictures=self._pictures(paths, start))

    def _pictures(self, paths: tuple[Path, ...], start: int) -> Iterator[LocatedPicture]:
        for path in paths:
            rows = _open(path).metadata.num_rows
            if start < rows:
                yield from self._rows(path, max(start, 0))
            start -= rows

    def _label(self, schema: pa.Schema, path: str) -> str:
        return _column(schema, self.label_column, LABEL_COLUMNS, path)

    def _labels(self, path: Path) -> Labels:
        import pyarrow as pa

        file = _open(path)
        name = self._label(file.schema_arrow, str(path))
        if not pa.types.is_integer(file.schema_arrow.field(name).type):
            kind = file.schema_arrow.field(name).type
            raise DataError(
                f"column {name!r} of {path} is {kind}, not integer",
                "store class indices, or name another label column",
            )
        with _reading(path):
            column = file.read(columns=[name]).column(0)
        labels = np.asarray(column.fill_null(-1).to_numpy(), dtype=np.int64)
        if (labels < 0).any():
            row = int(np.argmax(labels < 0))
            raise DataError(
                f"row {row} of {path} has no label in {name!r}",
                "remove unlabelled rows; a test split without any label is passed over where a "
                "validation split stands beside it",
            )
        return labels

    def _rows(self, path: Path, start: int) -> Iterator[LocatedPicture]:
        """The pictures of one file from row `start` on; whole row groups before it are not read."""
        file = _open(path)
        name = _column(file.schema_arrow, self.image_column, IMAGE_COLUMNS, str(path))
        groups, row = _groups_from(file, start)
        with _reading(path):
            for batch in file.iter_batches(batch_size=_ROWS, row_groups=groups, columns=[name]):
                for value in batch.column(0).to_pylist():
                    if row >= start:
                        where = f"row {row} of {path}, column {name!r},"
                        yield _constant(_encoded_bytes(value, where)), where
                    row += 1


def _groups_from(file: pq.ParquetFile, start: int) -> tuple[list[int], int]:
    """The row groups from the one that holds row `start` on, and its first row."""
    first = 0
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if first + rows > start:
            return list(range(group, file.metadata.num_row_groups)), first
        first += rows
    return [], first


def _constant(encoded: bytes) -> Callable[[], bytes]:
    return lambda: encoded


def patterns(name: str, split: SplitName) -> tuple[str, ...]:
    """File patterns of a split, in the order they are tried."""
    stems = _STEMS[split]
    return (*(f"{name}_{stem}*.parquet" for stem in stems), *(f"{stem}*.parquet" for stem in stems))


def find(
    name: str,
    path: Path,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ParquetSource | None:
    """The Parquet files of `name` in `path` or `path/name`, in sorted order; None without training
    files. A test split that nobody has labelled, as ImageNet's, is passed over for the validation
    split. Raises DataError if there are training files and no test files."""
    for root in (path, path / name):
        train = next(_matches(root, name, "train"), ())
        if not train:
            continue
        tests = list(_matches(root, name, "test"))
        test = _labelled(tests, label_column) if len(tests) > 1 else next(iter(tests), ())
        if not test:
            raise DataError(
                f"{root} holds {train[0].name} but no test split",
                f"add one of: {', '.join(patterns(name, 'test'))}",
            )
        return ParquetSource(
            train=train, test=test, image_column=image_column, label_column=label_column
        )
    return None


def _matches(root: Path, name: str, split: SplitName) -> Iterator[tuple[Path, ...]]:
    """The files of every pattern that has some."""
    for pattern in patterns(name, split):
        if files := sorted(root.glob(pattern)):
            yield tuple(files)


def _labelled(splits: list[tuple[Path, ...]], named: str | None) -> tuple[Path, ...]:
    """The first split with a label; the first of all where none has one, to be refused later."""
    usual = (named,) if named is not None else LABEL_COLUMNS
    return next(
        (files for files in splits if any(_has_a_label(file, usual) for file in files)), splits[0]
    )


def _has_a_label(path: Path, usual: tuple[str, ...]) -> bool:
    file = _open(path)
    column = next((name for name in usual if name in file.schema_arrow.names), None)
    if column is None:
        return False
    with _reading(path):
        labels = file.read(columns=[column]).column(0)
    known = labels.drop_null().to_numpy()
    return bool(len(known)) and (known.dtype.kind not in "iu" or bool((known >= 0).any()))


def _column(schema: pa.Schema, named: str | None, usual: tuple[str, ...], path: str) -> str:
    for name in (named,) if named is not None else usual:
        if name in schema.names:
            return name
    looked_for = named if named is not None else " or ".join(usual)
    raise DataError(
        f"{path} has no column {looked_for}: it has {', '.join(schema.names)}",
        "name the columns (image_column, label_column)",
    )


def _encoded_bytes(value: Any, where: str) -> bytes:
    encoded = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(encoded, bytes):
        return encoded
    raise DataError(f"{where} holds no image bytes", "embed the encoded images in the Parquet file")


def _open(path: Path) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    with _reading(path):
        return pq.ParquetFile(path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns Arrow's errors inside the block into a DataError that names the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a readable Parquet file: {error}", "make or copy the file again"
        ) from error
