"""A sweep with a time limit, as the conductor drives it: scripted trials on a clock of the test."""

from __future__ import annotations

import io
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator import paths, sweeping
from orchestrator.admission import Capacity, Shape
from orchestrator.budget import Limit
from orchestrator.conclusion import BudgetSpentError, conclude
from orchestrator.conductor import Conductor
from orchestrator.driver import Outcome
from orchestrator.estimate import Pace
from orchestrator.interrupts import heed_flag
from orchestrator.ledger import Ledger, State
from orchestrator.overheads import read_overheads, write_overheads
from orchestrator.pacing import Pacing
from orchestrator.plan import Plan
from orchestrator.progress import Progress
from orchestrator.rates import Rates
from orchestrator.retry import Cause, Failure
from orchestrator.stopping import ask_to_stop, watching
from orchestrator.store import Store
from orchestrator.timebox import Timebox
from orchestrator.units import Unit, cost_left
from orchestrator.worth import Worth
from tests.conducting import Ear, tell
from tests.driving import SETTINGS, TINY, Clock, tiny_plan
from trainers.data.catalogue import OFFICIAL

GRID = """\
grids:
  - axes: {strategy: [A, B, C], teacher.accuracy: [20, 40], seed: [0, 1, 2]}
"""


class Box:
    """A conductor with a limit, and two devices whose runs take a second a step."""

    def __init__(self, plan: Plan, store: Store, total_s: float) -> None:
        self.plan, self.store, self.clock, self.ear = plan, store, Clock(), Ear()
        self.limit = Limit(total_s=total_s, end_s=total_s)
        steps = {unit.name: cost_left(unit, plan.work[unit.name]) for unit in plan.left}
        pacing = Pacing(Pace(Rates(), OFFICIAL), OFFICIAL, steps)
        self.units = {unit.name: unit for unit in plan.left}
        self.timebox = Timebox(self.limit, pacing, self.units)
        ledger = Ledger(
            plan.left,
            Capacity(2.0),
            shape_of=lambda task: Shape(),
            held=plan.held_tokens,
            worth=Worth(plan.left, plan.priorities, plan.means),
        )
        self.conductor = Conductor(
            ledger, store, SETTINGS, [self.ear], clock=self.clock, timebox=self.timebox
        )
        self.begun: list[str] = []
        self._steps: dict[str, int] = {}

    def drive(self) -> Box:
        """As Tune and the driver do, a step a second, until nothing more is handed out."""
        while not self.conductor.finished:
            while (config := self.conductor.next_trial()) is not None:
                self._begin(config["unit"])
            self.clock.now += 1.0
            self.conductor.heed_limit()
            for name in list(self._steps):
                self._step(self.units[name])
            assert self.clock.now < 10_000
        return self

    def _begin(self, name: str) -> None:
        self.begun.append(name)
        self._steps[name] = 0
        tell(self.conductor, name, "started", first_step=1)

    def _step(self, unit: Unit) -> None:
        if self.store.exists(paths.stop_flag(SETTINGS.driver)):
            tell(self.conductor, unit.name, "checkpoint", step=self._steps[unit.name])
            self._end(unit, "stopped")
            return
        self._steps[unit.name] += 1
        step = self._steps[unit.name]
        tell(self.conductor, unit.name, "progress", step=step)
        if unit.kind == "teacher" and step % 10 == 0 and step <= 20:
            preset = unit.request.presets[step // 10 - 1]
            tell(self.conductor, unit.name, "snapshot", preset=preset, step=step, accuracy=preset)
        if step == (1 if unit.kind == "targets" else 20):
            self._end(unit, "done")

    def _end(self, unit: Unit, reason: str) -> None:
        step = self._steps.pop(unit.name)
        tell(self.conductor, unit.name, "finished", reason=reason, step=step, missing=[])
        self.conductor.on_end(unit.name, lost=False)

    def names(self, state: State) -> set[str]:
        return {entry.task.name for entry in self.conductor.ledger.in_state(state)}

    @property
    def outcome(self) -> Outcome:
        done = frozenset(self.names(State.DONE))
        left = len(self.plan.left) - len(done)
        return Outcome(
            failed=(), blocked=(), interrupted=False, stopped_early=None, left=left, done=done,
            spent=self.timebox.spent and left > 0, cut_off=self.timebox.cut_off,
        )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return tiny_plan(tmp_path, text=TINY + GRID)


def test_it_ends_in_time_and_what_it_began_is_saved(plan: Plan, store: Store) -> None:
    box = Box(plan, store, total_s=110.0).drive()
    assert box.limit.stop_at - 25 <= box.clock.now <= box.limit.leave_at
    done = box.names(State.DONE)
    assert set(box.begun) == done | box.timebox.cut_off.keys()
    assert box.timebox.cut_off.keys() <= box.names(State.READY)
    assert not box.names(State.RUNNING)
    assert not box.names(State.FAILED)
    assert 0 < len(done) < len(plan.left)


def test_nothing_is_begun_that_would_come_to_nothing(plan: Plan, store: Store) -> None:
    """Its runs take 20 s, and there is less than a minute left after the fourth: what follows must
    end in time, and does."""
    box = Box(plan, store, total_s=130.0).drive()
    assert box.timebox.spent
    assert set(box.begun) == box.names(State.DONE)
    assert box.clock.now < box.limit.stop_at


def test_means_are_completed_one_after_the_other(plan: Plan, store: Store) -> None:
    box = Box(plan, store, total_s=260.0).drive()
    done = box.names(State.DONE)
    counts = sorted(len(done & set(runs)) for runs in plan.means.values())
    assert counts.count(3) >= 2
    assert sum(0 < count < 3 for count in counts) <= 2  # two devices


def test_enough_time_leaves_nothing(plan: Plan, store: Store) -> None:
    box = Box(plan, store, total_s=3600.0).drive()
    assert box.names(State.DONE) == {unit.name for unit in plan.left}
    assert not box.timebox.spent
    conclude(plan, [box.outcome], "--budget 1h")


def test_without_time_nothing_is_begun(plan: Plan, store: Store) -> None:
    box = Box(plan, store, total_s=22.0).drive()
    assert box.begun == []
    assert box.timebox.spent
    assert not store.exists(paths.runs_dir())


def test_a_trial_that_does_not_stop_is_left(plan: Plan, store: Store) -> None:
    box = Box(plan, store, total_s=110.0)
    config = box.conductor.next_trial()
    assert config is not None
    box.clock.now = 90.0
    assert box.conductor.heed_limit()
    assert not box.conductor.heed_limit()  # once
    assert store.exists(paths.stop_flag(SETTINGS.driver))
    assert not box.conductor.must_leave
    box.clock.now = box.limit.leave_at
    assert box.conductor.must_leave
    assert box.conductor.next_trial() is None


def test_the_flag_of_the_limit_is_nobodys_interruption(plan: Plan, store: Store) -> None:
    """The driver looks for flags too, and finds its own."""
    box, interrupted = Box(plan, store, total_s=110.0), list[int]()
    progress = Progress(Console(file=io.StringIO()), done_before=0)
    asked = partial(heed_flag, box.conductor, progress, interrupted)
    assert box.conductor.next_trial() is not None
    box.clock.now = 90.0
    assert box.conductor.heed_limit()
    with watching(store, SETTINGS.driver, asked):
        pass
    assert (interrupted, box.timebox.spent) == ([], True)


def test_a_person_who_stops_it_first_is_heard(plan: Plan, store: Store) -> None:
    box, interrupted = Box(plan, store, total_s=110.0), list[int]()
    progress = Progress(Console(file=io.StringIO()), done_before=0)
    asked = partial(heed_flag, box.conductor, progress, interrupted)
    assert box.conductor.next_trial() is not None
    ask_to_stop(store, SETTINGS.driver)
    with watching(store, SETTINGS.driver, asked):
        pass
    assert interrupted == [signal.SIGINT]
    box.clock.now = 90.0
    assert not box.conductor.heed_limit()
    assert not box.timebox.spent


def test_the_last_lines_say_what_is_left_and_how_to_go_on(plan: Plan, store: Store) -> None:
    box = Box(plan, store, total_s=110.0).drive()
    with pytest.raises(BudgetSpentError) as caught:
        conclude(plan, [box.outcome], "--budget 110s")
    assert caught.value.exit_status == 3
    text = str(caught.value)
    assert "the time is over (--budget 110s); nothing is lost" in text
    assert f"reached: {len(box.outcome.done)} units done now" in text
    assert f"left for want of time: {box.outcome.left} units" in text
    assert text.count("cut off, saved: ") == len(box.timebox.cut_off)
    assert "to go on:" in text


def test_a_limit_that_ended_between_teachers_and_students(plan: Plan) -> None:
    nothing = Outcome(
        failed=(), blocked=(), interrupted=False, stopped_early=None, left=3, spent=True
    )
    with pytest.raises(BudgetSpentError, match=f"left for want of time: {len(plan.left)} units"):
        conclude(plan, [nothing], "Slurm job 7")


def test_the_limit_has_runs_saved_also_where_failures_ended_the_handing_out(
    plan: Plan, store: Store
) -> None:
    box = Box(plan, store, total_s=110.0)
    config = box.conductor.next_trial()
    assert config is not None
    box.conductor.ledger.stop_early(Failure(cause=Cause.ERROR, message="KeyError: 'lr'"))
    box.clock.now = box.limit.stop_at + 1.0
    assert box.conductor.heed_limit()
    assert store.exists(paths.stop_flag(SETTINGS.driver))
    assert box.timebox.asked_at == box.limit.stop_at + 1.0


def test_how_long_stopping_took_counts_from_when_it_was_asked(store: Store) -> None:
    watch = sweeping._Stopwatch()
    watch._first, watch._last = 100.0, 130.0
    ended = Outcome(failed=(), blocked=(), interrupted=False, stopped_early=None, left=1)
    cut = replace(ended, spent=True, cut_off={"student-1": 3}, asked_at=130.0)
    write_overheads(store, watch.overheads([ended, cut]))
    assert read_overheads(store).stopping_s == 0.0  # also nothing is an answer
    write_overheads(store, watch.overheads([replace(cut, asked_at=123.0)]))
    assert read_overheads(store).stopping_s == 7.0
