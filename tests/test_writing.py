"""One write at a time beside the training, in order, and nothing after one that failed."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from orchestrator.writing import Writer

LONG_S = 30.0  # nothing takes so long unless it is broken


class Gate:
    """A write that waits until it is let through."""

    def __init__(self, log: list[str], name: str) -> None:
        self.begun, self._open = threading.Event(), threading.Event()
        self._log, self._name = log, name

    def __call__(self) -> None:
        self.begun.set()
        assert self._open.wait(LONG_S)
        self._log.append(self._name)

    def open(self) -> None:
        self._open.set()


def in_thread(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def test_a_write_runs_beside_and_the_next_waits_for_it() -> None:
    log: list[str] = []
    first, second = Gate(log, "first"), Gate(log, "second")
    with Writer() as writer:
        assert writer.is_done()
        writer.begin(first)
        assert first.begun.wait(LONG_S)
        assert not writer.is_done()  # and whoever began it is here, not there
        following = in_thread(lambda: writer.begin(second))
        assert not second.begun.is_set()
        first.open()
        following.join(LONG_S)
        assert log == ["first"]
        second.open()
        writer.wait()
        assert writer.is_done()
    assert log == ["first", "second"]


def test_leaving_waits_for_what_is_under_way() -> None:
    log: list[str] = []
    gate = Gate(log, "last")
    with Writer() as writer:
        writer.begin(gate)
        assert gate.begun.wait(LONG_S)
        gate.open()
    assert log == ["last"]


def test_after_an_error_nothing_is_written() -> None:
    log: list[str] = []

    def full() -> None:
        raise OSError("disk full")

    with Writer() as writer:
        writer.begin(full)
        for ask in (writer.wait, writer.is_done, lambda: writer.begin(lambda: log.append("more"))):
            with pytest.raises(OSError, match="disk full"):
                ask()
    assert log == []


def test_an_error_of_the_run_itself_is_not_hidden_by_one_of_the_writer() -> None:
    def full() -> None:
        raise OSError("disk full")

    def run() -> None:
        with Writer() as writer:
            writer.begin(full)
            raise KeyError("lr")

    with pytest.raises(KeyError, match="lr"):
        run()
