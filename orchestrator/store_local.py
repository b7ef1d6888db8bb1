"""A store in a folder: write a unique temporary file beside the target, fsync, rename, fsync."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import psutil

from orchestrator import clock
from orchestrator.boot import boot_id

__all__ = ["LocalBackend", "is_abandoned", "replace_file", "temporary_name"]

_TEMPORARY = re.compile(r"\.ts-(?P<host>[^~]*)~(?P<pid>\d+)~[0-9a-f]{8}\.tmp(-journal)?")
"""The journal is SQLite's, of a database that somebody was making."""

_OLD_S = 24 * 3600.0
"""Age at which a temporary file is dead whoever wrote it: no single file takes a day to write."""


class LocalBackend:
    def __init__(self, root: Path) -> None:
        self.uri = str(root)
        self._root = root

    def read(self, rel: str) -> bytes:
        return (self._root / rel).read_bytes()

    def write(self, rel: str, data: bytes) -> None:
        def fill(stream: BinaryIO) -> None:
            stream.write(data)

        self.write_stream(rel, fill)

    def write_stream(self, rel: str, fill: Callable[[BinaryIO], object]) -> None:
        replace_file(self._root / rel, fill)

    def upload(self, source: Path, rel: str) -> None:
        target = self._root / rel
        if target.exists() and target.samefile(source):
            return
        with source.open("rb") as original:
            replace_file(target, lambda stream: shutil.copyfileobj(original, stream, 1 << 20))

    def local(self, rel: str) -> Path:
        return self._root / rel

    def exists(self, rel: str) -> bool:
        return (self._root / rel).exists()

    def stamps(self, rel: str) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        try:
            entries = list(os.scandir(self._root / rel))
        except FileNotFoundError:
            return found
        for entry in entries:
            try:
                status = entry.stat()
            except FileNotFoundError:  # deleted since the listing
                continue
            found[entry.name] = (0, 0) if entry.is_dir() else (status.st_size, status.st_mtime_ns)
        return found

    def modified(self, rel: str) -> float | None:
        try:
            return (self._root / rel).stat().st_mtime
        except FileNotFoundError:
            return None

    def move(self, rel: str, target: str) -> None:
        """A source that is gone is fine. To another disk, where a folder is a link there: a copy,
        then a delete."""
        source, kept = self._root / rel, self._root / target
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(source, kept)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._copy_away(source, kept)
        _fsync_folder(kept.parent)
        _fsync_folder(source.parent)

    def _copy_away(self, source: Path, kept: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, kept)
            shutil.rmtree(source)
            return
        with source.open("rb") as original:
            replace_file(kept, lambda stream: shutil.copyfileobj(original, stream, 1 << 20))
        source.unlink()

    def delete(self, rel: str) -> None:
        (self._root / rel).unlink(missing_ok=True)

    def delete_tree(self, rel: str) -> None:
        """Renames first, so that nobody sees half a folder; a kill leaves a temporary to sweep."""
        target = self._root / rel
        doomed = target.with_name(temporary_name())
        try:
            os.replace(target, doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed)

    def sweep_temporaries(self) -> list[str]:
        removed = []
        for folder, folders, files in os.walk(self._root):
            for name in [name for name in [*folders, *files] if _is_dead(Path(folder, name))]:
                path = Path(folder, name)
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                removed.append(path.relative_to(self._root).as_posix())
            # MLflow's artifacts are many and none of ours.
            folders[:] = [name for name in folders if name != "mlartifacts" and name[0] != "."]
        return sorted(removed)


def temporary_name() -> str:
    """Unique among all writers, and says who may still be writing it."""
    return f".ts-{_here()}~{os.getpid()}~{secrets.token_hex(4)}.tmp"


def _here() -> str:
    """Where the process ids of this process' names hold: a host's name alone is no proof of it."""
    return f"{socket.gethostname()}-{hashlib.sha256(boot_id().encode()).hexdigest()[:8]}"


def replace_file(target: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Makes `target` appear with what `fill` writes, or leaves everything as it was."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(temporary_name())
    try:
        with temporary.open("xb") as stream:
            fill(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_folder(target.parent)


def _fsync_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_dead(path: Path) -> bool:
    if _TEMPORARY.fullmatch(path.name) is None:
        return False
    try:
        return is_abandoned(path.name, path.lstat().st_mtime)
    except FileNotFoundError:
        return False


def is_abandoned(name: str, written_s: float) -> bool:
    """Whether a file's name is that of a temporary whose writer is gone; of another host, container
    or boot nobody can tell, so only an old one. written_s: seconds since the epoch."""
    match = _TEMPORARY.fullmatch(name)
    if match is None:
        return False
    if match["host"] == _here() and not psutil.pid_exists(int(match["pid"])):
        return True
    return clock.now_s() - written_s > _OLD_S
