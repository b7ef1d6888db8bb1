"""One driver a store: a lease that frees itself when its process is gone.

`lease.json` says who drives. Whether the holder still lives is asked, in this order:

1. same host, same boot, same process-id namespace: the kernel knows (process id and start time);
2. another host, container or boot: the holder renews `counter` every 5 s; unchanged for 15 s is
   dead. A name is no proof of a machine: clones have one, and so have all that are `localhost`.

A lock file (flock) makes look-then-take one step on a local store. On an object store the lease is
advisory, since pyarrow cannot write "only if nothing is there": whoever took it looks again after a
second, and of two that took it at once the one whose object was replaced gives up. Only where a
write takes longer than that second do both begin; then the next heartbeat tells one of them
(`lost`), and a run's `request.json` keeps the attempts of the other from writing.
"""

from __future__ import annotations

import dataclasses
import fcntl
import getpass
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from orchestrator import clock, paths
from orchestrator.boot import boot_id
from orchestrator.errors import DamagedFileError, StoreError, StoreInUseError
from orchestrator.redaction import redact
from orchestrator.store import Store

__all__ = ["HEARTBEAT_S", "Holder", "Lease", "holder"]

HEARTBEAT_S = 5.0
_MISSED_BEATS = 3
_MISSING_BEATS = 2
"""Beats in a row that find no lease where ours was: one may fall between a delete and a rename."""
_LAST_BEAT_S = 10.0
"""How long the end waits for a beat on its way: on a hung mount it never comes back."""
_SETTLING = 0.2
"""Of a heartbeat: how long after taking a remote store's lease its taker looks again."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who drives a store. boot_id: the kernel's, with the process-id namespace appended where the
    process lives in one. process_started: seconds after boot. since: ISO 8601, UTC."""

    host: str
    boot_id: str
    pid: int
    process_started: float
    counter: int
    user: str
    command: str
    since: str

    def __str__(self) -> str:
        return f"{self.user}@{self.host}, process {self.pid}, since {self.since}: {self.command}"

    @property
    def id(self) -> str:
        """Names this holding of the store, in the names of files that are meant for it."""
        facts = (self.host, self.boot_id, self.pid, self.process_started, self.since)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def is_same(self, other: Holder | None) -> bool:
        """The same lease, whatever its counter."""
        return other is not None and dataclasses.replace(other, counter=self.counter) == self

    def is_gone(self) -> bool | None:
        """True or False where this machine can tell, None for another host, container or boot."""
        if self.host != socket.gethostname():
            return None
        if self.boot_id != boot_id():
            return None
        started = _process_started(self.pid)
        return started is None or abs(started - self.process_started) > 0.5


def holder(store: Store) -> Holder | None:
    """Who drives the store now; None when nobody does. Never waits: a holder on another host that
    stopped its heartbeat is still named."""
    found = _read(store)
    return None if found is None or found.is_gone() else found


class Lease:
    """`with Lease(store, "targetsweep run demo.yaml"): ...`, or StoreInUseError.

    lost: set when somebody else's lease appears in the store, or ours is gone, which nobody but its
    holder deletes: its folder was unmounted, say. The driver should then stop.
    """

    def __init__(self, store: Store, command: str, *, heartbeat_s: float = HEARTBEAT_S) -> None:
        self.lost = threading.Event()
        self._store = store
        self._heartbeat_s = heartbeat_s
        self._released = threading.Event()
        self._thread: threading.Thread | None = None
        self._missing = 0
        self._mine = Holder(
            host=socket.gethostname(),
            boot_id=boot_id(),
            pid=os.getpid(),
            process_started=_process_started(os.getpid()) or 0.0,
            counter=0,
            user=_user(),
            command=redact(command),
            since=clock.now_utc().isoformat(timespec="milliseconds"),
        )

    def __enter__(self) -> Self:
        self._take(self._watch())
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return self

    @property
    def id(self) -> str:
        """`Holder.id` of this holding, whoever's lease lies in the store."""
        return self._mine.id

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._released.set()
        if self._thread is not None:
            self._thread.join(_LAST_BEAT_S)
            if self._thread.is_alive():  # it may have the lock; the lease ends with this process
                return
        # A store that became unreadable must not hide the error that brought us here.
        try:
            if self._found() is not None:
                with _exclusive(self._store):
                    if not self._is_anothers():
                        self._store.delete(paths.lease())
        except StoreError:
            if error is None:
                raise

    def _watch(self) -> Holder | None:
        """The lease of a holder that this machine cannot see and that renewed nothing for three
        heartbeats; None when there is no such lease. Waits only for a holder it cannot see."""
        found = _read(self._store)
        if found is None or found.is_gone() is not None:
            return None
        for _ in range(_MISSED_BEATS):
            self._released.wait(self._heartbeat_s)
            if _read(self._store) != found:
                return None
        return found

    def _take(self, silent: Holder | None) -> None:
        with _exclusive(self._store):
            found = _read(self._store)
            if found is not None and found != silent and not found.is_gone():
                raise self._refusal(found)
            self._store.write_json(paths.lease(), asdict(self._mine))
        if not self._store.is_local:
            self._released.wait(_SETTLING * self._heartbeat_s)
            found = _read(self._store)
            if found is not None and not self._mine.is_same(found):
                raise self._refusal(found)

    def _refusal(self, found: Holder) -> StoreInUseError:
        return StoreInUseError(
            f"{self._store.uri} is driven by {found}",
            "wait until it ends or stop it there (Ctrl-C), then give the command again",
        )

    def _beat(self) -> None:
        while not self._released.wait(self._heartbeat_s):
            try:
                self._renew()
            except StoreError:
                continue  # a full disk or a network gap: the next beat may get through
            if self.lost.is_set():
                return

    def _renew(self) -> None:
        if self._found() is None:  # the lock would make its folder again
            self._missing += 1
            if self._missing == _MISSING_BEATS:
                self.lost.set()
            return
        self._missing = 0
        with _exclusive(self._store):
            if self._is_anothers():
                self.lost.set()
                return
            counter = self._mine.counter + 1
            self._mine = dataclasses.replace(self._mine, counter=counter)
            self._store.write_json(paths.lease(), asdict(self._mine))

    def _is_anothers(self) -> bool:
        """Whether somebody took over."""
        found = self._found()
        return found is not None and not self._mine.is_same(found)

    def _found(self) -> Holder | None:
        """Ours where nobody can read what lies there: nobody can have taken over then."""
        try:
            return _read(self._store)
        except _NoLeaseError:
            return self._mine


class _NoLeaseError(StoreError):
    """What lies there is damaged, or another version's."""


def _read(store: Store) -> Holder | None:
    try:
        content = store.read_json(paths.lease())
        return None if content is None else Holder(**content)
    except (DamagedFileError, TypeError) as error:
        reason = error.reason if isinstance(error, DamagedFileError) else "another version's?"
        raise _NoLeaseError(
            f"{paths.lease()} of {store.uri} is not a lease ({reason})",
            "make sure that no driver runs, then delete the file",
        ) from error


@contextmanager
def _exclusive(store: Store) -> Iterator[None]:
    """Look-then-write as one step, for all processes that see this folder."""
    if not store.is_local:
        yield
        return
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        lock = (store.root / ".lease.lock").open("ab")
    except OSError as error:
        raise StoreError(
            f"cannot write to {store.uri}: {error.strerror}",
            "change the permissions or choose another store",
        ) from error
    with lock:
        # Network file systems without locks make the lease advisory, as on object stores.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _process_started(pid: int) -> float | None:
    """Seconds after boot at which process `pid` began; None when there is none, or only a zombie.

    Read from /proc where there is one: psutil adds the boot's wall-clock time, which moves when the
    clock is set, and a living holder would look like another process that reuses its number."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _psutil_started(pid)
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    state, ticks = fields[0], int(fields[19])
    return None if state in "ZX" else ticks / os.sysconf("SC_CLK_TCK")


def _psutil_started(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(process.create_time() - psutil.boot_time())
    except psutil.Error:
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
