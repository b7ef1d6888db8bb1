"""The end of a sweep: who writes to MLflow, and the commands it prints."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tracking_helpers import STEPS, SWEEP, Seen, new_store, write_plan, write_run

from orchestrator import driver, publishing, sweeping
from orchestrator.asked import Asked
from orchestrator.bundling import BundleExport
from orchestrator.driver import DriveOptions
from orchestrator.errors import (
    MachineError,
    StoreError,
    StoreTakenError,
    TargetsweepError,
    UserError,
)
from orchestrator.following import ClusterLostError
from orchestrator.lease import holder
from orchestrator.store import Store
from orchestrator.tracking import SyncReport, tracking_uri
from orchestrator.tuning import TuneGaveUpError
from tests.driving import TINY, tiny_plan

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

    def tracker(self, store: Store, uri: str | None, has_time: Callable[[], bool]) -> None:
        self.append(f"tracker {uri}")

    def track_results(self, *arguments: Any) -> SyncReport:
        self.append("results")
        return SyncReport(projected=0, unchanged=(), repaired=())


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


def test_no_time_for_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked before each run, not once before all of them."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = new_store(tmp_path / "store")
    write_plan(store, [1, 2, 3])
    for number in (1, 2, 3):
        write_run(store, number, steps=STEPS, done=True)
    monkeypatch.setattr(publishing, "publish", lambda sweep, store, console: True)
    left = iter([True, True, True, False])  # to begin, and two runs of three
    out = io.StringIO()
    publishing.publish_all(
        [SimpleNamespace(name=SWEEP)],  # type: ignore[list-item]
        store, Console(file=out, width=200), None, is_free=True, has_time=lambda: next(left),
    )  # fmt: skip
    assert "no time left for MLflow; to bring it up to the store:" in out.getvalue()
    assert len(Seen(tracking_uri(store)).runs("student")) == 2


@pytest.mark.parametrize("error", [ClusterLostError("the head is gone"), TuneGaveUpError("odd")])
def test_what_was_finished_is_exported_first_and_reported_whatever_ends_the_driving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise error

    done: list[str] = []
    monkeypatch.setattr(sweeping, "_train", broken)
    monkeypatch.setattr(sweeping, "export_so_far", lambda *words: done.append("bundle"))

    def reported(*words: Any, **options: Any) -> list[StoreError]:
        done.append("reports")
        return []

    monkeypatch.setattr(publishing, "publish_all", reported)
    store = Store(tmp_path / "store")
    monkeypatch.setattr(sweeping, "_prepare", lambda *arguments: False)
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY + "grids: [{axes: {strategy: [B], teacher.accuracy: [30]}}]\n")
    asked = Asked(files=[str(file)])
    with pytest.raises(type(error), match=str(error)):
        sweeping.run_sweeps(
            asked, store, DriveOptions(), Console(file=io.StringIO()), tracking_uri=None,
            export=BundleExport(str(tmp_path / "bundle")),
        )  # fmt: skip
    assert done == ["bundle", "reports"]
    assert holder(store) is None


def test_a_bundle_that_was_not_written_keeps_the_exit_status_from_being_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = UserError("cannot write b: No space left on device")
    monkeypatch.setattr(sweeping, "_train", lambda *words: (words[1], None))
    monkeypatch.setattr(sweeping, "_prepare", lambda *arguments: False)
    monkeypatch.setattr(sweeping, "export_so_far", lambda *words: error)
    monkeypatch.setattr(publishing, "publish_all", lambda *words, **options: [])
    monkeypatch.setattr(sweeping, "conclude", lambda *words: None)
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY + "grids: [{axes: {strategy: [B], teacher.accuracy: [30]}}]\n")
    with pytest.raises(TargetsweepError, match="No space left") as caught:
        sweeping.run_sweeps(
            Asked(files=[str(file)]), Store(tmp_path / "store"), DriveOptions(),
            Console(file=io.StringIO()), tracking_uri=None,
            export=BundleExport(str(tmp_path / "bundle")),
        )  # fmt: skip
    assert caught.value.exit_status == 1


def test_scratch_in_a_bucket_goes_at_the_end() -> None:
    store = Store("mock://bucket/x")
    store.write_bytes(".ray/killed/state", b"")
    with driver._scratch(store, "mine") as (_, shared):
        assert not store.exists(".ray/killed")
        assert shared == f"{store.uri}/.ray/mine"
        store.write_bytes(".ray/mine/state", b"")
    assert not store.exists(".ray/mine")


@pytest.mark.parametrize("has_begun", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        StoreError("cannot read x", "look"),
        MachineError("no GPU", "look"),
        RuntimeError("a bug"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_whatever_ends_a_sweep_that_has_begun_waits_for_its_bundle(
    error: BaseException, has_begun: bool
) -> None:
    """And is no longer one before which nothing was started (exit status 2)."""
    watch, published = sweeping._Stopwatch(), list[str]()
    if has_begun:
        watch.started(None, 1)  # type: ignore[arg-type]
    with (
        pytest.raises((Exception, KeyboardInterrupt)) as caught,
        sweeping._publishing_first(watch, lambda: published.append("bundle")),
    ):
        raise error
    assert published == ["bundle"] * has_begun
    if has_begun and isinstance(error, UserError):
        assert type(caught.value) is TargetsweepError
        assert (str(caught.value), caught.value.exit_status) == (str(error), 1)
    else:
        assert caught.value is error


def test_a_store_of_another_driver_gets_nothing_from_this_one() -> None:
    watch, published = sweeping._Stopwatch(), list[str]()
    watch.started(None, 1)  # type: ignore[arg-type]
    with (
        pytest.raises(StoreTakenError),
        sweeping._publishing_first(watch, lambda: published.append("bundle")),
    ):
        raise StoreTakenError("taken")
    assert published == []
