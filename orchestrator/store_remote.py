"""A store behind any pyarrow.fs file system (s3://, gs://, hdfs://, mock:// in tests).

A file is one `open_output_stream`, which object stores show when it is closed and not before. File
systems with real folders (hdfs://, mock://) show it while it grows: there it grows under another
name. Reads that want a path go through a cache folder of this node (`node_cache`).

What object stores do not promise: an object may be replaced between the requests of one read, so a
read asks for the version before and after; and nobody can write "only if nothing is there", so the
lease is advisory there (`lease`).
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from pyarrow import ArrowException, fs

from dashboards.filesystem import open_filesystem
from orchestrator.errors import StoreError
from orchestrator.node_cache import NodeCache
from orchestrator.redaction import has_secret, redacted
from orchestrator.store_local import is_abandoned, temporary_name

__all__ = ["RemoteBackend"]

_CHUNK_BYTES = 8 << 20
_WHOLE_BYTES = 512 << 20
"""Files up to this size are read before their upload begins: a disk error then uploads nothing."""

_COMPARED_BYTES = 1 << 30
"""Folders up to this size are compared with their SHA-256 once a process. Larger ones are shards,
of which every picture is verified when it is decoded."""

_OBJECT_STORES = ("s3", "gcs", "abfs")
_NUM_READERS = 8
_READS = 5  # of an object that others keep replacing


class RemoteBackend:
    def __init__(self, uri: str, filesystem: Any = None) -> None:
        self.uri = uri.rstrip("/")
        self._fs, base = (filesystem, uri) if filesystem is not None else _open(uri)
        self._base = base.strip("/")
        self._cache = NodeCache(self.uri)

    def read(self, rel: str) -> bytes:
        for _ in range(_READS):
            with self._fs.open_input_file(self._at(rel)) as stream:
                before, data = _version(stream), bytes(stream.read())
            if before is None or self._version(rel) == before:
                return data
        raise OSError(f"{rel} is replaced faster than it can be read")

    def write(self, rel: str, data: bytes | memoryview) -> None:
        with self._output(rel) as stream:
            stream.write(data)

    def write_stream(self, rel: str, fill: Callable[[BinaryIO], object]) -> None:
        """In memory first: pyarrow's streams cannot seek, and cannot abort where `fill` fails."""
        buffer = io.BytesIO()
        fill(buffer)
        self.write(rel, buffer.getbuffer())

    def upload(self, source: Path, rel: str) -> None:
        with source.open("rb") as original:
            if source.stat().st_size <= _WHOLE_BYTES:
                self.write(rel, original.read())
                return
            with self._output(rel) as stream:
                self._copy(original, stream, rel)

    def local(self, rel: str) -> Path:
        info = self._info(rel)
        if info.type == fs.FileType.NotFound:
            raise FileNotFoundError(2, "No such file or folder", rel)
        if info.type == fs.FileType.File:
            return self._fetch(rel, info, compare=True)
        inner = [
            one
            for one in self._infos(rel, recursive=True)
            if one.type == fs.FileType.File and not one.base_name.startswith(".")
        ]
        compare = sum(one.size or 0 for one in inner) <= _COMPARED_BYTES
        names = [one.path[len(self._base) :].strip("/") for one in inner]
        with ThreadPoolExecutor(_NUM_READERS) as pool:
            list(pool.map(lambda name, one: self._fetch(name, one, compare=compare), names, inner))
        self._cache.keep_only(rel, {name[len(rel) + 1 :] for name in names})
        return self._cache.path(rel)

    def exists(self, rel: str) -> bool:
        return bool(self._info(rel).type != fs.FileType.NotFound)

    def stamps(self, rel: str) -> dict[str, tuple[int, int]]:
        return {info.base_name: (info.size or 0, _mtime_ns(info)) for info in self._infos(rel)}

    def modified(self, rel: str) -> float | None:
        info = self._info(rel)
        return None if info.type == fs.FileType.NotFound else _mtime_ns(info) / 1e9

    def move(self, rel: str, target: str) -> None:
        """A copy, then a delete: a kill between leaves both. A source that is gone is fine. A
        folder's files go one by one."""
        found = self._info(rel)
        if found.type == fs.FileType.NotFound:
            return
        if found.type == fs.FileType.Directory:
            for one in self._infos(rel, recursive=True):
                if one.type == fs.FileType.File:
                    self._move_file(one.path, self._at(target) + one.path[len(self._at(rel)) :])
            self.delete_tree(rel)
            return
        self._move_file(self._at(rel), self._at(target))

    def _move_file(self, source: str, kept: str) -> None:
        try:
            self._fs.copy_file(source, kept)
        except FileNotFoundError:  # only real folders have to be there first
            self._fs.create_dir(kept.rpartition("/")[0], recursive=True)
            self._fs.copy_file(source, kept)
        self._fs.delete_file(source)

    def delete(self, rel: str) -> None:
        try:
            self._fs.delete_file(self._at(rel))
        except FileNotFoundError:
            return

    def delete_tree(self, rel: str) -> None:
        try:
            self._fs.delete_dir(self._at(rel))
        except FileNotFoundError:
            return

    def sweep_temporaries(self) -> list[str]:
        """Of an object store nothing: an object whose upload did not end does not exist."""
        if self._is_object_store:
            return []
        dead = [
            one.path
            for one in self._infos("", recursive=True)
            if one.type == fs.FileType.File and is_abandoned(one.base_name, _mtime_ns(one) / 1e9)
        ]
        for path in dead:
            with suppress(FileNotFoundError):
                self._fs.delete_file(path)
        return sorted(path[len(self._base) :].strip("/") for path in dead)

    @property
    def _is_object_store(self) -> bool:
        return self._fs.type_name in _OBJECT_STORES

    def _at(self, rel: str) -> str:
        return "/".join(part for part in (self._base, rel) if part)

    def _info(self, rel: str) -> Any:
        return self._fs.get_file_info(self._at(rel))

    def _infos(self, rel: str, *, recursive: bool = False) -> list[Any]:
        selector = fs.FileSelector(self._at(rel), allow_not_found=True, recursive=recursive)
        return list(self._fs.get_file_info(selector))

    def _version(self, rel: str) -> str | None:
        """Of the object that is there now; None where the file system knows no versions."""
        with self._fs.open_input_file(self._at(rel)) as stream:
            return _version(stream)

    @contextmanager
    def _output(self, rel: str) -> Iterator[Any]:
        """One PUT, or one upload of several parts, which the service joins at its end: while that
        fails, what was there stays. Only file systems with real folders ask for the folder first;
        making it always would cost object stores a request and a marker object."""
        path = self._at(rel)
        if self._is_object_store:
            with self._fs.open_output_stream(path) as stream:
                yield stream
            return
        temporary = _beside(path)
        if folder := path.rpartition("/")[0]:
            self._fs.create_dir(folder, recursive=True)
        try:
            with self._fs.open_output_stream(temporary) as stream:
                yield stream
            self._rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                self._fs.delete_file(temporary)
            raise

    def _rename(self, temporary: str, path: str) -> None:
        """HDFS renames over nothing that is there: what is there goes aside, and comes back where
        that helped nothing."""
        try:
            self._fs.move(temporary, path)
        except OSError:
            if self._fs.get_file_info(path).type == fs.FileType.NotFound:
                raise
            aside = _beside(path)
            self._fs.move(path, aside)
            try:
                self._fs.move(temporary, path)
            except OSError:
                self._fs.move(aside, path)
                raise
            with suppress(OSError):
                self._fs.delete_file(aside)

    def _copy(self, original: BinaryIO, stream: Any, rel: str) -> None:
        """pyarrow's streams cannot abort: even their destructor completes the object. So when the
        source cannot be read to its end, what was made of it is removed."""
        try:
            while chunk := _read_chunk(original):
                stream.write(chunk)
        except _SourceError as error:
            if self._is_object_store:
                with suppress(OSError):
                    stream.close()
                self.delete(rel)
            raise error.reason from None

    def _fetch(self, rel: str, info: Any, *, compare: bool) -> Path:
        """Where the file system knows no versions, size and time tell them apart."""
        stamp = f"{info.size} {_mtime_ns(info)}"

        def download(stream: BinaryIO) -> str:
            return self._download(rel, stamp, stream)

        version = self._version(rel) or stamp
        return self._cache.fetched(rel, version, download, compare=compare)

    def _download(self, rel: str, stamp: str, stream: BinaryIO) -> str:
        for _ in range(_READS):
            stream.seek(0)
            stream.truncate()
            with self._fs.open_input_file(self._at(rel)) as source:
                before, size = _version(source), source.size()
                shutil.copyfileobj(source, stream, _CHUNK_BYTES)
            if stream.tell() == size and (before is None or self._version(rel) == before):
                return before or stamp
        raise OSError(f"{rel} is replaced faster than it can be read")


def _beside(path: str) -> str:
    folder, slash, _ = path.rpartition("/")
    return f"{folder}{slash}{temporary_name()}"


class _SourceError(Exception):
    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _read_chunk(original: BinaryIO) -> bytes:
    try:
        return original.read(_CHUNK_BYTES)
    except OSError as error:
        raise _SourceError(error) from error


def _open(uri: str) -> tuple[Any, str]:
    if has_secret(uri):
        raise StoreError(
            f"the store {redacted(uri)} carries credentials, which plans, logs and process lists "
            "would show",
            "leave them out of the URI: give them by the environment (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY), ~/.aws/credentials or the machine's role",
        )
    try:
        return open_filesystem(uri)
    except (ArrowException, OSError, ValueError) as error:
        raise StoreError(
            f"cannot open the store {uri}: {error}",
            "use a local path or a URI pyarrow knows (s3://, gs://, hdfs://), with credentials set",
        ) from error


def _version(stream: Any) -> str | None:
    """An object's ETag."""
    tag = (stream.metadata() or {}).get(b"ETag") or (stream.metadata() or {}).get("ETag")
    return tag.decode() if isinstance(tag, bytes) else tag


def _mtime_ns(info: Any) -> int:
    return int(info.mtime_ns or 0)
