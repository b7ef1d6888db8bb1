"""Pilots whose teachers are measured: teachers first, then the columns that they can fill."""

from __future__ import annotations

import dataclasses
import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from orchestrator import cli, paths, publishing, sweeping
from orchestrator.asked import Asked, read_asked
from orchestrator.budget import Limit
from orchestrator.driver import DriveOptions, Outcome
from orchestrator.errors import RunsFailedError, UserError
from orchestrator.ledger import State
from orchestrator.listener import Listener
from orchestrator.measure import bind_presets, measuring_plan
from orchestrator.plan import Plan
from orchestrator.settings import INDEX
from orchestrator.spec import Sweep
from orchestrator.store import Store
from orchestrator.sweeping import run_sweeps
from orchestrator.units import Held, HeldSnapshot, Unit
from tests.driving import TINY, digits_store, drive_here, facts
from tests.sweep_files import write

NOMINAL = TINY.replace("max_steps: 300", "max_steps: 9000")
SWEEP = NOMINAL + "grids: [{axes: {strategy: [A, B, C], teacher.accuracy: %s, seed: [0]}}]\n"
REPORT = "report: [{table: t, rows: [strategy], columns: [teacher.accuracy]}]\n"
SCALE = """\
name: pilot
max_steps: 5
teacher: {max_steps: 45, validate_every: 5}
teacher_accuracy: measured
"""


class Drives:
    """Stands for `driver.drive`: everything in this process. plans: what was driven, in order.
    interrupted: a person stops it at once."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self.interrupted = False

    def __call__(
        self,
        plan: Plan,
        store: Store,
        options: DriveOptions,
        progress: Any,
        listeners: Sequence[Listener],
        lost: threading.Event,
        limit: Limit | None = None,
        *,
        driver: str,
    ) -> Outcome:
        assert driver
        self.plans.append(plan)
        if self.interrupted:
            return Outcome(failed=[], blocked=[], interrupted=True, stopped_early=None, left=1)
        ledger = drive_here(plan, store, *listeners).ledger
        return Outcome(
            failed=ledger.in_state(State.FAILED),
            blocked=ledger.in_state(State.BLOCKED),
            interrupted=False,
            stopped_early=None,
            left=0,
        )


@pytest.fixture
def drives(monkeypatch: pytest.MonkeyPatch) -> Drives:
    def no_tracker(*arguments: object) -> None:
        raise UserError("no MLflow here")

    made = Drives()
    monkeypatch.setattr(sweeping, "drive", made)
    monkeypatch.setattr(sweeping, "Tracker", no_tracker)
    monkeypatch.setattr(publishing, "Tracker", no_tracker)
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return digits_store(tmp_path / "store")


def asked(folder: Path, presets: str = "[20, 99]", text: str = SWEEP + REPORT) -> Asked:
    scale = write(folder, SCALE, "scale.yaml")
    return Asked(files=[str(write(folder, text % presets))], scale=str(scale))


def run(asked: Asked, store: Store) -> str:
    out = io.StringIO()
    console = Console(file=out, width=200)
    run_sweeps(asked, store, DriveOptions(), console, tracking_uri=None)
    return out.getvalue()


def kinds(plan: Plan) -> set[str]:
    return {unit.kind for unit in plan.left}


def document(store: Store, sweep: str = "tiny-pilot") -> dict[str, Any]:
    found = store.read_json(paths.plan_json(sweep))
    assert found is not None
    return found


def columns(plan: dict[str, Any]) -> dict[float, float | None]:
    """Actual preset by nominal one, of all points with a teacher; None where there is no run."""
    found: dict[float, float | None] = {}
    for point in plan["points"]:
        settings = plan["settings"] | point["settings"]
        nominal = settings["teacher.accuracy"]
        if nominal is None:
            continue
        its = point["actual"].get("teacher.accuracy", nominal) if point["run"] else None
        assert found.setdefault(nominal, its) == its
    return found


def reached_of(store: Store, teacher: Unit) -> list[float]:
    """Of the presets that it was asked for; standard ones that it passed are harvested too."""
    found = map(float, facts(store, teacher.name)["presets"])
    return sorted(set(found) & set(teacher.request.presets))


def test_teachers_first_then_what_they_can_teach(
    drives: Drives, store: Store, tmp_path: Path
) -> None:
    run(asked(tmp_path), store)
    teachers, students = drives.plans
    assert kinds(teachers) == {"teacher"}
    (teacher,) = teachers.units
    assert teacher.request.presets == (10, 15, 20, *range(25, 100, 5), 99)
    assert teacher.request.horizon == 45
    assert facts(store, teacher.name)["missing"][-1] == 99
    assert not store.exists(paths.failure(teacher.name))
    assert "teacher" not in kinds(students)
    plan = document(store)
    mapped = columns(plan)
    reached = reached_of(store, teacher)
    assert mapped == {20: reached[-2], 99: reached[-1]}
    for point in plan["points"]:
        result = facts(store, point["run"])
        assert result["horizon"] == point["actual"]["horizon"] == 5
    notes = plan["scale"]["notes"]
    low = "20%" if reached[-2] == 20 else f"20% is {reached[-2]:g}%"  # the CPU decides
    assert notes[-1] == f"{teacher.label}: {low}, 99% is {reached[-1]:g}%"


def test_running_again_does_nothing(drives: Drives, store: Store, tmp_path: Path) -> None:
    run(asked(tmp_path), store)
    before = document(store)
    assert "nothing to train" in run(asked(tmp_path), store)
    assert len(drives.plans) == 2
    assert document(store) == before


def test_columns_without_a_place_stay_empty(drives: Drives, store: Store, tmp_path: Path) -> None:
    few = SCALE.replace("max_steps: 45", "max_steps: 1").replace("every: 5", "every: 1")
    request = asked(tmp_path, "[40, 60, 80, 90, 95, 97, 99]")
    write(tmp_path, few, "scale.yaml")
    text = run(request, store)  # and raises nothing: exit status 0
    mapped = columns(document(store))
    assert mapped[99] is None
    places = [its for its in mapped.values() if its is not None]
    assert places == sorted(set(places))
    assert list(mapped.values()) == [*places, *[None] * (7 - len(places))]
    empty = [point for point in document(store)["points"] if point["run"] is None]
    assert all(point["snapshot"] is None for point in empty)
    assert all(point["actual"] == {"horizon": 5} for point in empty)
    assert "out of reach" in document(store)["scale"]["notes"][-1]
    assert "report: " in text
    shown = CliRunner().invoke(cli.app, ["status", "--store", str(store.root)])
    assert shown.exit_code == 0, shown.output


def test_presets_that_were_reached_are_themselves(
    drives: Drives, store: Store, tmp_path: Path
) -> None:
    request = asked(tmp_path, "[20, 30]")
    write(tmp_path, SCALE.replace("max_steps: 45", "max_steps: 300"), "scale.yaml")
    run(request, store)
    assert columns(document(store)) == {20: 20, 30: 30}


def test_a_teacher_of_two_sweeps_is_measured_once(
    drives: Drives, store: Store, tmp_path: Path
) -> None:
    one = asked(tmp_path, "[20, 60]")
    two = write(tmp_path, (SWEEP + REPORT).replace("tiny", "other") % "[20, 99]", "other.yaml")
    run(Asked(files=[*one.files, str(two)], scale=one.scale), store)
    (teacher,) = drives.plans[0].units
    assert teacher.sweeps == ("tiny-pilot", "other-pilot")
    assert teacher.request.presets[-1] == 99
    reached = reached_of(store, teacher)
    assert columns(document(store, "other-pilot")) == {20: reached[-2], 99: reached[-1]}


def test_a_limit_measures_and_maps_the_whole_sweep(
    drives: Drives, store: Store, tmp_path: Path
) -> None:
    whole = asked(tmp_path)
    limits = ["strategy=B", "teacher.accuracy=20"]
    run(dataclasses.replace(whole, limits=limits), store)
    assert drives.plans[0].units[0].request.presets[-1] == 99
    assert len(drives.plans[1].of_kind("student")) == 1
    before = document(store)
    run(whole, store)
    assert document(store) == before
    assert kinds(drives.plans[2]) == {"student", "targets"}


def test_a_limit_to_one_sweep_measures_for_the_others_too(
    drives: Drives, store: Store, tmp_path: Path
) -> None:
    one = asked(tmp_path, "[20, 60]")
    two = (SWEEP + REPORT).replace("tiny", "other").replace("[A, B, C]", "[C]") % "[20, 99]"
    files = [*one.files, str(write(tmp_path, two, "other.yaml"))]
    both = dataclasses.replace(one, files=files)
    run(dataclasses.replace(both, limits=["strategy=B"]), store)
    assert drives.plans[0].units[0].request.presets[-1] == 99
    assert None not in columns(document(store)).values()
    run(both, store)
    assert all("teacher" not in kinds(plan) for plan in drives.plans[1:])


def test_nothing_is_measured_for_strategy_a(drives: Drives, store: Store, tmp_path: Path) -> None:
    whole = asked(tmp_path)
    run(Asked(files=whole.files, scale=whole.scale, limits=["strategy=A"]), store)
    (plan,) = drives.plans
    assert kinds(plan) == {"student"}
    assert columns(document(store)) == {20: None, 99: None}
    assert "once they are measured" in document(store)["scale"]["notes"][-1]


def test_an_interrupted_measurement_trains_no_student(
    drives: Drives, store: Store, tmp_path: Path
) -> None:
    drives.interrupted = True
    with pytest.raises(sweeping.InterruptedByUser):
        run(asked(tmp_path), store)
    assert len(drives.plans) == 1
    assert columns(document(store)) == {20: None, 99: None}
    drives.interrupted = False
    run(asked(tmp_path), store)
    assert None not in columns(document(store)).values()


def test_a_teacher_that_breaks_is_a_failure(
    drives: Drives, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.worker.train_teacher", broken)
        with pytest.raises(RunsFailedError, match="1 failed"):
            run(asked(tmp_path), store)
    assert kinds(drives.plans[1]) == {"student"}  # strategy A, which needs no teacher
    run(asked(tmp_path), store)
    assert None not in columns(document(store)).values()


# -- plan ------------------------------------------------------------------------------------------


def test_plan_before_and_after_measuring(drives: Drives, store: Store, tmp_path: Path) -> None:
    request = asked(tmp_path)
    arguments = ["plan", *request.files, "--scale", str(request.scale), "--store", str(store.root)]
    before = CliRunner().invoke(cli.app, arguments).output
    assert "mapped onto what the teachers reach, once they are measured" in before
    assert "1 teacher, 5 students" in before  # as if every column had its place
    run(request, store)
    after = CliRunner().invoke(cli.app, arguments).output
    assert "once they are measured" not in after
    assert "99% is " in after
    assert "nothing: the store holds everything" in after


def test_the_report_of_a_pilot_by_its_sweeps_name(
    drives: Drives, store: Store, tmp_path: Path
) -> None:
    request = asked(tmp_path)
    run(request, store)
    arguments = ["report", "tiny", "--scale", str(request.scale), "--store", str(store.root)]
    ended = CliRunner().invoke(cli.app, arguments)
    assert ended.exit_code == 0, ended.output
    assert "### t (pilot)" in ended.output
    absent = CliRunner().invoke(cli.app, [*arguments[:1], "other", *arguments[2:]])
    assert "no sweep 'other-pilot'" in str(absent.exception)


# -- without training ------------------------------------------------------------------------------


def scaled(folder: Path, presets: str) -> tuple[list[Sweep], Any]:
    sweeps, infos, _ = read_asked(asked(folder, presets), Store(folder / "none"))
    return sweeps, infos


def held(*presets: float, complete: bool = True) -> Held:
    snapshot = HeldSnapshot(step=1, accuracy=1.0, alpha=1.0, digest="0")
    return Held(
        complete=complete,
        horizon=45,
        searched_to=45,
        presets=dict.fromkeys(presets, snapshot),
        missing=tuple(float(preset) for preset in range(100) if preset not in presets),
        validate_every=5,
    )


def test_a_search_that_is_not_over_maps_nothing(tmp_path: Path) -> None:
    sweeps, infos = scaled(tmp_path, "[20, 99]")
    (teacher,) = measuring_plan(sweeps, infos).units
    partly = measuring_plan(sweeps, infos, {teacher.name: held(20.0, complete=False)})
    (bound,) = bind_presets(sweeps, partly, assume=False)
    assert bound.scaling is not None
    assert [bound.scaling.actual(point) is None for point in bound.points] == [False, *[True] * 4]
    (assumed,) = bind_presets(sweeps, partly, assume=True)
    assert assumed.scaling is not None
    slot = INDEX["teacher.accuracy"]
    found = [assumed.scaling.actual(point) for point in assumed.points]
    assert [point[slot] for point in found if point] == [None, 20, 99, 20, 99]


def test_a_record_without_weights_counts_as_reached(tmp_path: Path) -> None:
    sweeps, infos = scaled(tmp_path, "[20, 30]")
    (teacher,) = measuring_plan(sweeps, infos).units
    known = held(*teacher.request.presets)
    known = dataclasses.replace(known, weightless=frozenset(known.presets))
    assert not measuring_plan(sweeps, infos, {teacher.name: known}).left
