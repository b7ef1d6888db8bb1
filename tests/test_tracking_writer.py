"""Training never waits for MLflow, and never hears of its troubles."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tracking_helpers import (
    STEPS,
    SWEEP,
    new_store,
    write_run,
)

from orchestrator.errors import UserError
from orchestrator.store import Store
from orchestrator.tracking import Tracker
from orchestrator.tracking_writer import TrackingWriter


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return new_store(tmp_path / "store")


class FakeServer:
    """A tracker with a small life: down, up, or hung."""

    def __init__(self) -> None:
        self.up = threading.Event()
        self.up.set()
        self.hang = threading.Event()
        self.done: list[tuple[str, str]] = []
        self.attempts = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def project(self, sweep: str, unit: str) -> None:
        self.attempts.release()
        assert self.gate.wait(60)
        if not self.up.is_set():
            raise UserError("MLflow at http://x does not take the results: refused", "later")
        self.done.append((sweep, unit))


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.gate.set()


class TestWriter:
    def test_writes_everything_and_coalesces(self, server: FakeServer) -> None:
        warnings: list[str] = []
        server.gate.clear()
        writer = TrackingWriter(server, warnings.append)
        writer.notify("s", "a")
        server.attempts.acquire()
        for unit in ("b", "a", "b", "a", "b"):
            writer.notify("s", unit)
        assert writer.behind == 3
        server.gate.set()
        assert writer.close(60)
        assert server.done == [("s", "a"), ("s", "b"), ("s", "a")]
        assert (warnings, writer.state) == ([], "")

    def test_an_outage_warns_once_and_recovers(self, server: FakeServer) -> None:
        warnings: list[str] = []
        server.up.clear()
        writer = TrackingWriter(server, warnings.append, first_gap_s=0.001)
        writer.notify("s", "a")
        writer.notify("s", "b")
        for _ in range(4):
            server.attempts.acquire()
        assert writer.behind >= 1
        server.up.set()
        while writer.behind:
            server.attempts.acquire(timeout=0.1)
        assert writer.close(60)
        assert sorted(server.done) == [("s", "a"), ("s", "b")]
        assert len(warnings) == 1
        assert "training goes on" in warnings[0]
        assert "remedy: later" in warnings[0]

    def test_closing_on_a_dead_server_says_what_to_do(self, server: FakeServer) -> None:
        server.up.clear()
        writer = TrackingWriter(server, lambda _: None)
        writer.notify("s", "a")
        writer.notify("s", "b")
        assert not writer.close(60)
        assert writer.behind == 2
        assert "2 runs" in writer.state
        assert "targetsweep sync" in writer.state

    def test_closing_does_not_wait_for_a_hung_server(self, server: FakeServer) -> None:
        server.gate.clear()
        writer = TrackingWriter(server, lambda _: None)
        writer.notify("s", "a")
        server.attempts.acquire()
        assert not writer.close(0.01)
        assert "1 run;" in writer.state

    def test_nothing_is_begun_after_closing(self, server: FakeServer) -> None:
        server.gate.clear()
        writer = TrackingWriter(server, lambda _: None)
        writer.notify("s", "a")
        server.attempts.acquire()
        writer.notify("s", "b")
        assert not writer.close(0.01)
        assert writer.is_writing
        server.gate.set()
        assert not writer.close(60)
        assert server.done == [("s", "a")]
        assert not writer.is_writing
        assert "1 run;" in writer.state

    def test_bugs_do_not_end_the_thread(self) -> None:
        class Buggy(FakeServer):
            def project(self, sweep: str, unit: str) -> None:
                if unit == "bad":
                    raise KeyError(unit)
                super().project(sweep, unit)

        server, warnings = Buggy(), list[str]()
        writer = TrackingWriter(server, warnings.append, first_gap_s=0.001)
        writer.notify("s", "bad")
        writer.notify("s", "good")
        server.attempts.acquire()
        assert not writer.close(60)
        assert server.done == [("s", "good")]
        assert "KeyError" in warnings[0]


@pytest.fixture(params=["refuses", "never answers"])
def dead_address(request: pytest.FixtureRequest) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "never answers":
            listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_dead_server_is_one_warning(
    store: Store, dead_address: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    unit = write_run(store, 1, steps=STEPS)
    warnings: list[str] = []
    with caplog.at_level(logging.WARNING):
        writer = TrackingWriter(Tracker(store, dead_address), warnings.append)
        for _ in range(3):
            writer.notify(SWEEP, unit)
        assert not writer.close(60)
    assert len(warnings) == 1
    assert dead_address in warnings[0]
    assert "targetsweep sync" in writer.state
