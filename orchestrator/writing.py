"""Writes beside the training: one at a time, in order, in a thread of the run's own.

The next write waits for the one under way rather than takes its place: each is one that somebody
counts on (a snapshot frees students, a checkpoint's rows go to MLflow), every worker of a
distributed run reports each of them, and what is on its way holds a copy of the weights, of which
there is then never more than one beside the one that waits. At a checkpoint a minute nothing waits;
where they come faster than the store takes them, training goes at the store's pace.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

__all__ = ["Writer"]


class Writer:
    """For one thread, which begins the writes. What a write raises is raised by whatever is asked
    next, and again by all after it: nothing is written after it. Leaving the context waits for what
    is under way, without a word of how it ended: ask `wait` before."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writing")
        self._last: Future[None] | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True)

    def begin(self, write: Callable[[], None]) -> None:
        """Waits for the one before, and does not wait for this one."""
        self.wait()
        self._last = self._thread.submit(write)

    def wait(self) -> None:
        """Until nothing is under way."""
        if self._last is not None:
            self._last.result()

    def is_done(self) -> bool:
        """Whether nothing is under way; never waits."""
        if self._last is None or not self._last.done():
            return self._last is None
        self._last.result()
        return True
