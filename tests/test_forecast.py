"""What a budget would fill: a schedule by measured paces, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.admission import Shape
from orchestrator.budget import Limit
from orchestrator.estimate import group_of
from orchestrator.forecast import Forecast, Setting, forecast
from orchestrator.forecastview import expect
from orchestrator.ledger import Task
from orchestrator.overheads import Overheads
from orchestrator.rates import Rates
from tests.driving import TINY, tiny_plan
from tests.ledgers import Fake
from tests.test_timebox import GRID
from trainers.data.catalogue import OFFICIAL


def forecast_of(
    *tasks: Fake,
    total_s: float,
    devices: float = 1.0,
    seconds: Callable[[Task], float | None] = lambda task: task.cost,
    means: dict[str, set[str]] | None = None,
    is_search: Callable[[Task], bool] = lambda task: False,
    **options: object,
) -> Forecast:
    setting = Setting(
        limit=Limit(total_s=total_s, end_s=total_s),
        opening_s=10.0,
        devices=devices,
        seconds=seconds,
        saves=lambda task: not task.name.startswith("targets"),
        shape_of=lambda task: Shape(),
        is_search=is_search,
    )
    every = means if means is not None else {task.name: {task.name} for task in tasks}
    return forecast(tasks, setting, priorities={}, means=every, **options)  # type: ignore[arg-type]


def test_what_fits_is_done_and_the_rest_is_left() -> None:
    found = forecast_of(*(Fake(name, cost=30) for name in "abcd"), total_s=110)
    assert found.done == ("a", "b")
    assert (dict(found.cut_off), found.left, found.unknown) == ({}, 2, 0)
    assert found.ends_s == pytest.approx(71)


def test_what_makes_progress_is_begun_and_cut_off() -> None:
    found = forecast_of(Fake("long", cost=200), total_s=130.5)
    assert found.cut_off == {"long": 0.5}
    assert (found.done, found.left) == ((), 0)
    assert found.ends_s == 110.5


def test_snapshots_free_their_students_on_the_way() -> None:
    teacher = Fake("teacher", provides=("t/1", "t/2"), cost=40)
    early, late = Fake("early", needs=("t/1",), cost=15), Fake("late", needs=("t/2",), cost=15)
    found = forecast_of(teacher, late, early, total_s=85, devices=2)
    assert found.done == ("early", "teacher")
    assert forecast_of(teacher, late, early, total_s=92, devices=2).done == (
        "early",
        "teacher",
        "late",
    )


def test_nothing_is_said_of_what_has_no_pace() -> None:
    tasks = [Fake("known"), Fake("unknown"), Fake("after", needs=("x",))]
    found = forecast_of(
        *tasks,
        total_s=300,
        seconds=lambda task: None if task.name == "unknown" else 10.0,
        held=("x",),
    )
    assert set(found.done) == {"known", "after"}
    assert (found.left, found.unknown) == (1, 1)


def test_means_count_what_the_store_has() -> None:
    means = {"x": {"x0", "x1"}, "y": {"y0", "y1"}, "z": {"z0"}}
    tasks = [Fake("y0", cost=30), Fake("y1", cost=30), Fake("x1", cost=30)]
    found = forecast_of(*tasks, total_s=110, means=means, done_before={"x0"})
    assert found.done == ("x1", "y0")  # the mean that lacks one goes first
    assert (found.means.complete, found.means.partly, found.means.untouched) == (1, 1, 1)
    assert json.loads(json.dumps(found.to_json()))["settings"] == {
        "complete": 1,
        "in_part": 1,
        "untouched": 1,
    }


# -- of a plan -------------------------------------------------------------------------------------


def test_a_plan_in_words(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, text=TINY + GRID)
    groups = {group_of(unit, OFFICIAL) for unit in plan.units if unit.kind != "targets"}
    rates = Rates(runs=dict.fromkeys(groups, 2.0))  # 20 steps take 10 s; the teacher's 300, 150
    measured = Overheads(opening_s=10.0, closing_s=8.0)
    found = expect(plan, rates, measured, 100.0, gpus=("a GPU",))
    text = "\n".join(found.lines())
    assert "budget 1 min 40 s: 10 s to begin and 20 s to end (as the last run here took)" in text
    assert "1 min 10 s of training, 1 at once" in text
    whole = expect(plan, rates, measured, 3600.0, gpus=("a GPU",)).forecast
    assert set(whole.done) == {unit.name for unit in plan.left}
    assert whole.means.complete == whole.means.total == len(plan.means)
    assert "1 teachers count as 10,000 steps at most" in text
    assert found.to_json()["seconds"] == 100


def test_a_search_with_time_for_its_steps_alone_is_begun_last() -> None:
    tasks = [Fake("teacher", cost=60), Fake("student", cost=50)]
    found = forecast_of(*tasks, total_s=140, is_search=lambda task: task.name == "teacher")
    assert found.done[0] == "student"
    assert forecast_of(*tasks, total_s=140).done[0] == "teacher"


def test_a_plan_without_a_pace_says_how_to_get_one(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path)
    text = "\n".join(expect(plan, Rates(), Overheads(), 600.0, gpus=()).lines())
    assert "never measured here" in text
    assert "`--calibrate` measures it here" in text
