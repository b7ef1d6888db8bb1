"""The only thread that talks to MLflow while trials run.

`notify` says that a run changed, costs a lock and never waits. Notifications of one run that is not
yet written become one, because a projection reads the store and so always writes the latest state.
When the server does not answer, the queue keeps (at most one entry a run) and the gap between
attempts grows to 30 s; training never hears of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from orchestrator.errors import TargetsweepError

__all__ = ["Projects", "TrackingWriter"]

_FIRST_GAP_S = 1.0
_LAST_GAP_S = 30.0

_Item = tuple[str, str]


class Projects(Protocol):
    """What the writer needs of a Tracker."""

    def project(self, sweep: str, unit: str) -> None: ...


class TrackingWriter:
    """warn: gets one sentence at the start of each outage, from the writer's thread."""

    def __init__(
        self,
        tracker: Projects,
        warn: Callable[[str], None],
        *,
        first_gap_s: float = _FIRST_GAP_S,
    ) -> None:
        self._tracker = tracker
        self._warn = warn
        self._first_gap_s = first_gap_s
        self._changed = threading.Condition()
        self._pending: dict[_Item, None] = {}  # a set that remembers the order
        self._busy = False
        self._closing = False
        self._abandoned = False
        self._failing = False
        # A daemon: a server that never answers must not keep the driver's process alive.
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def notify(self, sweep: str, unit: str) -> None:
        """`unit` of `sweep` changed in the store."""
        with self._changed:
            self._pending[sweep, unit] = None
            self._changed.notify_all()

    @property
    def behind(self) -> int:
        """Runs of which MLflow does not have the latest state."""
        with self._changed:
            return len(self._pending) + self._busy

    @property
    def is_writing(self) -> bool:
        """A projection is under way. After `close` it is the last one, but nobody knows when it
        ends: until then nobody else may write to MLflow."""
        with self._changed:
            return self._busy

    @property
    def state(self) -> str:
        """Empty when MLflow has everything, else a sentence for the end of the screen."""
        count = self.behind
        if not count:
            return ""
        runs = "1 run" if count == 1 else f"{count} runs"
        return f"MLflow is behind by {runs}; nothing is lost: run `targetsweep sync`"

    def close(self, timeout: float) -> bool:
        """Writes what is left, for at most `timeout` seconds and until the first failure; begins no
        projection afterwards. True when MLflow has everything. May be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        with self._changed:
            self._abandoned = True
        return self.behind == 0

    def _work(self) -> None:
        gap_s = self._first_gap_s
        while (item := self._next()) is not None:
            if self._attempt(item):
                gap_s = self._first_gap_s
            elif self._pause(gap_s):
                gap_s = min(2 * gap_s, _LAST_GAP_S)
            else:
                return

    def _next(self) -> _Item | None:
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closing)
            if self._abandoned or not self._pending:
                return None
            item = next(iter(self._pending))
            del self._pending[item]
            self._busy = True
            return item

    def _attempt(self, item: _Item) -> bool:
        try:
            self._tracker.project(*item)
        except Exception as error:
            self._give_back(item, error)
            return False
        with self._changed:
            self._busy = False
        self._failing = False
        return True

    def _give_back(self, item: _Item, error: Exception) -> None:
        """To the end of the queue: one run that cannot be written holds up no other."""
        with self._changed:
            self._busy = False
            self._pending.setdefault(item)
        if not self._failing:
            self._failing = True
            problem = error if isinstance(error, TargetsweepError) else repr(error)
            self._warn(f"tracking is behind, training goes on: {problem}")

    def _pause(self, gap_s: float) -> bool:
        """Waits for the next attempt; False when the writer is closing instead."""
        with self._changed:
            return not self._changed.wait_for(lambda: self._closing, gap_s)
