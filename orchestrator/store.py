"""The store: the folder or bucket that holds everything a sweep makes.

`Store` gives names a meaning (JSON, errors a person can act on); a backend moves bytes:
`store_local` for folders, `store_remote` for every other pyarrow.fs URI. What both promise is the
behaviour suite of tests/test_store.py: a file is there in full or not at all, also after a full
disk or a kill -9, and a name cannot leave the store.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from dashboards.filesystem import child_uri
from dashboards.seals import SealError, seal_json, unseal_json
from orchestrator import clock, paths
from orchestrator.errors import DamagedFileError, StoreError, UserError
from orchestrator.redaction import redact_all
from orchestrator.store_local import LocalBackend
from orchestrator.store_remote import RemoteBackend

__all__ = ["Backend", "Stamp", "Store", "refuse_absent", "stale_error", "store_errors"]


class Stamp(NamedTuple):
    """Tells two versions of a file apart without reading it."""

    num_bytes: int
    modified_ns: int


class Backend(Protocol):
    """Moves bytes. `rel` is checked by `Store`; failures are OSError, a missing file
    FileNotFoundError."""

    uri: str

    def read(self, rel: str) -> bytes: ...
    def write(self, rel: str, data: bytes) -> None: ...
    def write_stream(self, rel: str, fill: Callable[[BinaryIO], object]) -> None: ...
    def upload(self, source: Path, rel: str) -> None: ...
    def local(self, rel: str) -> Path: ...
    def exists(self, rel: str) -> bool: ...
    def stamps(self, rel: str) -> dict[str, tuple[int, int]]: ...
    def modified(self, rel: str) -> float | None: ...
    def move(self, rel: str, target: str) -> None: ...
    def delete(self, rel: str) -> None: ...
    def delete_tree(self, rel: str) -> None: ...
    def sweep_temporaries(self) -> list[str]: ...


class Store:
    """A store by path or URI. Opening touches nothing: folders appear with the first file in them.

    filesystem: a pyarrow.fs.FileSystem to use instead of the one `uri` names; `uri` is then the
    path inside it (tests, object stores that need arguments a URI cannot carry).
    """

    def __init__(self, uri: str | Path, *, filesystem: Any = None) -> None:
        path = None if filesystem is not None else _local_path(str(uri))
        self._backend: Backend
        if path is not None:
            self._backend = LocalBackend(path)
        else:
            self._backend = RemoteBackend(str(uri), filesystem)
        self._path = path

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    @property
    def uri(self) -> str:
        """A local store's absolute path, a remote one's URI; `Store(uri)` opens it again."""
        return self._backend.uri

    @property
    def is_local(self) -> bool:
        return self._path is not None

    @property
    def root(self) -> Path:
        """The folder of a local store; StoreError for a remote one, which has none."""
        if self._path is None:
            raise StoreError(
                f"{self.uri} is not a folder of this machine", "use a local path as the store"
            )
        return self._path

    def read_bytes(self, rel: str) -> bytes:
        """The whole file; StoreError when it is missing."""
        with self._errors("read", rel):
            return self._backend.read(_checked(rel))

    def read_json(self, rel: str) -> dict[str, Any] | None:
        """The object in a JSON file, None when there is no such file. Raises DamagedFileError when
        it is not the object that was once written: its seal is gone or does not fit."""
        with self._errors("read", rel):
            try:
                data = self._backend.read(_checked(rel))
            except FileNotFoundError:
                return None
        return _unsealed(data, rel)

    def write_bytes(self, rel: str, data: bytes) -> None:
        """The file appears in full or stays as it was. Costs two fsyncs, about 1 to 20 ms."""
        with self._errors("write", rel):
            self._backend.write(_checked(rel), data)

    def write_stream(self, rel: str, fill: Callable[[BinaryIO], object]) -> None:
        """The file appears with all that `fill` writes into a stream that can seek, or stays as it
        was. A local store holds nothing of it in memory, a remote one all."""
        with self._errors("write", rel):
            self._backend.write_stream(_checked(rel), fill)

    def write_json(self, rel: str, obj: dict[str, Any], *, in_order: bool = False) -> None:
        """Sealed. Equal objects give equal bytes: sorted keys (in_order: as they come, for a plan,
        whose order means something), two spaces, one newline at the end."""
        text = json.dumps(
            seal_json(redact_all(obj)),
            sort_keys=not in_order,
            indent=1 if in_order else 2,
            ensure_ascii=False,
            allow_nan=False,
        )
        self.write_bytes(rel, (text + "\n").encode())

    def upload(self, local: Path, rel: str) -> None:
        """Copies a finished local file into the store; does nothing when it is that file."""
        with self._errors("write", rel):
            self._backend.upload(local, _checked(rel))

    def local(self, rel: str) -> Path:
        """A path to map or open, for a file or a folder: itself in a local store (whether it exists
        or not), a copy in this node's cache of a remote one, fetched once per version. Cached
        copies are read-only by agreement; remote files that do not exist are a StoreError."""
        with self._errors("read", rel):
            return self._backend.local(_checked(rel))

    def exists(self, rel: str) -> bool:
        with self._errors("read", rel):
            return self._backend.exists(_checked(rel))

    def list(self, rel: str = "") -> list[str]:
        """Sorted names of files and folders in `rel`, no hidden ones; [] when it is missing."""
        return sorted(self.stamps(rel))

    def stamps(self, rel: str = "") -> dict[str, Stamp]:
        """`list` with the size and time of every file, for the price of one request."""
        with self._errors("read", rel):
            found = self._backend.stamps(_checked(rel) if rel else "")
        return {name: Stamp(*found[name]) for name in sorted(found) if not name.startswith(".")}

    def modified(self, rel: str) -> float | None:
        """Seconds since the epoch at which the file was last written, None when it is missing."""
        with self._errors("read", rel):
            return self._backend.modified(_checked(rel))

    def delete(self, rel: str) -> None:
        """Removes a file; a missing one is fine."""
        with self._errors("delete", rel):
            self._backend.delete(_checked(rel))

    def move(self, rel: str, target: str) -> None:
        """Renames a file over whatever has the other name."""
        with self._errors("write", target):
            self._backend.move(_checked(rel), _checked(target))

    def set_aside(self, rel: str, reason: str) -> str:
        """Moves a damaged file to where nothing reads it, and says where that is; one that is gone
        already (another process was faster) is fine. reason: what is wrong with it."""
        kept = self._free_name(rel)
        with self._errors(f"set aside ({reason})", rel):
            self._backend.move(_checked(rel), kept)
        return kept

    def _free_name(self, rel: str) -> str:
        """In `damaged/`: the time, a number where that is taken, and the file's name."""
        time, number = f"{clock.now_utc():%Y%m%dT%H%M%SZ}", 1
        name = rel.replace("/", "~")
        kept = f"{paths.damaged_dir()}/{time}-{name}"
        while self.exists(kept):
            number += 1
            kept = f"{paths.damaged_dir()}/{time}.{number}-{name}"
        return kept

    def delete_tree(self, rel: str) -> None:
        """Removes a folder with everything in it; a missing one is fine."""
        with self._errors("delete", rel):
            self._backend.delete_tree(_checked(rel))

    def sweep_temporaries(self) -> Sequence[str]:
        """Removes what killed writers left half-written, and names it. For the lease's holder."""
        with self._errors("write", ""):
            return self._backend.sweep_temporaries()

    def _where(self, rel: str) -> str:
        return child_uri(self.uri, rel) if rel else self.uri

    def _errors(self, verb: str, rel: str) -> AbstractContextManager[None]:
        return store_errors(verb, self._where(rel))


@contextmanager
def store_errors(verb: str, what: str) -> Iterator[None]:
    """Makes an OSError of the block a StoreError that keeps its number and the verb."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raised = StoreError(f"cannot {verb} {what}: {reason}", _remedy(error, verb))
        raised.errno, raised.verb = error.errno or errno.EIO, verb
        raise raised from error


def stale_error(what: str) -> StoreError:
    """Of a file that another node sees and this one does not, or the reverse: worth another try, in
    which its view of the store is a later one."""
    error = StoreError(
        f"this node's view of {what} is an old one",
        "it is tried again; on NFS mount the store with acdirmin=1,acdirmax=3",
    )
    error.errno, error.verb = errno.ESTALE, "read"
    return error


def _unsealed(data: bytes, rel: str) -> dict[str, Any]:
    try:
        obj = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(rel, f"it is not JSON: {error}") from error
    if not isinstance(obj, dict):
        raise DamagedFileError(rel, f"it holds {type(obj).__name__}, not a JSON object")
    try:
        return unseal_json(obj)
    except SealError as error:
        raise DamagedFileError(rel, str(error)) from error


def _local_path(uri: str) -> Path | None:
    """The folder `uri` means, None when it is remote. `file://` URIs must be absolute."""
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return Path(uri).expanduser().absolute()
    if scheme != "file":
        return None
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise StoreError(f"{uri} is not an absolute file URI", "write file:///absolute/path")
    return Path(unquote(parts.path))


def _checked(rel: str) -> str:
    """`rel` when it stays inside the store."""
    parts = rel.split("/")
    if not rel or "\\" in rel or "\0" in rel or any(part in ("", ".", "..") for part in parts):
        raise StoreError(
            f"{rel!r} is not a path inside the store", "use a relative path without '..'"
        )
    return rel


def _remedy(error: OSError, verb: str) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            "the disk or quota is full: free space or choose another store; no file is half-written"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"this user may not {verb} there: change the permissions or choose another store"
    if error.errno == errno.ENOENT:
        return "it does not exist: check the store's path, or run the sweep that makes it"
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return "a file is where a folder should be (or the reverse): choose another store"
    return "check that the store is mounted, reachable and its credentials are valid"


def refuse_absent(store: Store) -> None:
    """For commands that say something of a store where nothing is wrong with an empty one. Raises
    UserError where a local one's folder is not there: somebody mistyped it, or is elsewhere."""
    if store.is_local and not store.root.is_dir():
        raise UserError(f"there is no store at {store.uri}", "give --store")
