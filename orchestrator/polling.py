"""The flags of a store, for what trains: to stop, or to leave a node."""

from __future__ import annotations

import threading
from collections.abc import Collection

from orchestrator import paths
from orchestrator.store import Store

__all__ = ["StopPoller"]

_POLL_S = {True: 0.3, False: 5.0}
"""Seconds between looks at the flags, by whether the store is local: on an object store each look
is a request."""


class StopPoller:
    """The flags of a store as something the loop may read every step: a thread looks, the loop
    reads a variable. driver: whose flag counts. nodes: the Ray nodes this run depends on; that one
    of them is about to leave stops it too. looks: False for a worker that follows another one's
    (`trainers.control`).

    draining: the node it was, None otherwise.
    """

    def __init__(
        self, store: Store, nodes: Collection[str] = (), driver: str = "", *, looks: bool = True
    ) -> None:
        self.draining: str | None = None
        self._store = store
        self._stop = _file(paths.stop_flag(driver))
        self._drains = {_file(paths.drain_flag(node)): node for node in nodes if node}
        self._flag = threading.Event()
        self._end = threading.Event()
        if looks:
            threading.Thread(target=self._poll, name="stop-flag", daemon=True).start()

    def _poll(self) -> None:
        while not self._end.is_set():
            try:
                there = self._store.list(paths.control_dir())
            except Exception:  # a store that cannot be read now: the run's own writes will say so
                there = []
            leaving = [self._drains[file] for file in there if file in self._drains]
            if self._stop in there:
                self._flag.set()
            elif leaving and not self._flag.is_set():
                self.draining = leaving[0]
                self._flag.set()
            self._end.wait(_POLL_S[self._store.is_local])

    def is_set(self) -> bool:
        return self._flag.is_set()

    def close(self) -> None:
        self._end.set()


def _file(rel: str) -> str:
    return rel.rpartition("/")[2]
