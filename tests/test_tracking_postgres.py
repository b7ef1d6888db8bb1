"""Tracking on an MLflow server over PostgreSQL: the same behaviour as on SQLite, and outages of
either in the middle of a projection, after which `sync` makes the very same content."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tracking_helpers import STEPS, SWEEP, Seen, new_store, write_plan, write_run

from orchestrator.errors import UserError
from orchestrator.store import Store
from orchestrator.tracking import Tracker
from orchestrator.tracking_writer import TrackingWriter
from tests import test_tracking, test_tracking_sync
from tests.servers import Server, mlflow_server, postgres


@dataclass(frozen=True)
class Tracking:
    database: Server
    mlflow: Server


@pytest.fixture(scope="module")
def tracking() -> Iterator[Tracking]:
    with postgres() as database, mlflow_server(database.uri) as mlflow:
        yield Tracking(database, mlflow)


@pytest.fixture
def store(tmp_path: Path, tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A local store that is tracked by the server; its experiments make room for the next test's
    of the same name."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.mlflow.uri)
    yield new_store(tmp_path / "store")
    client = Seen(tracking.mlflow.uri).client
    for experiment in client.search_experiments():
        if experiment.name != "Default":
            client.rename_experiment(experiment.experiment_id, f"old {time.time_ns()}")
            client.delete_experiment(experiment.experiment_id)


class TestProject(test_tracking.TestProject):
    def test_a_finished_run(self, store: Store) -> None:
        """As on SQLite, but for where the artifacts lie: the server knows."""
        unit = write_run(store, 1, steps=STEPS, done=True)
        tracker = Tracker(store)
        tracker.project(SWEEP, unit)
        seen = Seen(tracker.uri)
        run = seen.one(unit)
        assert (run.info.status, run.info.run_name) == ("FINISHED", "seed1")
        assert run.info.artifact_uri.startswith("mlflow-artifacts:")
        curve = seen.client.list_artifacts(run.info.run_id, "curve")
        assert [item.path for item in curve] == ["curve/metrics.parquet"]


class TestSync(test_tracking_sync.TestSync):
    # A server is believed, and has artifacts of its own: these are about SQLite.
    test_from_nothing = None  # type: ignore[assignment]
    test_a_deleted_database_is_noticed = None  # type: ignore[assignment]
    test_a_moved_store = None  # type: ignore[assignment]


class TestAggregates(test_tracking_sync.TestAggregates):
    pass


# -- outages ------------------------------------------------------------------------------------


def content(uri: str) -> list[tuple[Any, ...]]:
    """Everything of the sweep's experiment that does not depend on where it lies."""
    seen = Seen(uri)
    experiment = seen.client.get_experiment_by_name(SWEEP)
    found = []
    for run in seen.client.search_runs([experiment.experiment_id], max_results=1000):
        tags = {name: run.data.tags[name] for name in run.data.tags if "parentRunId" not in name}
        points = [
            sorted((name, p.step, p.timestamp, p.value) for p in history)
            for name in sorted(run.data.metrics)
            for history in [seen.client.get_metric_history(run.info.run_id, name)]
        ]
        files = [item.path for item in seen.client.list_artifacts(run.info.run_id, "curve")]
        kind = tags["targetsweep.kind"]
        start = None if kind == "sweep" else run.info.start_time
        facts = (sorted(tags.items()), sorted(run.data.params.items()))
        found.append((kind, run.info.run_name, run.info.status, start, *facts, points, files))
    return sorted(found, key=repr)


def fill(store: Store) -> list[str]:
    write_plan(store, [1, 2, 3, 4])
    return [
        write_run(store, 1, steps=STEPS, done=True),
        write_run(store, 2, steps=STEPS, failed=True),
        write_run(store, 3, steps=STEPS[:5]),
        write_run(store, 4, steps=STEPS, done=True),
    ]


def expected(store: Store) -> list[tuple[Any, ...]]:
    """What SQLite gets of the same store, undisturbed."""
    uri = f"sqlite:///{store.root}/mlflow.db"
    Tracker(store, uri).sync(force=True)
    return content(uri)


def at_call(patch: pytest.MonkeyPatch, method: str, nth: int, act: Callable[[], None]) -> None:
    """Something happens right before the nth call of the client."""
    from mlflow import MlflowClient

    real, calls = getattr(MlflowClient, method), iter(range(1, 10_000))

    def acting(*arguments: Any, **options: Any) -> Any:
        if next(calls) == nth:
            act()
        return real(*arguments, **options)

    patch.setattr(MlflowClient, method, acting)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.mark.usefixtures("impatient")
class TestOutages:
    def project_all(self, tracker: Tracker, units: list[str]) -> list[str]:
        """A driver's projections, as far as they come; the remedies of those that failed."""
        failed = []
        for unit in units:
            try:
                tracker.project(SWEEP, unit)
            except UserError as error:
                failed.append(error.remedy)
        return failed

    @pytest.mark.parametrize(("method", "nth"), [("create_run", 3), ("log_batch", 4)])
    def test_the_database_stops_in_the_middle(
        self,
        store: Store,
        tracking: Tracking,
        monkeypatch: pytest.MonkeyPatch,
        method: str,
        nth: int,
    ) -> None:
        """The server is up and answers with errors."""
        units = fill(store)
        with monkeypatch.context() as patch:
            at_call(patch, method, nth, tracking.database.stop)
            try:
                failed = self.project_all(Tracker(store), units)
            finally:
                tracking.database.start()
        assert failed
        assert all("targetsweep sync" in remedy for remedy in failed)
        Tracker(store).sync()
        assert content(tracking.mlflow.uri) == expected(store)

    def test_the_server_is_killed_in_the_middle(
        self, store: Store, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        units = fill(store)
        with monkeypatch.context() as patch:
            at_call(patch, "log_batch", 3, tracking.mlflow.kill)
            try:
                assert self.project_all(Tracker(store), units)
            finally:
                tracking.mlflow.start()
        Tracker(store).sync()
        assert content(tracking.mlflow.uri) == expected(store)

    def test_a_sync_that_is_cut_off_is_finished_by_the_next(
        self, store: Store, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(store)
        with monkeypatch.context() as patch:
            at_call(patch, "set_terminated", 2, tracking.database.kill)
            try:
                with suppress(UserError):
                    Tracker(store).sync()
            finally:
                tracking.database.start()
        assert Tracker(store).sync().unchanged == ()
        assert content(tracking.mlflow.uri) == expected(store)
        assert Tracker(store).sync().unchanged == (SWEEP,)

    @pytest.mark.timeout(90)
    def test_a_frozen_server_holds_up_nobody(self, store: Store, tracking: Tracking) -> None:
        """It accepts and never answers. `notify` is what training calls."""
        units = fill(store)
        warned = threading.Event()
        tracking.mlflow.pause()
        try:
            writer = TrackingWriter(Tracker(store), lambda _: warned.set(), first_gap_s=0.01)
            for unit in units * 100:
                writer.notify(SWEEP, unit)
            assert writer.behind <= len(units) + 1
            assert warned.wait(60), "a time-out ends the attempt"
        finally:
            tracking.mlflow.resume()
        while writer.behind:  # the gap between attempts grew to a second or so
            time.sleep(0.05)
        assert writer.close(60), writer.state
        Tracker(store).sync()
        assert content(tracking.mlflow.uri) == expected(store)
