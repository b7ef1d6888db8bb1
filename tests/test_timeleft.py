"""How long a sweep will still take: scripted trials on a clock of the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.admission import Capacity, Shape
from orchestrator.estimate import Pace, group_of
from orchestrator.ledger import Ledger
from orchestrator.listener import Live
from orchestrator.pacing import Pacing
from orchestrator.plan import Plan
from orchestrator.rates import Rates, shipped_rates
from orchestrator.retry import Cause, Failure
from orchestrator.timeleft import Left, TimeLeft
from orchestrator.units import Unit
from tests.driving import TINY, tiny_plan, unit_of
from trainers.data.catalogue import OFFICIAL

LONG = TINY.replace("max_steps: 300", "max_steps: 100000").replace("steps: 20", "steps: 2000")
SEEDS = list(range(10))
SEARCH = f"{LONG}grids: [{{axes: {{strategy: [B], teacher.accuracy: [90], seed: {SEEDS}}}}}]\n"
ALONE = f"{LONG}grids: [{{axes: {{strategy: [A], seed: {SEEDS}}}}}]\n"


class Scene:
    """Trials that say what a test has them say; time goes on where it says so."""

    def __init__(
        self, plan: Plan, *, slots: float = 2, rates: Rates | None = None, share: float = 1.0
    ) -> None:
        self.ledger = Ledger(
            plan.left,
            Capacity(slots),
            held=plan.held_tokens,
            shape_of=lambda task: Shape(devices_per_worker=share),
        )
        costs = {name: entry.cost for name, entry in self.ledger.entries.items()}
        pacing = Pacing(
            Pace(rates or Rates(), OFFICIAL), OFFICIAL, costs, Pace(shipped_rates(), OFFICIAL)
        )
        self.time_left = TimeLeft(self.ledger, pacing)
        self.live: dict[str, Live] = {}
        self.now = 100.0

    def hand_out(self) -> Unit:
        task = self.ledger.next()
        assert isinstance(task, Unit)
        self.live[task.name] = Live(task, started=self.now)
        return task

    def begin(self, first_step: int = 1, *, after_s: float = 0.0) -> Unit:
        unit = self.hand_out()
        self.now += after_s
        live = self.live[unit.name]
        live.first_step, live.step = first_step, first_step - 1
        self.time_left.started(live, self.now)
        return unit

    def step(self, after_s: float, **steps: int) -> Left | None:
        """steps: by the beginning of a unit's name."""
        self.now += after_s
        for name, live in self.live.items():
            live.step = next((at for of, at in steps.items() if name.startswith(of)), live.step)
        return self.left()

    def left(self) -> Left | None:
        self.time_left.look(self.live, self.now)
        return self.time_left.left(self.now)

    def finish(self, unit: Unit, step: int) -> None:
        live = self.live.pop(unit.name)
        live.step = step
        self.ledger.done(unit.name)
        self.time_left.finished(live, self.now)

    def fail(self, unit: Unit) -> None:
        del self.live[unit.name]
        self.ledger.fail(unit.name, Failure(cause=Cause.WORKER_LOST, message="gone"))


def seconds(left: Left | None) -> float:
    assert left is not None
    return left.seconds


def test_a_teacher_that_searches_on_takes_nothing_off_its_students(tmp_path: Path) -> None:
    """Ten students of 2,000 steps wait for it; once this was "about 0 s left" at step 30,000."""
    scene = Scene(tiny_plan(tmp_path, text=SEARCH))
    scene.begin()
    assert scene.step(60, teacher=1_000) is None
    found = scene.step(60, teacher=2_000)  # 60 s a thousand
    assert found == Left(pytest.approx(14 * 60, rel=0.01))  # ten students on two slots, and its own
    for step in (10_000, 20_000, 30_000):
        found = scene.step(600, teacher=step)
    per_thousand = 1_860 / 29  # since its first step was heard of
    assert found == Left(pytest.approx(10 * per_thousand, rel=0.01), at_least=True)


def test_a_run_that_is_tried_again_has_what_its_first_step_leaves(tmp_path: Path) -> None:
    scene = Scene(tiny_plan(tmp_path, text=ALONE), slots=1)
    first = scene.begin()
    scene.step(10, student=100)
    assert seconds(scene.step(100, student=1_100)) == pytest.approx((20_000 - 1_100) * 0.1)
    scene.fail(first)
    assert scene.begin(first_step=1_001) == first
    assert seconds(scene.left()) == pytest.approx((20_000 - 1_000) * 0.1)


def test_each_kind_of_run_has_its_own_pace(tmp_path: Path) -> None:
    """Of a hundred slow steps and ten thousand fast ones, the slow ones are what is left."""
    plan = tiny_plan(tmp_path, text=(
        f"{LONG}grids: [{{axes: {{strategy: [A], seed: [0], backbone.width: [4, 32]}}}}]\n"
    ))  # fmt: skip
    narrow, wide = plan.of_kind("student")
    rates = Rates(runs={group_of(narrow, OFFICIAL): 100.0, group_of(wide, OFFICIAL): 0.5})
    scene = Scene(plan, slots=1, rates=rates)
    assert seconds(scene.left()) == pytest.approx(20 + 4_000)
    unit = scene.begin()
    scene.step(1, student=100)
    scene.now += 19
    scene.finish(unit, 2_000)
    fast, slow = seconds(scene.left()), 20 + 4_000
    assert fast == pytest.approx(4_000 if unit == narrow else 20, rel=0.1)
    assert fast < slow


def test_kinds_that_nobody_measured_here_are_compared_by_shipped_rates(tmp_path: Path) -> None:
    text = """\
name: two
set: {strategy: A, dataset: cifar10, training: {steps: 1000}, backbone: {name: resnet18}}
grids: [{axes: {dataset: [cifar10, cifar100], seed: [0]}}]
"""
    plan = tiny_plan(tmp_path, text=text)
    one, other = plan.of_kind("student")
    elsewhere = Pace(shipped_rates(), OFFICIAL)
    theirs = [elsewhere.seconds(unit, 1_000) for unit in (one, other)]
    assert None not in theirs
    scene = Scene(plan, slots=1)
    begun = scene.begin()
    scene.step(10, student=100)
    scene.now += 90
    scene.finish(begun, 1_000)
    mine, waits = theirs if begun == one else reversed(theirs)
    assert mine
    assert waits
    assert seconds(scene.left()) == pytest.approx(100 * waits / mine, rel=0.02)


def test_the_start_of_the_first_processes_is_not_in_the_pace(tmp_path: Path) -> None:
    """Two slots; the first runs load and compile for 20 s, all that follow begin at once. Forty
    steps of half a second each: five rounds of 20 s in all."""
    text = LONG.replace("2000", "40") + ALONE.partition(LONG)[2]
    scene = Scene(tiny_plan(tmp_path, text=text))
    first, second = scene.hand_out(), scene.hand_out()
    scene.now += 15
    for unit in (first, second):
        scene.live[unit.name].step = 0
        scene.time_left.started(scene.live[unit.name], scene.now)
    assert scene.step(5, student=2) is None
    assert seconds(scene.step(10, student=22)) == pytest.approx(4 * 20 + 9)
    scene.now += 9
    scene.finish(first, 40)
    scene.finish(second, 40)
    assert seconds(scene.left()) == pytest.approx(80, rel=0.03)
    scene.begin(after_s=1.0)  # in a process that is warm
    scene.begin()
    assert seconds(scene.left()) == pytest.approx(80 + 6 * 0.5 / 2, rel=0.03)


def test_runs_that_share_a_device_count_their_share(tmp_path: Path) -> None:
    scene = Scene(tiny_plan(tmp_path, text=ALONE), slots=1, share=0.25)
    for _ in range(4):
        scene.begin()
    scene.step(10, student=100)
    assert seconds(scene.step(90, student=1_000)) == pytest.approx((20_000 - 4_000) * 0.1 / 4)


def test_more_devices_do_not_shorten_a_chain(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, text=SEARCH)
    groups = {group_of(unit, OFFICIAL) for unit in plan.units}
    scene = Scene(plan, slots=1_000, rates=Rates(runs=dict.fromkeys(groups, 10.0)))
    assert seconds(scene.left()) == pytest.approx(1_000 + 200)


def test_nothing_is_left_in_the_end(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path)
    scene = Scene(plan, slots=1)
    for _ in plan.left:
        unit = scene.begin(after_s=0.5)
        scene.now += 10
        scene.finish(unit, 20)
    assert scene.left() == Left(0.0)
    assert unit_of(plan, "A").name not in scene.live
