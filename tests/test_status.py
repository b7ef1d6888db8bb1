"""What looks at a store: `status` counts teachers and what they block, `ui` finds the database."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tracking_helpers import SWEEP, finish, key, name, write_run
from typer.testing import CliRunner

from orchestrator import cli, paths
from orchestrator.errors import UserError
from orchestrator.plandocument import plan_document
from orchestrator.runstates import RunStates
from orchestrator.scalenotes import MAPPED_LATER
from orchestrator.store import Store
from orchestrator.units import snapshot_token
from tests.driving import TINY, tiny_plan
from tests.sweep_files import sweep_of

TEACHER = name(7, "teacher")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for variable in ("MLFLOW_TRACKING_URI", "TARGETSWEEP_STORE"):
        monkeypatch.delenv(variable, raising=False)
    return Store(tmp_path / "store")


def plan_of(presets: list[float | None]) -> dict[str, object]:
    """A student a preset, all of one teacher; None: a student of strategy A."""
    points = [
        {"run": name(n), "horizon": 300}
        | {"snapshot": None if preset is None else snapshot_token(TEACHER, preset)}
        for n, preset in enumerate(presets, 1)
    ]
    return {"points": points}


def write_teacher(
    store: Store, presets: list[float], missing: list[float], *, ended: bool = True
) -> None:
    for preset in presets:
        store.write_json(paths.snapshot_json(TEACHER, preset), {})
    if ended:
        result = {"key": key(7), "status": "complete", "horizon": 1000, "missing": missing}
        found = {paths.preset_name(preset): {} for preset in presets}
        store.write_json(paths.result(TEACHER), {**result, "presets": found})


def complete(store: Store, number: int) -> None:
    unit = write_run(store, number, steps=[300])
    finish(store, unit, number)
    result = store.read_json(paths.result(unit)) or {}
    store.write_json(paths.result(unit), {**result, "status": "complete"})


class TestStates:
    def test_nothing_begun(self, store: Store) -> None:
        states = RunStates(store).of(plan_of([None, 30.0, 60.0]))
        assert states == dict.fromkeys([TEACHER, name(1), name(2), name(3)], "to do")

    def test_a_search_in_vain_blocks_its_own_students(self, store: Store) -> None:
        write_teacher(store, [30.0], missing=[99.5])
        complete(store, 1)
        states = RunStates(store).of(plan_of([30.0, 30.0, 99.5, None]))
        assert states[TEACHER] == "failed"
        assert [states[name(n)] for n in (1, 2, 3, 4)] == ["done", "to do", "blocked", "to do"]

    def test_another_sweep_asked_in_vain(self, store: Store) -> None:
        write_teacher(store, [30.0], missing=[99.5])
        assert RunStates(store).of(plan_of([30.0])) == {TEACHER: "done", name(1): "to do"}

    def test_a_teacher_that_failed_midway(self, store: Store) -> None:
        write_teacher(store, [30.0], missing=[], ended=False)
        store.write_json(paths.failure(TEACHER), {"cause": "error"})
        states = RunStates(store).of(plan_of([30.0, 60.0]))
        assert states == {TEACHER: "failed", name(1): "to do", name(2): "blocked"}

    def test_begun_and_failed_students(self, store: Store) -> None:
        store.write_bytes(paths.checkpoint(TEACHER, "step-00000010"), b"")
        store.write_json(paths.failure(name(1)), {"cause": "error"})
        store.write_bytes(paths.checkpoint(name(2), "step-00000010"), b"")
        states = RunStates(store).of(plan_of([60.0, None]))
        assert states == {TEACHER: "begun", name(1): "failed", name(2): "begun"}

    def test_soft_targets_that_failed_block_those_of_their_teacher(self, store: Store) -> None:
        write_teacher(store, [30.0, 60.0], missing=[])
        targets = name(8, "targets")
        spec = {"teacher": {"key": key(7), "accuracy": 30.0}}
        store.write_json(paths.run_json(targets), {"spec": spec})
        store.write_json(paths.failure(targets), {"cause": "error"})
        plan = plan_of([30.0, 60.0])
        assert targets not in RunStates(store).of(plan | {"settings": {"strategy": "B"}})
        states = RunStates(store).of(plan | {"settings": {"strategy": "C"}})
        assert states == {
            TEACHER: "done", name(1): "blocked", name(2): "to do", targets: "failed"
        }  # fmt: skip

    @pytest.mark.parametrize("failed", ["scores", "student"])
    def test_scores_that_failed_block_those_who_select(self, store: Store, failed: str) -> None:
        scores = name(8, "scores")
        spec = {"scoring": {"method": "el2n", "student": {"key": key(9), "step": 10}}}
        store.write_json(paths.run_json(scores), {"spec": spec})
        lost = scores if failed == "scores" else name(9)
        store.write_json(paths.failure(lost), {"cause": "error"})
        points = [{"run": name(1), "horizon": 300, "scores": scores}]
        plan = {"points": [*points, {"run": name(2), "horizon": 300}]}
        assert RunStates(store).of(plan) == {lost: "failed", name(1): "blocked", name(2): "to do"}

    def test_a_run_of_several_plans_is_read_once(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_teacher(store, [30.0], missing=[])
        complete(store, 1)
        runs = RunStates(store)
        asked: list[str] = []
        for verb in ("read_json", "exists", "list"):
            real = getattr(store, verb)
            monkeypatch.setattr(
                store, verb, lambda rel, verb=verb, real=real: asked.append(rel) or real(rel)
            )
        plan = plan_of([30.0, 30.0])
        states = runs.of(plan)
        assert states == {TEACHER: "done", name(1): "done", name(2): "to do"}
        assert sorted(asked) == sorted(paths.result(run) for run in (TEACHER, name(1)))
        assert runs.of(plan) == states
        assert len(asked) == 2

    def test_a_run_asked_further_by_another_plan(self, store: Store) -> None:
        complete(store, 1)
        further = {"points": [{"run": name(1), "horizon": 600}]}
        runs = RunStates(store)
        assert runs.of(plan_of([None])) == {name(1): "done"}
        assert runs.of(further) == {name(1): "shorter"}  # its rows are in tables already
        store.write_bytes(paths.checkpoint(name(1), "step-00000300"), b"")
        assert RunStates(store).of(further) == {name(1): "begun"}

    def test_a_finished_teacher_without_its_snapshots(self, store: Store) -> None:
        write_teacher(store, [60.0], missing=[])
        store.delete_tree(paths.snapshots_dir(TEACHER))
        assert RunStates(store).of(plan_of([60.0]))[TEACHER] == "done"


def test_a_real_plan_names_the_snapshot_behind_every_student(tmp_path: Path) -> None:
    text = TINY + "grids: [{axes: {strategy: [A, B, C], teacher.accuracy: [20, 40]}}]\n"
    plan = tiny_plan(tmp_path, text=text)
    (teacher,) = plan.of_kind("teacher")
    document = plan_document(sweep_of(tmp_path, base=text), plan)
    found = [point["snapshot"] for point in document["points"]]
    assert found == [None, *[f"{teacher.name}/acc-{preset}" for preset in (20, 40)] * 2]


def test_the_screen(store: Store) -> None:
    write_teacher(store, [], missing=[60.0])
    store.write_json(paths.plan_json(SWEEP), plan_of([60.0, 60.0, None]))
    shown = CliRunner().invoke(cli.app, ["status", "--store", str(store.root)]).output
    header, row = [line.split() for line in shown.splitlines()[-2:]]
    assert header == ["sweep", "runs", "done", "begun", "shorter", "failed", "blocked", "to", "do"]
    assert row == [SWEEP, "4", "0", "0", "0", "1", "2", "1"]


def test_a_damaged_plan_hides_no_other_sweep(store: Store) -> None:
    store.write_json(paths.plan_json(SWEEP), plan_of([None]))
    store.write_bytes(paths.plan_json("broken"), b"garbage")
    ended = CliRunner().invoke(cli.app, ["status", "--store", str(store.root)])
    lines = [line.split() for line in ended.output.splitlines()]
    assert ["broken", "damaged"] in lines
    assert [SWEEP, "1", "0", "0", "0", "0", "0", "1"] in lines
    assert isinstance(ended.exception, UserError)
    assert "damaged: sweeps/broken/plan.json" in str(ended.exception)


def test_a_pilot_whose_teachers_are_not_measured(store: Store) -> None:
    """It asks for no student yet; that is not the same as nothing to do."""
    plan = {"points": [], "scale": {"name": "pilot", "notes": [MAPPED_LATER], "steps": {}}}
    store.write_json(paths.plan_json("small-pilot"), plan)
    shown = CliRunner().invoke(cli.app, ["status", "--store", str(store.root)]).output
    assert shown.splitlines()[-1] == f"small-pilot: {MAPPED_LATER}"


class TestUi:
    @pytest.fixture
    def started(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """Command lines that took the process's place."""
        found: list[list[str]] = []
        monkeypatch.setattr(cli.os, "execv", lambda program, arguments: found.append(arguments))
        return found

    def call(self, store: Store, *options: str) -> str:
        ended = CliRunner().invoke(cli.app, ["ui", "--store", str(store.root), *options])
        assert ended.exit_code == 0, ended.output
        return ended.output

    def test_the_stores_own(self, store: Store, started: list[list[str]]) -> None:
        store.root.mkdir()
        assert "http://127.0.0.1:5000" in self.call(store)
        ((program, *arguments),) = started
        assert program == sys.executable
        assert f"sqlite:///{store.root}/mlflow.db" in arguments

    def test_no_folder_is_made_for_a_store_that_is_not_there(
        self, store: Store, started: list[list[str]]
    ) -> None:
        ended = CliRunner().invoke(cli.app, ["ui", "--store", str(store.root)])
        assert isinstance(ended.exception, UserError)
        assert "there is no store at" in str(ended.exception)
        assert not started
        assert not store.root.exists()

    def test_another_database(self, store: Store, started: list[list[str]]) -> None:
        self.call(store, "--tracking-uri", "sqlite:////elsewhere.db")
        assert "sqlite:////elsewhere.db" in started[0]

    @pytest.mark.parametrize("given", ["option", "environment"])
    def test_a_server_has_its_own(
        self, store: Store, started: list[list[str]], monkeypatch: pytest.MonkeyPatch, given: str
    ) -> None:
        address = "https://me:secret@server:5000"
        if given == "environment":
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            said = self.call(store)
        else:
            said = self.call(store, "--tracking-uri", address)
        assert "https://server:5000" in said
        assert "secret" not in said
        assert not started
