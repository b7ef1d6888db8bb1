"""What a driver tells those who do not sit at its terminal: `control/progress.json` for `status`,
wherever the store can be seen, and a line now and then where the output is a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from orchestrator import clock, paths
from orchestrator.errors import StoreError
from orchestrator.glance import Glance
from orchestrator.progress import Progress
from orchestrator.store import Store
from orchestrator.tuning import repeating

__all__ = ["Bulletin", "posting", "read_bulletin"]

_LOOK_S = 1.0
_POST_S = 15.0
_SAY_S = 300.0
"""A log of a night has some hundred of these lines."""


class Bulletin:
    """driver: the id of the lease's holder (`lease.Holder.id`). now: seconds, of a clock that never
    jumps."""

    def __init__(
        self,
        progress: Progress,
        store: Store,
        driver: str,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress = progress
        self._store = store
        self._driver = driver
        self._now = now
        self._posted: float | None = None
        self._said = now()

    def look(self) -> None:
        """Posts and says what is due. A store that cannot be written now may be later."""
        now = self._now()
        is_news = self._posted is None or now - self._posted >= _POST_S
        is_line = now - self._said >= _SAY_S
        if not (is_news or is_line):
            return
        glance = self._progress.glance()
        if glance is None:
            return
        if is_line:
            self._said = now
            self._progress.told(glance)
        if is_news:
            self._posted = now
            with suppress(StoreError):
                self._store.write_json(paths.progress(), self._document(glance))

    def withdraw(self) -> None:
        with suppress(StoreError):
            self._store.delete(paths.progress())

    def _document(self, glance: Glance) -> dict[str, Any]:
        at = clock.now_utc().isoformat(timespec="seconds")
        return {"driver": self._driver, "at": at, "glance": glance.as_json()}


@contextmanager
def posting(progress: Progress, store: Store, driver: str) -> Iterator[None]:
    """Keeps the bulletin while the block runs, from a thread of its own."""
    bulletin = Bulletin(progress, store, driver)
    try:
        with repeating(bulletin.look, progress.warned, _LOOK_S):
            yield
    finally:
        bulletin.withdraw()


def read_bulletin(store: Store, driver: str) -> Glance | None:
    """What this driver said last; None where it said nothing yet, and of another's words."""
    try:
        found = store.read_json(paths.progress())
        if found is None or found.get("driver") != driver:
            return None
        return Glance.from_json(found["glance"])
    except (StoreError, KeyError, TypeError):  # damaged, or another version's
        return None
