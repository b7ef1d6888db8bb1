"""Ctrl-C and SIGTERM at the driver, before the first trial and while trials run, and the flag of
`targetsweep stop`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.conductor import Conductor
from orchestrator.progress import Progress

__all__ = ["beginning", "heed_flag", "stopping"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_Handler = Callable[[int, FrameType | None], None]


@contextmanager
def _handled(handler: _Handler) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextmanager
def beginning() -> Iterator[Callable[[], None]]:
    """While Ray starts, a signal is a KeyboardInterrupt. It is remembered as well, because it may
    fall where a library swallows it; what is yielded raises it again then."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    def check() -> None:
        if received:
            raise KeyboardInterrupt

    with _handled(handle):
        yield check


@contextmanager
def stopping(conductor: Conductor, progress: Progress) -> Iterator[list[int]]:
    """First signal: running trials checkpoint and end. Second: stop now. Yields those received."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        progress.warned("stopping; running trials save a checkpoint (again to stop at once)")
        conductor.stop()

    try:
        with _handled(handle):
            yield received
    except KeyboardInterrupt:
        pass


def heed_flag(conductor: Conductor, progress: Progress, interrupted: list[int]) -> None:
    """`targetsweep stop`, from this machine or another one: as the first Ctrl-C. The flag of a
    driver that stops for reasons of its own (the time, the store) is its own."""
    if not interrupted and not conductor.has_asked:
        interrupted.append(signal.SIGINT)
        progress.warned("asked to stop; running trials save a checkpoint")
        conductor.stop()
