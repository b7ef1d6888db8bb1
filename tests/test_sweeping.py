"""The end of a sweep: who writes to MLflow, and the commands it prints."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator import publishing, sweeping
from orchestrator.store import Store
from tests.driving import tiny_plan

SERVER = "http://server:5000"


class HungTracker:
    """A server that takes the first run and never answers."""

    def __init__(self, store: Store, uri: str | None) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()

    def project(self, sweep: str, unit: str) -> None:
        self.entered.set()
        assert self.release.wait(60)


class Recorder(list[str]):
    """Stands for Tracker and track_results: remembers that MLflow was touched."""

    def tracker(self, store: Store, uri: str | None) -> None:
        self.append(f"tracker {uri}")

    def track_results(self, *arguments: Any) -> None:
        self.append("results")


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[HungTracker]:
    tracker = HungTracker(Store("unused"), None)
    monkeypatch.setattr(sweeping, "Tracker", lambda store, uri: tracker)
    yield tracker
    tracker.release.set()


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recorder = Recorder()
    monkeypatch.setattr(publishing, "Tracker", recorder.tracker)
    monkeypatch.setattr(publishing, "track_results", recorder.track_results)
    return recorder


def ending(store: Store, uri: str | None, *, is_free: bool) -> str:
    out = io.StringIO()
    publishing.publish_all([], store, Console(file=out, width=200), uri, is_free=is_free)
    return out.getvalue()


def test_a_writer_that_hangs_keeps_mlflow_to_itself(hung: HungTracker, tmp_path: Path) -> None:
    warnings: list[str] = []
    unit = tiny_plan(tmp_path).units[0]
    tracking = sweeping._Tracking(Store(tmp_path), None, warnings.append)
    tracking.changed(unit)
    assert hung.entered.wait(60)
    assert not tracking.close(0.01)
    assert "targetsweep sync" in warnings[0]


def test_a_writer_that_is_done_leaves_it(hung: HungTracker, tmp_path: Path) -> None:
    hung.release.set()
    tracking = sweeping._Tracking(Store(tmp_path), None, lambda text: None)
    assert tracking.close(0.01)


def test_the_end_beside_a_hanging_writer(touched: Recorder, tmp_path: Path) -> None:
    text = ending(Store(tmp_path), SERVER, is_free=False)
    assert not touched
    assert f"sync --store {tmp_path} --tracking-uri {SERVER}" in text


def test_the_command_that_shows_the_results(
    touched: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    assert ending(store, SERVER, is_free=True).endswith(f"--tracking-uri {SERVER}\n")
    assert touched == [f"tracker {SERVER}", "results"]
    assert ending(store, None, is_free=True).endswith(f"ui --store {tmp_path}\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)  # typer then gives it as the option's value
    assert ending(store, SERVER, is_free=True).endswith(f"ui --store {tmp_path}\n")
