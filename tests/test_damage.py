"""Damage of every kind of file is noticed, named, set aside and made again, and no number changes.

Driven without Ray, as `run` does it: an inventory that mends, a plan, and rounds until nothing
waits for files that were found damaged meanwhile.
"""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from rich.console import Console

from orchestrator import paths
from orchestrator.damage import Mender, damage_text, refuse_unsealed
from orchestrator.driver import Outcome
from orchestrator.errors import DamagedFileError, StoreError
from orchestrator.inventory import read_inventory
from orchestrator.ledger import State
from orchestrator.plan import Plan
from orchestrator.redo import ROUNDS, drive_until_sound
from orchestrator.store import Store
from orchestrator.units import Unit
from orchestrator.worker import execute
from tests.driving import (
    EVERY_STEP,
    RUNTIME,
    conductor_of,
    digests,
    digits_store,
    drive_here,
    facts,
    numbers,
    tiny_plan,
    unit_of,
)

KINDS = ("teacher", "student", "probe")
SWEEP = """\
name: tiny
title: Digits in seconds
set:
  dataset: digits
  backbone: {name: resnet18, width: 2}
  training: {steps: 12, batch_size: 32, lr: 0.01}
  teacher: {max_steps: 300}
  augmentation: none
grids:
  - axes: {strategy: [A, B, C], teacher.accuracy: [20], seed: [0]}
"""


@cache
def finished() -> Store:
    """A finished store that all tests of a process share, and none changes."""
    folder = Path(mkdtemp(prefix="targetsweep-test-"))
    store = digits_store(folder / "store")
    drive_here(tiny_plan(folder, text=SWEEP), store)
    return store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    shutil.copytree(finished().root, tmp_path / "store")
    return Store(tmp_path / "store")


def plan_of(folder: Path) -> Plan:
    return tiny_plan(folder, text=SWEEP)


class Run:
    """`targetsweep run` without Ray: what it said, and which units it executed."""

    def __init__(self, folder: Path, store: Store, execute: Callable[..., Any] = execute) -> None:
        self.executed: list[str] = []
        self._store = store
        self._execute = execute
        self._screen = io.StringIO()
        mender = Mender(store, Console(file=self._screen, width=500))
        whole = plan_of(folder)

        def again() -> Plan:
            return whole.subtract(mender.inventory(whole.units))

        self.outcome = drive_until_sound(
            self._drive, again(), again, store, lambda line: print(line, file=self._screen)
        )

    @property
    def said(self) -> str:
        return self._screen.getvalue()

    def _drive(self, plan: Plan) -> Outcome:
        conductor = drive_here(plan, self._store, run=self._run)
        ledger = conductor.ledger
        return Outcome(
            failed=ledger.in_state(State.FAILED),
            blocked=ledger.in_state(State.BLOCKED),
            interrupted=False,
            stopped_early=None,
            left=ledger.count(State.READY) + ledger.count(State.WAITING),
            redo=tuple(entry.task.name for entry in ledger.in_state(State.REDO)),
        )

    def _run(self, store: Store, name: str, *more: Any) -> Iterator[dict[str, Any]]:
        self.executed.append(name)
        yield from self._execute(store, name, *more)


def assert_as_before(store: Store, folder: Path) -> None:
    """Every run complete, with the reference's rows and weights."""
    plan = plan_of(folder)
    for unit in plan.units:
        if unit.kind in KINDS:
            assert numbers(store, unit.name) == numbers(finished(), unit.name), unit.label
        if unit.kind == "teacher":
            assert digests(store, unit.name) == digests(finished(), unit.name)
        here, there = facts(store, unit.name), facts(finished(), unit.name)
        for field in ("key", "status", "horizon", "step", "teacher_digest", "presets"):
            assert here.get(field) == there.get(field), (unit.label, field)
    left = plan.subtract(read_inventory(store, plan.units))
    assert left.left == []


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :]


HARMS = {"cut": cut, "flipped": flip}


def harm(store: Store, rel: str, how: str, seed: int) -> None:
    """Damages a file such that its content is another one."""
    data = store.read_bytes(rel)
    changed = HARMS[how](data, random.Random(seed))
    assert changed != data
    store.write_bytes(rel, changed)


def unit(folder: Path, label: str) -> Unit:
    return unit_of(plan_of(folder), label)


def files_of(kind: str, folder: Path) -> list[str]:
    """Files of that kind in the finished store."""
    units = plan_of(folder).units
    named: dict[str, Callable[[str], str]] = {
        "result": paths.result, "metrics": paths.metrics, "run.json": paths.run_json,
        "request.json": paths.request_json,
    }  # fmt: skip
    if kind in named:
        return [named[kind](unit.name) for unit in units if unit.kind in KINDS]
    (teacher,) = [unit.name for unit in units if unit.kind == "teacher"]
    if kind == "snapshot's record":
        return [paths.snapshot_json(teacher, 20)]
    return []


# -- what the inventory reads ----------------------------------------------------------------------


@pytest.mark.parametrize("how", HARMS)
@pytest.mark.parametrize("kind", ["result", "metrics", "snapshot's record", "run.json"])
@pytest.mark.parametrize("seed", range(3))
def test_damage_of_a_finished_store_is_mended(
    kind: str, how: str, seed: int, store: Store, tmp_path: Path
) -> None:
    files = files_of(kind, tmp_path)
    rel = files[seed % len(files)]
    harm(store, rel, how, seed)
    run = Run(tmp_path, store)
    owner = rel.split("/")[1]
    if run.said:  # a flip of a blank may change nothing that is read
        assert f"damaged: {rel} (" in run.said
        assert any(rel.replace("/", "~") in name for name in store.list("damaged"))
    expected = [owner] if kind in ("result", "metrics") and run.said else []
    assert run.executed in ([], expected)
    assert_as_before(store, tmp_path)
    assert Run(tmp_path, store).executed == []


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_a_result_whose_rows_are_gone_is_none(kind: str, store: Store, tmp_path: Path) -> None:
    (first, *_) = [one for one in plan_of(tmp_path).units if one.kind == kind]
    store.delete(paths.metrics(first.name))
    run = Run(tmp_path, store)
    assert f"damaged: {paths.result(first.name)} (its rows are damaged or gone)" in run.said
    assert run.executed == [first.name]
    assert_as_before(store, tmp_path)


def test_who_only_looks_moves_nothing(store: Store, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    student = unit(tmp_path, "B t20")
    harm(store, paths.metrics(student.name), "flipped", 0)
    damaged: list[DamagedFileError] = []
    held = read_inventory(store, plan.units, damaged)
    assert plan.subtract(held).left == [student]
    lines = damage_text(damaged)
    assert f"damaged: {paths.metrics(student.name)} (its checksum does not fit)" in lines
    assert store.list("damaged") == []


# -- what only a run meets -------------------------------------------------------------------------


def begin_again(store: Store, *students: Unit) -> None:
    """As if they had never run."""
    for student in students:
        store.delete_tree(paths.run_dir(student.name))


@pytest.mark.parametrize("how", HARMS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["weights", "soft targets"])
def test_a_damaged_need_is_made_again_for_who_needs_it(
    kind: str, how: str, seed: int, store: Store, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path)
    teacher, targets = (plan.of_kind(kind)[0].name for kind in ("teacher", "targets"))
    student = unit(tmp_path, "B t20" if kind == "weights" else "C t20")
    begin_again(store, student)
    file = store.list(paths.targets_dir())[0]
    rel = paths.snapshot_weights(teacher, 20) if kind == "weights" else f"targets/{file}"
    harm(store, rel, how, seed)
    run = Run(tmp_path, store)
    assert run.outcome.failed == []
    maker = teacher if kind == "weights" else targets
    assert run.executed in ([student.name, maker, student.name], [student.name])
    if len(run.executed) > 1:
        assert [name for name in store.list("damaged") if rel.replace("/", "~") in name]
        assert "planning again" in run.said
    assert_as_before(store, tmp_path)


def test_a_vanished_need_is_made_again(store: Store, tmp_path: Path) -> None:
    """Between the plan and the run."""
    student = unit(tmp_path, "C t20")
    begin_again(store, student)
    rel = f"targets/{store.list(paths.targets_dir())[0]}"

    def thieving(of: Store, name: str, *more: Any) -> Iterator[dict[str, Any]]:
        if name == student.name and not run:
            of.delete(rel)
            run.append(name)
        yield from execute(of, name, *more)

    run: list[str] = []
    done = Run(tmp_path, store, thieving)
    assert len(done.executed) == 3
    assert_as_before(store, tmp_path)


def test_files_that_are_damaged_again_and_again_end_it(store: Store, tmp_path: Path) -> None:
    student = unit(tmp_path, "B t20")
    begin_again(store, student)
    (teacher,) = plan_of(tmp_path).of_kind("teacher")
    rel = paths.snapshot_weights(teacher.name, 20)

    def rotting(of: Store, name: str, *more: Any) -> Iterator[dict[str, Any]]:
        if name == student.name:
            harm(of, rel, "cut", 1)
        yield from execute(of, name, *more)

    run = Run(tmp_path, store, rotting)
    assert run.outcome.redo == (student.name,)
    assert run.executed.count(student.name) == ROUNDS + 1
    assert f"gave up after {ROUNDS} rounds" in run.said
    assert f"{rel}, {ROUNDS + 1} times" in run.said


# -- a run that was cut off, and meets damage of its own -------------------------------------------


def cut_off(store: Store, name: str, after: int) -> None:
    """Runs it with a checkpoint a step and stops after so many reports of checkpoints."""
    seen = 0
    for report in execute(store, name, EVERY_STEP, None, None):
        seen += report["event"] == "checkpoint"
        if seen == after:
            return


@pytest.mark.parametrize("how", HARMS)
@pytest.mark.parametrize("kind", ["checkpoint", "metrics"])
@pytest.mark.parametrize("seed", range(3))
def test_a_run_goes_on_from_what_is_sound(
    kind: str, how: str, seed: int, store: Store, tmp_path: Path
) -> None:
    student = unit(tmp_path, "B t20")
    store.delete(paths.result(student.name))
    store.delete(paths.metrics(student.name))
    store.delete_tree(paths.checkpoint_dir(student.name))
    orders = store.read_json(paths.request_json(student.name)) or {}
    store.write_json(paths.request_json(student.name), {**orders, "attempt": None})
    cut_off(store, student.name, after=8)
    (state,) = store.list(paths.checkpoint_dir(student.name))
    rel = f"{paths.checkpoint_dir(student.name)}/{state}"
    rel = rel if kind == "checkpoint" else paths.metrics(student.name)
    harm(store, rel, how, seed)
    run = Run(tmp_path, store)
    assert run.executed == [student.name]
    assert any(rel.replace("/", "~") in name for name in store.list("damaged"))
    assert_as_before(store, tmp_path)


def test_a_teachers_rows_are_made_again_up_to_where_they_were(store: Store, tmp_path: Path) -> None:
    """Also when the attempt that makes them again is cut off: its result would lie otherwise."""
    (teacher,) = plan_of(tmp_path).of_kind("teacher")
    harm(store, paths.metrics(teacher.name), "flipped", 4)
    weights = store.read_bytes(paths.snapshot_weights(teacher.name, 20))

    def mortal(of: Store, name: str, *more: Any) -> Iterator[dict[str, Any]]:
        reports = execute(of, name, EVERY_STEP, *more[1:])
        for report in reports:
            yield report
            if report["event"] == "checkpoint" and report["step"] >= 2:
                return

    plan = plan_of(tmp_path)
    mender = Mender(store, Console(file=io.StringIO()))
    conductor = conductor_of(plan.subtract(mender.inventory(plan.units)), store)
    config = conductor.next_trial()
    assert config is not None
    list(mortal(store, config["unit"], RUNTIME, None, config["attempt"]))
    assert 0 < len(numbers(store, teacher.name)) < len(numbers(finished(), teacher.name))
    assert not store.exists(paths.result(teacher.name))
    run = Run(tmp_path, store)
    assert run.executed == [teacher.name]
    assert store.read_bytes(paths.snapshot_weights(teacher.name, 20)) == weights
    assert_as_before(store, tmp_path)


# -- stores without seals --------------------------------------------------------------------------


def test_a_store_of_before_seals_is_refused_with_what_to_do(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    refuse_unsealed(store)
    store.write_bytes(paths.run_json("student-" + "0" * 16), b'{"key": "0"}')
    with pytest.raises(StoreError, match="before files carried seals") as caught:
        refuse_unsealed(store)
    assert "targetsweep store check --seal" in caught.value.remedy
    store.write_json(paths.plan_json("tiny"), {"points": []})
    refuse_unsealed(store)  # one sealed file: what has none is damaged
    store.write_bytes(paths.sealing(), b"")
    with pytest.raises(StoreError, match="before files carried seals"):
        refuse_unsealed(store)


def test_a_damaged_store_is_not_taken_for_an_old_one(store: Store, tmp_path: Path) -> None:
    for name in store.list("runs")[:2]:
        store.write_bytes(paths.result(name), b"{}")
        store.write_bytes(paths.run_json(name), b"{")
    refuse_unsealed(store)
