"""This node's copies of a remote store's files, for readers that map or open a path.

Beside each copy lies `.<name>.copy.json`: which version of the object it is, and the SHA-256 of the
bytes that came. A copy that is not what was fetched is noticed, at latest by the next process that
asks for it, and fetched again. A lock file lets the processes of a node share one download.

Nothing is evicted: what is asked as a path is data sets, soft targets, reports and finished curves,
not checkpoints. `targetsweep store cache --clear` removes a store's copies while nothing runs here;
all of them lie in `TARGETSWEEP_CACHE` (default `~/.cache/targetsweep`), which may be deleted.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.store_local import replace_file
from trainers.cache import cache_folder

__all__ = ["NodeCache", "folder_name"]

_CHUNK_BYTES = 8 << 20
_NOTE = ".copy.json"

_checked: dict[Path, tuple[int, int, int]] = {}
"""Copies whose bytes this process has compared with their SHA-256: path -> inode, size, time."""


def folder_name(uri: str) -> str:
    """Of what a machine keeps of a store: 16 digits of its URI's SHA-256."""
    return hashlib.sha256(uri.encode()).hexdigest()[:16]


class NodeCache:
    """uri: the store's; another store's copies lie in another folder."""

    def __init__(self, uri: str) -> None:
        self._root = cache_folder() / folder_name(uri)

    def path(self, rel: str) -> Path:
        return self._root / rel

    def fetched(
        self, rel: str, version: str, download: Callable[[BinaryIO], str], *, compare: bool = True
    ) -> Path:
        """The copy of that version. download: writes the object and says which version it was.
        compare: read the copy once a process against its SHA-256 (about 1 GB/s); without it, size
        and time must do."""
        target = self.path(rel)
        if _is_current(target, version, compare=compare):
            return target
        with _locked(_beside(target, ".lock")):
            if not _is_current(target, version, compare=compare):
                _fetch(target, download)
        return target

    def usage(self) -> tuple[Path, int, int]:
        """(folder, copies, their bytes)."""
        copies = [path for path in self._root.rglob("*") if path.is_file()]
        shown = [path for path in copies if not path.name.startswith(".")]
        return self._root, len(shown), sum(path.stat().st_size for path in shown)

    def clear(self) -> None:
        """Removes all copies. For nobody at work: who has mapped one keeps it, who only knows its
        path finds nothing there."""
        shutil.rmtree(self._root, ignore_errors=True)

    def keep_only(self, rel: str, names: Collection[str]) -> None:
        """Removes copies below a folder whose objects are gone. names: what is left, by path."""
        folder = self.path(rel)
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            name = path.relative_to(folder).as_posix()
            if not path.name.startswith(".") and name not in names:
                _beside(path, _NOTE).unlink(missing_ok=True)
                path.unlink(missing_ok=True)


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}{suffix}")


def _fetch(target: Path, download: Callable[[BinaryIO], str]) -> None:
    """The copy, then its note: a kill between leaves a note that does not fit."""
    versions: list[str] = []
    replace_file(target, lambda stream: versions.append(download(stream)))
    stamp = _stamp(target)
    note = {"version": versions[-1], "stamp": stamp, "sha256": _digest(target)}
    replace_file(_beside(target, _NOTE), lambda stream: stream.write(json.dumps(note).encode()))
    _checked[target] = stamp


def _is_current(target: Path, version: str, *, compare: bool) -> bool:
    try:
        note: dict[str, Any] = json.loads(_beside(target, _NOTE).read_bytes())
        stamp = _stamp(target)
        if note["version"] != version or tuple(note["stamp"]) != stamp:
            return False
        if compare and _checked.get(target) != stamp:
            if _digest(target) != note["sha256"]:
                return False
            _checked[target] = stamp
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # no note, or a damaged one
        return False
    return True


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        # Without locks (a home on NFS or Lustre) two processes may fetch one file twice.
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
