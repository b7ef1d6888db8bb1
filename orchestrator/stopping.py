"""Asking a driver to stop, from wherever its store can be seen.

A flag in `control/` names the holding of the lease that it is meant for. Trials look at the flag of
their own driver, the driver looks at its own, and so a flag that comes late, or is left behind,
stops nobody else. Its driver honours it whenever it looks: also one that was written before the
first trial, or between two rounds of driving.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from orchestrator import paths
from orchestrator.errors import StoreError
from orchestrator.store import Store

__all__ = ["ask_to_stop", "forget", "forget_others", "watching"]

_LOOK_S = {True: 0.5, False: 2.0}
"""Seconds between looks, by whether the store is local."""

_LAST_LOOK_S = 10.0
"""How long the end waits for a look on its way: on a hung mount it never comes back."""


def ask_to_stop(store: Store, driver: str) -> None:
    store.write_bytes(paths.stop_flag(driver), b"stop\n")


def forget_others(store: Store, driver: str) -> None:
    """Removes flags that were meant for earlier drivers. For the lease's holder."""
    own = paths.stop_flag(driver)
    stem = paths.stop_flag()
    for name in store.list(paths.control_dir()):
        rel = f"{paths.control_dir()}/{name}"
        if rel != own and (rel == stem or rel.startswith(f"{stem}-")):
            store.delete(rel)


def forget(store: Store, driver: str) -> None:
    """Removes this driver's own flag, once it has stopped."""
    with suppress(StoreError):  # one that is left behind stops nobody else
        store.delete(paths.stop_flag(driver))


@contextmanager
def watching(store: Store, driver: str, stop: Callable[[], None]) -> Iterator[None]:
    """Calls `stop` once, as soon as this driver is asked to: before the block, or from a thread."""
    ended = threading.Event()
    if _is_asked(store, driver):
        stop()
        ended.set()

    def look() -> None:
        while not ended.wait(_LOOK_S[store.is_local]):
            if _is_asked(store, driver):
                with suppress(StoreError):  # it is the store's turn to complain elsewhere
                    stop()
                return

    thread = threading.Thread(target=look, name="stop-flag", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_LAST_LOOK_S)


def _is_asked(store: Store, driver: str) -> bool:
    try:
        return store.exists(paths.stop_flag(driver))
    except StoreError:  # unreachable for now: who writes to it will say so
        return False
