"""Bundles in stores that have something already, and what is done with them later."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dashboards.report import write_report
from orchestrator import cli, paths
from orchestrator.bundle import machine_name
from orchestrator.bundlefile import read_pack
from orchestrator.bundleimport import import_bundles
from orchestrator.errors import StoreInUseError
from orchestrator.inventory import read_inventory
from orchestrator.lease import Lease
from orchestrator.listener import Listener
from orchestrator.plan import Plan
from orchestrator.runrecord import RunRecord, read_record
from orchestrator.store import Store
from orchestrator.tracking_view import view
from tests.bundle_stores import (
    NAME,
    SWEEP,
    bent,
    bring,
    copy_of,
    names,
    reference,
    reference_bundle,
    shortened,
    tree,
    with_cell,
)
from tests.driving import digests, digits_store, drive_here, facts, numbers, rows_of, tiny_plan


@pytest.fixture
def finished() -> Store:
    return reference()


@pytest.fixture
def whole() -> str:
    """The bundle of everything; not to be changed."""
    return reference_bundle()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "elsewhere")


# -- what the store has already ------------------------------------------------------------------


def test_other_numbers_are_shown_and_not_written(
    finished: Store, whole: str, tmp_path: Path
) -> None:
    ours = copy_of(finished, tmp_path / "ours")
    name = names(ours, "student")[0]

    def bend(record: RunRecord) -> RunRecord:
        return with_cell(record, "correct_h", 1) if record.name == name else record

    done = bring(ours, other := bent(whole, tmp_path / "other", bend))
    assert done.runs == {"same": 7, "conflict": 1}
    assert name in done.conflicts[0]
    assert "correct_h at step 10" in done.conflicts[0]
    assert tree(ours) == tree(finished)
    ended = CliRunner().invoke(cli.app, ["store", "import", other, "--store", str(ours.root)])
    assert getattr(ended.exception, "exit_status", None) == 1
    assert "correct_h at step 10" in str(ended.exception)


def test_the_longer_record_wins_wherever_it_is(whole: str, store: Store, tmp_path: Path) -> None:
    short = bent(whole, tmp_path / "short", lambda record: shortened(record, 10))
    long = bent(
        whole,
        tmp_path / "long",
        lambda r: with_cell(r, "timestamp_ms", 7) if r.kind == "student" else r,
    )
    bring(store, short)
    name = names(store, "student")[0]
    assert facts(store, name)["horizon"] == 10
    (first,) = rows_of(store, name)
    assert bring(store, long).runs == {"grown": 6, "same": 2}
    assert facts(store, name)["horizon"] == 20
    assert rows_of(store, name)[0] == first  # with its own time stamp: MLflow has it
    assert [row["step"] for row in rows_of(store, name)] == [10, 20]
    assert bring(store, short).runs == {"same": 8}
    assert facts(store, name)["horizon"] == 20


def test_a_run_that_failed_here_is_completed(whole: str, store: Store) -> None:
    bring(store, whole)
    name = names(store, "student")[0]
    store.delete(paths.result(name))
    store.write_json(paths.failure(name), {"cause": "error"})
    bring(store, whole)
    assert not store.exists(paths.failure(name))
    assert facts(store, name)["status"] == "complete"


def test_a_store_that_is_driven_is_left_alone(whole: str, store: Store) -> None:
    with Lease(store, "targetsweep run"):
        with pytest.raises(StoreInUseError):
            import_bundles(store, [whole])
        assert not store.list(paths.runs_dir())


# -- going on from it ----------------------------------------------------------------------------


@pytest.fixture
def digits(whole: str, tmp_path: Path) -> Store:
    """A store with the data set and everything imported, but no weights."""
    found = digits_store(tmp_path / "digits")
    bring(found, whole)
    return found


class Warned(Listener):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warned(self, message: str) -> None:
        self.lines.append(message)


def plan_with(tmp_path: Path, store: Store, old: str, new: str) -> Plan:
    assert old in SWEEP
    return tiny_plan(tmp_path, store, text=SWEEP.replace(old, new))


def test_imported_runs_are_done(digits: Store, tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, digits, text=SWEEP)
    assert plan.left == []
    teacher, targets = plan.of_kind("teacher")[0], plan.of_kind("targets")[0]
    assert plan.work[teacher.name].action == "unneeded"
    assert plan.work[targets.name].action == "unneeded"
    assert plan.held_tokens == frozenset()


def test_a_new_student_has_its_teacher_trained_again(
    finished: Store, digits: Store, tmp_path: Path
) -> None:
    plan = plan_with(tmp_path, digits, "seed: [0, 1]", "seed: [0, 1, 2]")
    (teacher,) = plan.of_kind("teacher")
    work = plan.work[teacher.name]
    assert (work.action, work.from_step, work.missing_presets) == ("replay", 0, (20.0,))
    assert len(plan.left) == 1 + 1 + 3
    imported, heard = digests(digits, teacher.name), Warned()
    rows = rows_of(digits, teacher.name)
    conductor = drive_here(plan, digits, heard)
    assert not [e for e in conductor.ledger.entries.values() if e.attempts.failures]
    assert digests(digits, teacher.name) == imported == digests(finished, teacher.name)
    assert repr(rows_of(digits, teacher.name)[: len(rows)]) == repr(rows)  # NaN equals nothing
    assert heard.lines == []
    held = read_inventory(digits, plan.units)
    assert plan.subtract(held).left == []


def test_longer_runs_start_at_the_beginning(digits: Store, tmp_path: Path) -> None:
    plan = plan_with(tmp_path, digits, "steps: 20", "steps: 30")
    (unit, *_) = [unit for unit in plan.of_kind("student") if unit.label.startswith("A")]
    work = plan.work[unit.name]
    assert (work.action, work.from_step, work.steps) == ("extend", 0, 30)
    before, heard = rows_of(digits, unit.name), Warned()
    drive_here(plan, digits, heard)
    assert heard.lines == []
    rows = rows_of(digits, unit.name)
    assert rows[: len(before)] == before
    assert rows[-1]["step"] == 30


def test_a_warning_where_the_machines_do_not_agree(
    digits: Store, whole: str, tmp_path: Path
) -> None:
    """Rows and snapshots as another device would have made them."""
    store = digits_store(tmp_path / "other")

    def bend(record: RunRecord) -> RunRecord | None:
        if record.kind == "teacher":
            (found,) = [one for preset, one in record.snapshots.items() if preset == "20"]
            return replace(record, snapshots={"20": {**found, "digest": "e" * 64}})
        return with_cell(record, "train_ce", 0.5) if record.kind == "student" else None

    bring(store, bent(whole, tmp_path / "bent", bend))
    plan = plan_with(tmp_path, store, "steps: 20", "steps: 30")
    heard = Warned()
    drive_here(plan, store, heard)
    students = names(store, "student")
    assert sum("train_ce" in line for line in heard.lines) == len(students)
    assert sum("snapshot acc-20 is not the one recorded" in line for line in heard.lines) == 1
    assert all(rows_of(store, name)[0]["train_ce"] == 0.5 for name in students)


def test_other_weights_behind_students_are_noted(
    finished: Store, whole: str, tmp_path: Path
) -> None:
    ours = copy_of(finished, tmp_path / "ours")
    (teacher,) = names(ours, "teacher")
    for file in ours.list(paths.snapshots_dir(teacher)):
        if file.endswith(".json"):
            rel = f"{paths.snapshots_dir(teacher)}/{file}"
            ours.write_json(rel, (ours.read_json(rel) or {}) | {"digest": "e" * 64})
    done = bring(ours, whole)
    assert done.runs == {"conflict": 1, "same": 7}
    assert "digest of snapshot" in done.conflicts[0]
    assert done.notes[0].startswith("4 students learnt from snapshots that differ")


# -- where it came from --------------------------------------------------------------------------


def test_an_imported_run_remembers_its_bundle(whole: str, store: Store) -> None:
    bring(store, whole)
    name = names(store, "student")[0]
    content = store.read_json(paths.imported_json(name)) or {}
    (entry,) = content["bundles"]
    assert entry["bundle"] == read_pack(whole).digest
    assert (entry["brought"], entry["horizon"]) == ("new", 20)
    assert entry["environment"]["precision"] == "fp32"
    assert entry["environment"]["hardware"]


def test_the_reports_provenance_names_the_hardware(whole: str, store: Store) -> None:
    bring(store, whole)
    index = Path(write_report(store.uri, NAME).index)
    found = json.loads((index.parent / "provenance.json").read_text())
    environments = [one["environment"] for one in found["environments"]]
    assert {one["precision"] for one in environments} == {"fp32"}
    assert {one["hostname"] for one in environments} == {machine_name(socket.gethostname())}
    assert all(one["hardware"] and one["cpus"] == os.cpu_count() for one in environments)


def test_mlflow_sees_a_finished_run(finished: Store, whole: str, store: Store) -> None:
    bring(store, whole)
    for name in [*names(store, "student"), *names(store, "teacher")]:
        here, there = view(store, name, live=False), view(finished, name, live=False)
        assert here is not None
        assert there is not None
        assert here.status == "FINISHED"
        assert (here.points, here.params, here.rows) == (there.points, there.params, there.rows)


def test_the_commands(finished: Store, tmp_path: Path) -> None:
    out, place = str(tmp_path / "out"), str(tmp_path / "place")
    for arguments, said in [
        (["export", "--out", out, "--sweep", NAME, "--store", finished.uri], "6 student"),
        (["import", out, "--store", place], "runs: 8 new"),
        (["import", out, "--store", place], "runs: 8 there already"),
    ]:
        ended = CliRunner().invoke(cli.app, ["store", *arguments])
        assert ended.exit_code == 0, ended.output
        assert said in ended.output
    record = read_record(Store(place), names(Store(place), "student")[0])
    assert record is not None
    assert numbers(Store(place), record.name) == numbers(finished, record.name)
