"""A store behind any pyarrow.fs file system (s3://, gs://, hdfs://, mock:// in tests).

A file is one `open_output_stream`, which object stores show when it is closed and not before. Reads
that want a path go through a cache folder of this node (`TARGETSWEEP_CACHE`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from pyarrow import ArrowException, fs

from orchestrator.errors import StoreError
from orchestrator.store_local import replace_file

__all__ = ["RemoteBackend"]

_CHUNK_BYTES = 8 << 20


class RemoteBackend:
    def __init__(self, uri: str, filesystem: Any = None) -> None:
        self.uri = uri.rstrip("/")
        self._fs, base = (filesystem, uri) if filesystem is not None else _open(uri)
        self._base = base.strip("/")
        folder = hashlib.sha256(self.uri.encode()).hexdigest()[:16]
        self._cache = _cache_root() / folder

    def read(self, rel: str) -> bytes:
        with self._fs.open_input_file(self._at(rel)) as stream:
            return bytes(stream.read())

    def write(self, rel: str, data: bytes) -> None:
        with self._output(rel) as stream:
            stream.write(data)

    def upload(self, source: Path, rel: str) -> None:
        with source.open("rb") as original, self._output(rel) as stream:
            shutil.copyfileobj(original, stream, _CHUNK_BYTES)

    def local(self, rel: str) -> Path:
        info = self._info(rel)
        if info.type == fs.FileType.NotFound:
            raise FileNotFoundError(2, "No such file or folder", rel)
        if info.type == fs.FileType.Directory:
            for inner in self._infos(rel, recursive=True):
                if inner.type == fs.FileType.File:
                    self._fetch(inner.path[len(self._base) :].strip("/"), inner)
        else:
            self._fetch(rel, info)
        return self._cache / rel

    def exists(self, rel: str) -> bool:
        return bool(self._info(rel).type != fs.FileType.NotFound)

    def stamps(self, rel: str) -> dict[str, tuple[int, int]]:
        return {info.base_name: (info.size or 0, _mtime_ns(info)) for info in self._infos(rel)}

    def modified(self, rel: str) -> float | None:
        info = self._info(rel)
        return None if info.type == fs.FileType.NotFound else _mtime_ns(info) / 1e9

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
        """Nothing: an object whose upload did not end does not exist."""
        return []

    def _at(self, rel: str) -> str:
        return "/".join(part for part in (self._base, rel) if part)

    def _info(self, rel: str) -> Any:
        return self._fs.get_file_info(self._at(rel))

    def _infos(self, rel: str, *, recursive: bool = False) -> list[Any]:
        selector = fs.FileSelector(self._at(rel), allow_not_found=True, recursive=recursive)
        return list(self._fs.get_file_info(selector))

    @contextmanager
    def _output(self, rel: str) -> Iterator[Any]:
        """One PUT. Only file systems with real folders (HDFS, mock) ask for the folder first;
        making it always would cost object stores a request and a marker object a folder.

        pyarrow's streams cannot abort: even their destructor completes the object. So a failed
        write ends with the object removed, which a reader takes for a run still to be done."""
        path = self._at(rel)
        try:
            stream = self._fs.open_output_stream(path)
        except FileNotFoundError:
            self._fs.create_dir(path.rpartition("/")[0], recursive=True)
            stream = self._fs.open_output_stream(path)
        try:
            yield stream
            stream.close()
        except BaseException:
            with suppress(OSError):
                stream.close()
            with suppress(OSError):
                self._fs.delete_file(path)
            raise

    def _fetch(self, rel: str, info: Any) -> None:
        """Downloads unless the cached copy has the remote size and time. The copy carries the
        remote time, so one file says which version it is; a lock lets processes of a node share
        one download; a replaced copy stays valid for those who have mapped it."""
        target = self._cache / rel
        if _is_current(target, info):
            return
        with _locked(target.with_name(f".{target.name}.lock")):
            if _is_current(target, info):
                return
            replace_file(target, lambda stream: self._download(rel, info, stream))

    def _download(self, rel: str, info: Any, stream: BinaryIO) -> None:
        with self._fs.open_input_stream(self._at(rel)) as source:
            shutil.copyfileobj(source, stream, _CHUNK_BYTES)
        stream.flush()
        os.utime(stream.fileno(), ns=(_mtime_ns(info), _mtime_ns(info)))


def _open(uri: str) -> tuple[Any, str]:
    try:
        filesystem, base = fs.FileSystem.from_uri(uri)
    except (ArrowException, OSError, ValueError) as error:
        raise StoreError(
            f"cannot open the store {uri}: {error}",
            "use a local path or a URI pyarrow knows (s3://, gs://, hdfs://), with credentials set",
        ) from error
    return filesystem, base


def _cache_root() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "targetsweep"
    return Path(os.environ.get("TARGETSWEEP_CACHE") or default).expanduser()


def _mtime_ns(info: Any) -> int:
    return int(info.mtime_ns or 0)


def _is_current(target: Path, info: Any) -> bool:
    try:
        status = target.stat()
    except FileNotFoundError:
        return False
    return status.st_size == info.size and status.st_mtime_ns == _mtime_ns(info)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
