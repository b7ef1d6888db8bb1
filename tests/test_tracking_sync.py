"""`sync` rebuilds MLflow from the store and repairs it; aggregates and reports go along."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tracking_helpers import (
    STEPS,
    SWEEP,
    Seen,
    assert_agrees,
    key,
    lose_database,
    name,
    new_store,
    write_plan,
    write_run,
)

from orchestrator import paths
from orchestrator.store import Store
from orchestrator.store_local import LocalBackend
from orchestrator.tracking import Tracker, tracking_uri
from orchestrator.tracking_client import connect


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return new_store(tmp_path / "store")


class TestSync:
    def test_from_nothing(self, store: Store) -> None:
        write_plan(store, [1, 2, 3])
        units = [write_run(store, n, steps=STEPS, done=n < 3, failed=n == 3) for n in (1, 2, 3)]
        Tracker(store).sync()
        lose_database(store)
        tracker = Tracker(store)
        report = tracker.sync()
        assert (report.projected, report.unchanged) == (3, ())
        for unit in units:
            assert_agrees(store, tracker, unit)
        seen = Seen(tracker.uri)
        assert seen.one(units[2]).info.status == "FAILED"
        assert seen.runs("sweep")[0].info.status == "FAILED"

    def test_closes_what_a_killed_driver_left_running(self, store: Store) -> None:
        write_plan(store, [1])
        unit = write_run(store, 1, steps=STEPS[:4])
        driver = Tracker(store)
        driver.project(SWEEP, unit)
        report = Tracker(store).sync([SWEEP])
        assert any("seed1" in line and "killed driver" in line for line in report.repaired)
        seen = Seen(driver.uri)
        assert seen.one(unit).info.status == "KILLED"
        assert seen.runs("sweep")[0].info.status == "KILLED"

    def test_the_teachers_of_the_points_too(self, store: Store) -> None:
        write_plan(store, [1], teacher=7)
        write_run(store, 1, steps=STEPS, done=True, teacher=7)
        unit = name(7, "teacher")
        run = {"key": key(7), "kind": "teacher", "spec": {"seed": 0}, "label": "teacher"}
        store.write_json(paths.run_json(unit), run)
        store.write_json(paths.request_json(unit), {"horizon": 1000, "presets": [60.0]})
        tracker = Tracker(store)
        assert tracker.sync().projected == 2
        (teacher,) = Seen(tracker.uri).runs("teacher")
        assert teacher.info.status == "KILLED"
        result = {"key": key(7), "horizon": 1000, "step": 40, "presets": {"60": {}}, "missing": []}
        store.write_json(paths.result(unit), result)
        tracker.sync()
        assert Seen(tracker.uri).runs("teacher")[0].info.status == "FINISHED"
        store.write_json(paths.request_json(unit), {"horizon": 1000, "presets": [60.0, 99.0]})
        store.write_json(paths.result(unit), {**result, "missing": [99.0]})
        tracker.sync()
        assert Seen(tracker.uri).runs("teacher")[0].info.status == "FAILED"
        # A pilot asked how far it comes: that it came no further is an answer.
        measuring = {"horizon": 1000, "presets": [60.0, 99.0], "measures": True}
        store.write_json(paths.request_json(unit), measuring)
        tracker.sync()
        assert Seen(tracker.uri).runs("teacher")[0].info.status == "FINISHED"

    def test_nothing_changed_does_not_import_mlflow(self, store: Store) -> None:
        write_plan(store, [1])
        write_run(store, 1, steps=STEPS, done=True)
        Tracker(store).sync()
        code = """
            import sys
            from orchestrator.store import Store
            from orchestrator.tracking import Tracker
            report = Tracker(Store(sys.argv[1])).sync()
            assert report.unchanged == ("demo",), report
            assert "mlflow" not in sys.modules
        """
        command = [sys.executable, "-c", textwrap.dedent(code), str(store.root)]
        subprocess.run(command, check=True)
        assert Tracker(store).sync(force=True).projected == 1

    def test_a_driver_that_found_nothing_to_do_leaves_no_trace(self, store: Store) -> None:
        write_plan(store, [1])
        unit = write_run(store, 1, steps=STEPS, done=True)
        Tracker(store).sync()
        driver = Tracker(store)
        driver.project(SWEEP, unit)
        assert Seen(driver.uri).runs("sweep")[0].info.status == "RUNNING"
        driver.sync()
        assert Seen(driver.uri).runs("sweep")[0].info.status == "FINISHED"
        assert Tracker(store).sync().unchanged == (SWEEP,)

    def test_a_deleted_database_is_noticed(self, store: Store) -> None:
        write_plan(store, [1])
        unit = write_run(store, 1, steps=STEPS, done=True)
        Tracker(store).sync()
        lose_database(store)
        tracker = Tracker(store)
        assert tracker.sync().unchanged == ()
        assert_agrees(store, tracker, unit)

    def test_removes_second_copies_and_restores_deleted_runs(self, store: Store) -> None:
        write_plan(store, [1, 2])
        units = [write_run(store, n, steps=STEPS, done=True) for n in (1, 2)]
        tracker = Tracker(store)
        tracker.sync()
        seen = Seen(tracker.uri)
        original = seen.one(units[0])
        tags = {"targetsweep.kind": "student", "run_key": key(1)}
        seen.client.create_run(original.info.experiment_id, tags=tags)
        seen.client.delete_run(seen.one(units[1]).info.run_id)
        report = tracker.sync(force=True)
        assert len(report.repaired) == 2
        for unit in units:
            assert_agrees(store, tracker, unit)
        assert Seen(tracker.uri).one(units[0]).info.run_id == original.info.run_id

    def test_restores_a_deleted_experiment(self, store: Store) -> None:
        write_plan(store, [1])
        unit = write_run(store, 1, steps=STEPS, done=True)
        Tracker(store).sync()
        seen = Seen(tracking_uri(store))
        seen.client.delete_experiment(seen.one(unit).info.experiment_id)
        tracker = Tracker(store)
        assert any("restored" in line for line in tracker.sync(force=True).repaired)
        assert_agrees(store, tracker, unit)

    def test_students_behind_scores_too(self, store: Store) -> None:
        write_plan(store, [1])
        plan = store.read_json(paths.plan_json(SWEEP)) or {}
        scores = name(8, "scores")
        points = [point | {"scores": scores} for point in plan["points"]]
        store.write_json(paths.plan_json(SWEEP), plan | {"points": points})
        write_run(store, 1, steps=STEPS, done=True)
        unit = write_run(store, 2, steps=STEPS)
        tracker = Tracker(store)
        tracker.project(SWEEP, unit)  # as a driver does, who is killed before the scores begin
        assert Seen(tracker.uri).one(unit).info.status == "RUNNING"
        Tracker(store).sync()
        assert Seen(tracker.uri).one(unit).info.status == "KILLED"

        spec = {"scoring": {"student": {"key": key(2), "step": 300}}}
        store.write_json(paths.run_json(scores), {"spec": spec})
        lose_database(store)
        Tracker(store).sync()
        assert {unit, name(1)} == {
            paths.run_name("student", run.data.tags["run_key"]) for run in Seen(tracker.uri).runs()
        }

    def test_the_list_of_experiments_describes_the_sweep(self, store: Store) -> None:
        def description() -> str:
            experiment = Seen(tracker.uri).client.get_experiment_by_name(SWEEP)
            return str(experiment.tags["mlflow.note.content"])

        write_plan(store, [1])
        write_run(store, 1, steps=STEPS, done=True)
        tracker = Tracker(store)
        tracker.sync()
        assert description() == "A demo"
        seen = Seen(tracker.uri)
        id = seen.client.get_experiment_by_name(SWEEP).experiment_id
        seen.client.set_experiment_tag(id, "mlflow.note.content", "somebody's own words")
        Tracker(store).sync(force=True)
        assert description() == "somebody's own words"

    def test_one_of_before_gets_its_description(self, store: Store) -> None:
        write_plan(store, [1])
        write_run(store, 1, steps=STEPS, done=True)
        tracker = Tracker(store)
        tracker.sync()
        seen = Seen(tracker.uri)
        id = seen.client.get_experiment_by_name(SWEEP).experiment_id
        seen.client.delete_experiment_tag(id, "mlflow.note.content")
        Tracker(store).sync(force=True)
        tags = Seen(tracker.uri).client.get_experiment(id).tags
        assert tags["mlflow.note.content"] == "A demo"

    def test_a_moved_store(self, store: Store, tmp_path: Path) -> None:
        write_plan(store, [1])
        unit = write_run(store, 1, steps=STEPS, done=True)
        Tracker(store).sync()
        shutil.move(store.root, tmp_path / "moved")
        moved = Store(tmp_path / "moved")
        tracker = Tracker(moved)
        tracker.sync()
        assert_agrees(moved, tracker, unit)
        artifact_uri = Seen(tracker.uri).one(unit).info.artifact_uri
        assert Path(artifact_uri.removeprefix("file://")).is_relative_to(moved.root)
        assert not store.root.exists()

    def test_a_moved_store_whose_experiment_was_deleted(self, store: Store, tmp_path: Path) -> None:
        write_plan(store, [1])
        unit = write_run(store, 1, steps=STEPS, done=True)
        tracker = Tracker(store)
        tracker.sync()
        client = connect(tracker.uri)
        client.delete_experiment(client.get_experiment_by_name(SWEEP).experiment_id)
        moved = Store(shutil.move(str(store.root), tmp_path / "elsewhere"))
        again = Tracker(moved)
        again.sync(force=True)
        assert_agrees(moved, again, unit)

    def test_a_damaged_file_costs_its_own_run_alone(self, store: Store) -> None:
        write_plan(store, [1, 2])
        damaged, sound = (write_run(store, n, steps=STEPS, done=True) for n in (1, 2))
        data = store.read_bytes(paths.metrics(damaged))
        store.write_bytes(paths.metrics(damaged), data[:-1])
        tracker = Tracker(store)
        report = tracker.sync()
        assert [one.rel for one in report.damaged] == [paths.metrics(damaged)]
        assert_agrees(store, tracker, sound)
        store.write_bytes(paths.metrics(damaged), data)
        assert tracker.sync().unchanged == ()  # not taken for done
        assert_agrees(store, tracker, damaged)

    def test_two_stores_at_one_server(self, store: Store, tmp_path: Path) -> None:
        uri = f"sqlite:///{tmp_path / 'server.db'}"
        other = new_store(tmp_path / "other")
        for number, one in enumerate((store, other), 1):
            write_plan(one, [number])
            write_run(one, number, steps=STEPS, done=True)
        first, second = Tracker(store, uri), Tracker(other, uri)
        for tracker in (first, second, first, second):
            tracker.sync(force=True)
            tracker.aggregates(SWEEP, [], force=True)
        names = {one.name for one in connect(uri).search_experiments()} - {"Default"}
        assert names == {SWEEP, f"{SWEEP} [{other.read_json(paths.store_id())['id']}]"}
        assert_agrees(store, first, name(1))


CREATING = """
import sys
from orchestrator.tracking_client import connect
connect(sys.argv[1])
"""


def test_a_kill_while_the_database_is_made_leaves_none(tmp_path: Path) -> None:
    """MLflow makes table after table; a half-made database it can neither open nor finish."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with subprocess.Popen([sys.executable, "-c", CREATING, uri]) as process:
        while not any(file.stat().st_size for file in tmp_path.glob(".ts-*.tmp")):
            assert process.poll() is None, "it ended before it could be killed"
        process.kill()
    assert not (tmp_path / "mlflow.db").exists()
    assert connect(uri).search_experiments()
    assert (tmp_path / "mlflow.db").is_file()
    assert LocalBackend(tmp_path).sweep_temporaries()  # what the killed one left


def test_a_database_for_several_people(tmp_path: Path) -> None:
    """SQLite would let its maker alone write, whatever the umask."""
    before = os.umask(0o002)
    try:
        connect(f"sqlite:///{tmp_path}/mlflow.db")
    finally:
        os.umask(before)
    assert stat.filemode((tmp_path / "mlflow.db").stat().st_mode) == "-rw-rw-r--"


@dataclass
class Group:
    settings: dict[str, Any]
    series: dict[str, list[tuple[Any, ...]]]


class TestAggregates:
    def group(self, strategy: str, mean: float) -> Group:
        settings = {"strategy": strategy, "teacher.accuracy": 60.0, "ipc": "full", "x": None}
        rows = [(50, mean, 1.0, 3, mean - 1, mean + 1), (100, mean, float("nan"), 1, None, None)]
        return Group(settings, {"top1_h": rows})

    def ids(self, tracker: Tracker) -> dict[str, str]:
        runs = Seen(tracker.uri).runs("aggregate")
        return {run.data.params["strategy"]: run.info.run_id for run in runs}

    def test_are_replaced_only_when_they_changed(self, store: Store) -> None:
        write_plan(store, [])
        Tracker(store).aggregates(SWEEP, [self.group("B", 40.0), self.group("C", 41.0)])
        tracker = Tracker(store)
        first = self.ids(tracker)
        tracker.aggregates(SWEEP, [self.group("B", 40.0), self.group("C", 42.0)])
        second = self.ids(tracker)
        assert first["B"] == second["B"]
        assert first["C"] != second["C"]
        client = Seen(tracker.uri).client
        run = client.get_run(second["C"])
        assert run.info.run_name == "mean C"
        assert run.info.status == "FINISHED"
        means = client.get_metric_history(second["C"], "top1_h.mean")
        assert [(point.step, point.value) for point in means] == [(50, 42.0), (100, 42.0)]
        assert len(client.get_metric_history(second["C"], "top1_h.std")) == 1
        tracker.aggregates(SWEEP, [self.group("C", 42.0)])
        assert self.ids(tracker) == {"C": second["C"]}

    def test_unchanged_ones_need_no_mlflow(self, store: Store) -> None:
        write_plan(store, [])
        Tracker(store).aggregates(SWEEP, [self.group("B", 40.0)])
        again = Tracker(store)
        again.aggregates(SWEEP, [self.group("B", 40.0)])
        assert again._client is None

    def test_the_report_is_attached_once(self, store: Store) -> None:
        write_plan(store, [])
        folder = store.root / paths.report_dir(SWEEP)
        store.write_bytes(f"{paths.report_dir(SWEEP)}/tables/table_1.md", b"| 1 |")
        tracker = Tracker(store)
        tracker.log_report(SWEEP, folder)
        seen = Seen(tracker.uri)
        found = seen.client.list_artifacts(seen.runs("sweep")[0].info.run_id, "report/tables")
        assert [item.path for item in found] == ["report/tables/table_1.md"]
        again = Tracker(store)
        again.log_report(SWEEP, folder)
        assert again._client is None
        again.log_report(SWEEP, folder, force=True)
        assert again._client is not None
