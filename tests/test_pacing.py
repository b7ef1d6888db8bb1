"""How long units will take: by what was measured before, corrected by what trials say."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.budget import Chance, Limit
from orchestrator.estimate import Pace, group_of
from orchestrator.pacing import Pacing
from orchestrator.plan import Plan
from orchestrator.rates import Rates
from orchestrator.timebox import Timebox
from orchestrator.units import Work, cost_left
from tests.driving import GRID, TINY, tiny_plan, unit_of
from trainers.data.catalogue import OFFICIAL


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return tiny_plan(tmp_path)


def pacing_of(plan: Plan, **steps_per_s: float) -> Pacing:
    """steps_per_s: of whole runs that the store holds, by strategy."""
    groups = {group_of(unit, OFFICIAL): unit for unit in plan.units if unit.kind != "targets"}
    rates = Rates(
        runs={
            group: steps_per_s[group.strategy] for group in groups if group.strategy in steps_per_s
        }
    )
    steps = {unit.name: cost_left(unit, plan.work[unit.name]) for unit in plan.left}
    return Pacing(Pace(rates, OFFICIAL), OFFICIAL, steps)


def test_nothing_is_guessed(plan: Plan) -> None:
    assert pacing_of(plan).seconds(unit_of(plan, "A")) is None
    assert pacing_of(plan, A=2.0).seconds(unit_of(plan, "A")) == 10


def test_what_a_trial_reports_goes_before_what_was_measured(plan: Plan) -> None:
    pacing, a = pacing_of(plan, A=2.0), unit_of(plan, "A")
    pacing.began(a, 1, now=100.0)
    pacing.at(a.name, 4, now=104.0)
    assert pacing.seconds(a) == 10  # four seconds say little yet
    pacing.at(a.name, 5, now=120.0)
    assert pacing.seconds(a) == 80  # 20 steps of 4 s


def test_a_resumed_run_is_paced_by_the_steps_of_this_attempt(plan: Plan) -> None:
    pacing, a = pacing_of(plan), unit_of(plan, "A")
    pacing.began(a, 11, now=0.0)
    pacing.at(a.name, 20, now=10.0)
    pacing.ended(a.name, 12.0, well=True)
    assert pacing.seconds(a) == pytest.approx(24)


def test_a_kind_that_was_not_seen_takes_the_correction_of_those_that_were(plan: Plan) -> None:
    pacing, a, b = pacing_of(plan, A=2.0, B=1.0), unit_of(plan, "A"), unit_of(plan, "B t20")
    assert pacing.seconds(b) == 20
    pacing.began(a, 1, now=0.0)
    pacing.at(a.name, 20, now=30.0)  # three times as long as expected: two runs share the device
    pacing.ended(a.name, 30.0, well=True)
    assert pacing.seconds(b) == 60


def test_without_an_earlier_pace_siblings_give_theirs(plan: Plan) -> None:
    pacing, a, b = pacing_of(plan), unit_of(plan, "A"), unit_of(plan, "B t20")
    pacing.began(a, 1, now=0.0)
    pacing.at(a.name, 20, now=30.0)
    assert pacing.seconds(b) == 30


def test_an_attempt_that_failed_at_once_says_nothing(plan: Plan) -> None:
    pacing, a = pacing_of(plan), unit_of(plan, "A")
    pacing.began(a, 1, now=0.0)
    pacing.ended(a.name, 100.0, well=False)
    assert pacing.seconds(a) is None


def test_files_for_others_take_as_long_as_the_slowest_before(plan: Plan) -> None:
    """Before one was seen: as training on all images, which is more than evaluating them."""
    pacing, a = pacing_of(plan), unit_of(plan, "A")
    first, second = plan.of_kind("targets")
    assert pacing.seconds(first) is None
    pacing.began(a, 1, now=0.0)
    pacing.at(a.name, 10, now=16.0)  # batches of 32: 0.05 s an image
    assert pacing.seconds(first) == pytest.approx(0.05 * OFFICIAL["digits"].num_train)
    for unit, seconds in ((first, 7.0), (second, 3.0)):
        pacing.began(unit, 0, now=0.0)
        pacing.at(unit.name, 0, now=1.0)
        pacing.ended(unit.name, seconds, well=True)
    assert pacing.seconds(first) == 7


# -- the limit over it -----------------------------------------------------------------------------


def timebox_of(plan: Plan, total_s: float, **steps_per_s: float) -> Timebox:
    limit = Limit(total_s=total_s, end_s=total_s)
    return Timebox(limit, pacing_of(plan, **steps_per_s), {unit.name: unit for unit in plan.units})


def test_what_may_begin_changes_with_what_trials_say(plan: Plan) -> None:
    box, a, b = timebox_of(plan, 100.0, A=1.0, B=1.0), unit_of(plan, "A"), unit_of(plan, "B t20")
    assert box.admit(0.0)(b.name) is Chance.ENDS  # 20 s within 80, less what it takes to start
    box.taken(a.name, 0.0)
    box.began(a, 1, 30.0)
    assert box.admit(31.0)(b.name) is Chance.NONE  # if the next one starts as slowly
    box.taken(b.name, 31.0)
    box.began(b, 1, 31.0)
    assert box.admit(31.0)(b.name) is Chance.ENDS  # 15 s at the median
    box.at(a.name, 5, 50.0)
    assert box.admit(50.0)(b.name) is Chance.NONE  # 4 s a step, not 1


def test_a_teacher_that_may_search_on_does_not_count_as_one_that_ends(plan: Plan) -> None:
    (teacher,), a = plan.of_kind("teacher"), unit_of(plan, "A")
    assert teacher.request.horizon == 300
    box = timebox_of(plan, 1000.0, A=0.05, teacher=0.5)
    assert box.admit(0.0)(a.name) is Chance.ENDS  # 400 s
    assert box.admit(0.0)(teacher.name) is Chance.PROGRESSES  # 600 s


def test_the_steps_at_which_runs_were_saved_are_known(plan: Plan) -> None:
    box, a, b = timebox_of(plan, 100.0), unit_of(plan, "A"), unit_of(plan, "B t20")
    for unit in (a, b):
        box.taken(unit.name, 0.0)
        box.began(unit, 1, 1.0)
    assert (box.is_over(79.0), box.must_leave(79.0)) == (False, False)
    assert (box.is_over(80.0), box.must_leave(80.0)) == (True, False)
    assert box.must_leave(88.0)
    box.spent = True
    box.ended(a.name, 12, 81.0, reason="stopped")
    box.ended(b.name, 20, 81.0, reason="done")
    assert box.cut_off == {a.name: 12}


# -- what a search counts as -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("from_step", "steps"),
    [(0, 10_000), (4_000, 6_000), (9_999, 5_000), (30_000, 5_000), (99_000, 1_000)],
)
def test_a_search_that_goes_on_has_the_rest_but_half_at_least(
    tmp_path: Path, from_step: int, steps: float
) -> None:
    plan = tiny_plan(tmp_path, text=TINY.replace("300", "100000") + GRID)
    (teacher,) = plan.of_kind("teacher")
    work = Work(action="resume", from_step=from_step, steps=100_000 - from_step)
    assert cost_left(teacher, work) == steps


def test_a_plan_and_a_run_count_a_teacher_alike(tmp_path: Path) -> None:
    """The plan's hours once had a thousand steps where the time left had ten thousand."""
    plan = tiny_plan(tmp_path, text=TINY.replace("300", "100000") + GRID)
    (teacher,) = plan.of_kind("teacher")
    rates = Rates(runs={group_of(teacher, OFFICIAL): 1.0})
    assert Pace(rates, OFFICIAL).seconds(teacher, 100_000) == teacher.cost == 10_000
