"""Files of a store, local or remote, read many at a time.

A run's evaluations are one small Parquet file, so a sweep is thousands of them. They are scanned as
one Arrow data set (C++ threads), which costs some 0.2 ms a file; a scan stops at the first damaged
file, and then the files are tried one by one to find it. Before that, every file's seal is checked:
what is damaged is named and not read.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs

from dashboards.filesystem import child_uri, open_filesystem
from dashboards.seals import SealError, check_parquet, unseal_json

__all__ = ["Store", "child_uri", "read_evaluations"]

_NUM_READERS = 16  # small reads wait for the disk or the network, not for a core


@dataclass(frozen=True)
class Store:
    """A store's root on a pyarrow file system; paths below are relative to it."""

    filesystem: Any
    root: str

    @classmethod
    def open(cls, store: str) -> Self:
        """store: local path or pyarrow.fs URI (`s3://bucket/store`)."""
        if "://" in str(store):
            filesystem, root = open_filesystem(str(store))
            return cls(filesystem, root.rstrip("/"))
        return cls(pafs.LocalFileSystem(), str(Path(store).expanduser().resolve()))

    def path(self, relative: str) -> str:
        """Full path on `filesystem`."""
        return f"{self.root}/{relative}"

    def read(self, relative: str) -> bytes:
        """Raises FileNotFoundError, OSError."""
        if isinstance(self.filesystem, pafs.LocalFileSystem):
            return Path(self.path(relative)).read_bytes()  # half of what a stream costs
        with self.filesystem.open_input_stream(self.path(relative)) as stream:
            return bytes(stream.read())

    def write(self, relative: str, content: bytes) -> None:
        """A reader sees the old file or the new: rename on a disk, one PUT on an object store."""
        path = self.path(relative)
        if not isinstance(self.filesystem, pafs.LocalFileSystem):
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(content)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def remove(self, relative: str) -> None:
        """Deletes a file that may be gone already."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self.path(relative))

    def read_json(self, paths: list[str], problems: list[str]) -> dict[str, dict[str, Any]]:
        """The objects of sealed JSON files by path; those that cannot be read or are damaged are
        left out, and in `problems`."""
        with ThreadPoolExecutor(_NUM_READERS) as pool:
            answers = list(pool.map(self._read_object, paths))
        problems += [a for a in answers if isinstance(a, str)]
        return {p: a for p, a in zip(paths, answers, strict=True) if not isinstance(a, str)}

    def _read_object(self, path: str) -> dict[str, Any] | str:
        try:
            value = json.loads(self.read(path))
            return unseal_json(value) if isinstance(value, dict) else f"{path}: not a JSON object"
        except SealError as error:
            return f"{path}: damaged ({error})"
        except (OSError, ValueError, RecursionError) as error:
            return f"{path}: cannot be read ({type(error).__name__})"

    def sound_parquet(self, paths: list[str], problems: list[str]) -> list[str]:
        """Those of the Parquet files whose seal fits; the others are in `problems`."""
        with ThreadPoolExecutor(_NUM_READERS) as pool:
            faults = list(pool.map(self._parquet_fault, paths))
        problems += [fault for fault in faults if fault is not None]
        return [path for path, fault in zip(paths, faults, strict=True) if fault is None]

    def _parquet_fault(self, path: str) -> str | None:
        try:
            check_parquet(self.read(path))
        except SealError as error:
            return f"{path}: damaged ({error})"
        except OSError as error:
            return f"{path}: cannot be read ({type(error).__name__})"
        return None

    def list_runs(self) -> dict[str, set[str]]:
        """Files of every run, relative to the run's folder, by run name; one listing."""
        selector = pafs.FileSelector(self.path("runs"), allow_not_found=True, recursive=True)
        prefix = len(self.path("runs")) + 1
        runs: dict[str, set[str]] = {}
        for info in self.filesystem.get_file_info(selector):
            run, _, file = info.path[prefix:].partition("/")
            if file and info.type == pafs.FileType.File:
                runs.setdefault(run, set()).add(file)
        return runs

    def sweeps(self) -> list[str]:
        """Names of the sweeps that have a folder."""
        selector = pafs.FileSelector(self.path("sweeps"), allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector))


def read_evaluations(
    files: Store, runs: list[str], metrics: tuple[str, ...], problems: list[str]
) -> pd.DataFrame:
    """metrics.parquet of `runs` as one frame: `run` (categorical over the runs read), `step`, the
    metrics (float64), `replayed`, `timestamp_ms`. A file that is damaged or cannot be read adds a
    line to `problems` and leaves its run out."""
    schema = pa.schema(
        [("step", pa.int64())]
        + [(name, pa.float64()) for name in metrics]
        + [("replayed", pa.bool_()), ("timestamp_ms", pa.float64())]
    )
    sound = files.sound_parquet([f"runs/{run}/metrics.parquet" for run in runs], problems)
    run_of = {files.path(rel): rel.split("/")[1] for rel in sound}
    try:
        batches = _scan(files, list(run_of), schema)
    except (pa.ArrowException, OSError):
        batches = _scan_each(files, list(run_of), schema, problems)
    table = pa.Table.from_batches([batch for _, batch in batches], schema)
    names = [run_of[path] for path, _ in batches]
    sizes = [batch.num_rows for _, batch in batches]
    frame: pd.DataFrame = table.to_pandas()
    categories = sorted(set(names))
    code = {name: index for index, name in enumerate(categories)}
    codes = np.repeat(np.array([code[name] for name in names], dtype=np.int32), sizes)
    run = pd.Categorical.from_codes(codes, categories=pd.Index(categories))
    frame.insert(0, "run", pd.Series(run))
    return frame


def _scan(files: Store, paths: list[str], schema: pa.Schema) -> list[tuple[str, pa.RecordBatch]]:
    """(path, batch) of all files; columns that a file lacks are null."""
    dataset = ds.dataset(paths, schema=schema, format="parquet", filesystem=files.filesystem)
    batches = dataset.scanner(use_threads=True).scan_batches()
    return [(tagged.fragment.path, tagged.record_batch) for tagged in batches]


def _scan_each(
    files: Store, paths: list[str], schema: pa.Schema, problems: list[str]
) -> list[tuple[str, pa.RecordBatch]]:
    def attempt(path: str) -> list[tuple[str, pa.RecordBatch]] | str:
        try:
            return _scan(files, [path], schema)
        except (pa.ArrowException, OSError) as error:
            name = path.removeprefix(files.path(""))
            return f"{name}: cannot be read ({type(error).__name__})"

    with ThreadPoolExecutor(_NUM_READERS) as pool:
        answers = list(pool.map(attempt, paths))
    problems += [answer for answer in answers if isinstance(answer, str)]
    return [pair for answer in answers if not isinstance(answer, str) for pair in answer]
