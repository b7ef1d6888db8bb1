"""MLflow agrees with the store: after one projection, two, interrupted ones, and from nothing."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from tracking_helpers import (
    STEPS,
    SWEEP,
    T0,
    Seen,
    assert_agrees,
    finish,
    key,
    name,
    new_store,
    write_rows,
    write_run,
)

from orchestrator import paths
from orchestrator.errors import UserError
from orchestrator.store import Store
from orchestrator.tracking import Tracker, tracking_uri
from orchestrator.tracking_client import redacted
from orchestrator.tracking_view import is_kept, view


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return new_store(tmp_path / "store")


class TestProject:
    def test_a_finished_run(self, store: Store) -> None:
        unit = write_run(store, 1, steps=STEPS, done=True, teacher=7)
        tracker = Tracker(store)
        tracker.project(SWEEP, unit)
        assert_agrees(store, tracker, unit)
        seen = Seen(tracker.uri)
        run = seen.one(unit)
        assert run.info.status == "FINISHED"
        assert run.info.run_name == "seed1"
        assert run.info.start_time == T0
        assert run.info.end_time == T0 + 3000
        assert run.data.params == {
            "strategy": "B",
            "seed": "1",
            "dataset.name": "digits",
            "dataset.ipc": "10",
            "augmentation.crop_scale": "[0.08, 1]",
            "teacher.key": key(7),
            "teacher.accuracy": "60.0",
        }
        tags = run.data.tags
        assert tags["run_key"] == key(1)
        assert (tags["horizon"], tags["workers"], tags["device"]) == ("300", "1", "cpu")
        assert tags["mlflow.parentRunId"] == seen.runs("sweep")[0].info.run_id
        curve = seen.client.list_artifacts(run.info.run_id, "curve")
        assert [item.path for item in curve] == ["curve/metrics.parquet"]
        assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(store.root)

    def test_twice_is_once(self, store: Store) -> None:
        unit = write_run(store, 1, steps=STEPS, done=True)
        for tracker in (Tracker(store), Tracker(store)):
            tracker.project(SWEEP, unit)
            tracker.project(SWEEP, unit)
            assert_agrees(store, tracker, unit)

    def test_step_by_step_equals_at_once(self, store: Store) -> None:
        tracker = Tracker(store)
        for count in range(1, len(STEPS) + 1):
            unit = write_run(store, 1, steps=STEPS[:count])
            tracker.project(SWEEP, unit)
            assert Seen(tracker.uri).one(unit).info.status == "RUNNING"
        finish(store, unit, 1)
        tracker.project(SWEEP, unit)
        assert_agrees(store, tracker, unit)
        assert Seen(tracker.uri).one(unit).info.status == "FINISHED"

    @pytest.mark.parametrize(
        "method", ["create_run", "log_batch", "log_artifact", "set_terminated", "search_runs"]
    )
    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_interrupted_anywhere(self, store: Store, method: str, moment: str) -> None:
        """Every call fails once, before it reached the server and with its answer lost."""
        unit = write_run(store, 1, steps=STEPS, done=True)
        Tracker(store).project(SWEEP, write_run(store, 2, steps=[1]))
        tracker = Tracker(store)
        for nth in range(1, 4):
            with pytest.MonkeyPatch.context() as patch:
                break_nth(patch, method, nth, moment)
                with contextlib.suppress(UserError):  # fewer than n calls are fine
                    tracker.project(SWEEP, unit)
        tracker.project(SWEEP, unit)
        assert_agrees(store, tracker, unit)

    def test_many_points_span_batches(self, store: Store) -> None:
        unit = write_run(store, 1, steps=list(range(1, 5000)), horizon=4999)
        tracker = Tracker(store)
        tracker.project(SWEEP, unit)
        seen = Seen(tracker.uri)
        kept = [step for step in range(1, 5000) if is_kept(step, (123, 4999))]
        assert 5 * len(kept) > 1000  # MLflow takes 1,000 values a call
        assert [step for step, _, _ in seen.points(unit)] == kept

    def test_a_unit_that_is_no_run_or_has_not_begun(self, store: Store) -> None:
        unit = write_run(store, 1, steps=[1])
        store.delete(paths.request_json(unit))
        tracker = Tracker(store)
        tracker.project(SWEEP, "targets-0123456789abcdef")
        targets = {"key": key(9), "kind": "targets", "spec": {}}
        store.write_json(paths.run_json(name(9, "targets")), targets)
        store.write_json(paths.request_json(name(9, "targets")), {"horizon": 0})
        tracker.project(SWEEP, name(9, "targets"))
        tracker.project(SWEEP, unit)
        assert tracker._client is None

    def test_an_extension_continues_the_same_run(self, store: Store) -> None:
        unit = write_run(store, 1, steps=[1, 10, 55], horizon=55, done=True)
        tracker = Tracker(store)
        tracker.project(SWEEP, unit)
        before = Seen(tracker.uri).one(unit).info.run_id
        write_run(store, 1, steps=[1, 10, 55, 100], horizon=100)
        tracker.project(SWEEP, unit)
        assert Seen(tracker.uri).one(unit).info.status == "RUNNING"
        finish(store, unit, 1, 100)
        tracker.project(SWEEP, unit)
        run = Seen(tracker.uri).one(unit)
        assert (run.info.run_id, run.info.status) == (before, "FINISHED")
        assert run.data.tags["horizon"] == "100"
        assert_agrees(store, tracker, unit)

    def test_rows_trained_anew_replace_the_run(self, store: Store) -> None:
        unit = write_run(store, 1, steps=STEPS, done=True)
        tracker = Tracker(store)
        tracker.project(SWEEP, unit)
        write_rows(store, unit, STEPS, shift_ms=5)
        tracker.project(SWEEP, unit)
        assert_agrees(store, tracker, unit)

    def test_a_failure_and_its_retry(self, store: Store) -> None:
        unit = write_run(store, 1, steps=[1, 10], failed=True)
        tracker = Tracker(store)
        tracker.project(SWEEP, unit)
        assert Seen(tracker.uri).one(unit).info.status == "FAILED"
        write_run(store, 1, steps=[1, 10, 20])  # writes the request again
        tracker.project(SWEEP, unit)
        assert Seen(tracker.uri).one(unit).info.status == "RUNNING"

    def test_a_shared_run_is_a_child_in_both_experiments(self, store: Store) -> None:
        unit = write_run(store, 1, steps=STEPS, done=True)
        tracker = Tracker(store)
        for sweep in ("one", "two"):
            tracker.project(sweep, unit)
            assert Seen(tracker.uri, sweep).one(unit).info.status == "FINISHED"


def break_nth(patch: pytest.MonkeyPatch, method: str, nth: int, moment: str) -> None:
    from mlflow import MlflowClient

    real = getattr(MlflowClient, method)
    calls = iter(range(1, 1000))

    def broken(*args: Any, **kwargs: Any) -> Any:
        hit = next(calls) == nth
        if hit and moment == "before":
            raise ConnectionError("connection refused")
        answer = real(*args, **kwargs)
        if hit:
            raise ConnectionError("the answer was lost")
        return answer

    patch.setattr(MlflowClient, method, broken)


class TestWhere:
    def test_the_order_of_addresses(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        assert tracking_uri(store) == f"sqlite:///{store.root}/mlflow.db"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
        assert tracking_uri(store) == "http://server:5000"
        assert tracking_uri(store, "http://other") == "http://other"

    def test_a_bucket_needs_a_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with pytest.raises(UserError) as caught:
            Tracker(Store("mock://bucket/x"))
        assert "MLFLOW_TRACKING_URI" in caught.value.remedy

    def test_passwords_are_not_written_down(self) -> None:
        assert redacted("https://me:secret@host:1/x") == "https://host:1/x"

    def test_no_chatter(self, tmp_path: Path) -> None:
        code = """
            import sys
            from orchestrator.store import Store
            from orchestrator.tracking import Tracker
            Tracker(Store(sys.argv[1])).aggregates("demo", [])
        """
        command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "s")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("", "")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


@pytest.mark.parametrize(
    ("step", "kept"),
    [
        *((0, True), (1, True), (99, True), (100, True), (101, False), (110, True), (123, False)),
        *((1_950, False), (3_900, True), (38_999, False), (39_000, True)),
    ],
)
def test_thinning_by_step(step: int, kept: bool) -> None:
    assert is_kept(step) is kept
    assert is_kept(step, (step,))


def test_thinning_bounds_a_teacher_of_100_000_rows() -> None:
    assert sum(is_kept(step) for step in range(1, 100_001)) < 400


def test_a_view_needs_no_mlflow(store: Store) -> None:
    shown = view(store, write_run(store, 1, steps=STEPS), live=False)
    assert shown is not None
    assert shown.status == "KILLED"
    assert [point.step for point in shown.points] == [s for s in STEPS if s not in (101, 205)]
    assert list(shown.rows) == STEPS
