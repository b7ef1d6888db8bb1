"""The state machine behind the searcher, against a simulated clock and units of a few fields."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable

import pytest

from orchestrator.ledger import Ledger, State, Task
from orchestrator.retry import Cause, Decision, Failure
from tests.ledgers import (
    BUG,
    LOST,
    TARGETS,
    TEACHER,
    A,
    B,
    C,
    Fake,
    ledger_of,
    names,
    state,
    take,
    take_all,
)


def test_longest_chain_first() -> None:
    """A teacher before a longer student without followers: others wait for it."""
    ledger = ledger_of(Fake("long", cost=120), A, TEACHER, TARGETS, C, B)
    assert ledger.entries["teacher"].chain == 100 + 1 + 40
    assert take_all(ledger) == ["teacher", "long"]


def test_equal_chains_start_in_the_order_of_the_plan() -> None:
    assert take_all(ledger_of(Fake("x"), Fake("y"), Fake("z"), slots=3)) == ["x", "y", "z"]


def test_better_estimates_decide_the_order() -> None:
    ledger = ledger_of(Fake("begun", cost=100), Fake("fresh", cost=50), costs={"begun": 5.0})
    assert take(ledger) == "fresh"


def test_a_snapshot_frees_its_students_while_the_teacher_still_runs() -> None:
    ledger = ledger_of(TEACHER, B, TARGETS, C)
    assert take_all(ledger) == ["teacher"]
    ledger.provide("teacher/acc-30")
    assert take_all(ledger) == ["B"]
    assert state(ledger, "teacher") is State.RUNNING
    assert names(ledger, State.WAITING) == {"targets", "C"}


def test_what_the_store_holds_is_not_waited_for() -> None:
    assert state(ledger_of(B, held=["teacher/acc-30"]), "B") is State.READY


def test_a_need_that_nobody_provides_blocks_at_once() -> None:
    """A teacher whose search is known to fail is not in the plan any more."""
    ledger = ledger_of(TARGETS, C)
    assert state(ledger, "C") is State.BLOCKED
    assert ledger.finished


def test_a_failed_unit_blocks_all_that_follow_and_nothing_else() -> None:
    ledger = ledger_of(TEACHER, TARGETS, C, B, A)
    take_all(ledger)
    assert ledger.fail("teacher", BUG) is Decision.GIVE_UP
    assert names(ledger, State.BLOCKED) == {"targets", "C", "B"}
    assert ledger.entries["B"].blocked_by == "teacher/acc-30"
    ledger.done("A")
    assert ledger.finished


def test_snapshots_made_before_the_failure_stay_good() -> None:
    ledger = ledger_of(TEACHER, TARGETS, C, B, slots=1)
    take(ledger)
    ledger.provide("teacher/acc-30")
    ledger.fail("teacher", BUG)
    assert take_all(ledger) == ["B"]
    assert names(ledger, State.BLOCKED) == {"targets", "C"}


def test_an_accuracy_never_reached_blocks_only_its_own_dependants() -> None:
    unreachable = Failure(cause=Cause.UNREACHABLE, message="accuracy never reached: 60%")
    ledger = ledger_of(TEACHER, TARGETS, C, B)
    take(ledger)
    ledger.done("teacher", missing=["teacher/acc-60"], failure=unreachable)
    assert state(ledger, "teacher") is State.FAILED
    assert ledger.entries["teacher"].attempts.failures == [unreachable]
    assert names(ledger, State.BLOCKED) == {"targets", "C"}
    assert take_all(ledger) == ["B"]


def test_retry_gives_the_slot_back_and_runs_again() -> None:
    ledger = ledger_of(A, slots=1)
    for _ in range(3):
        assert take(ledger) == "A"
        assert ledger.fail("A", LOST) is Decision.RETRY
        assert ledger.capacity.used == 0
    assert take(ledger) == "A"
    assert ledger.fail("A", LOST) is Decision.GIVE_UP
    assert state(ledger, "A") is State.FAILED
    assert ledger.finished


def test_dependants_wait_while_their_teacher_is_tried_again() -> None:
    ledger = ledger_of(TEACHER, B)
    take(ledger)
    ledger.fail("teacher", LOST)
    assert state(ledger, "B") is State.WAITING
    assert take(ledger) == "teacher"


def test_stops_when_the_first_units_all_fail_alike() -> None:
    ledger = ledger_of(*(Fake(f"u{number}") for number in range(9)), slots=2, same_failures=3)
    for _ in range(2):
        for name in take_all(ledger):
            ledger.fail(name, BUG)
    assert ledger.stopped_early == BUG
    assert take(ledger) is None
    assert ledger.finished
    assert ledger.count(State.READY) == 5


@pytest.mark.parametrize("second", ["success", "another failure"])
def test_goes_on_when_they_do_not(second: str) -> None:
    ledger = ledger_of(*(Fake(f"u{number}") for number in range(9)), slots=1, same_failures=3)
    ledger.fail(take(ledger) or "", BUG)
    name = take(ledger) or ""
    if second == "success":
        ledger.done(name)
    else:
        ledger.fail(name, Failure(cause=Cause.ERROR, message="ValueError: other"))
    for _ in range(4):
        ledger.fail(take(ledger) or "", BUG)
    assert ledger.stopped_early is None
    assert take(ledger) is not None


def test_a_retry_is_no_first_failure() -> None:
    ledger = ledger_of(*(Fake(f"u{number}") for number in range(4)), slots=1)
    for _ in range(3):
        ledger.fail(take(ledger) or "", LOST)
    assert ledger.stopped_early is None


def test_a_wide_unit_waits_and_does_not_starve() -> None:
    """Narrower units behind it would otherwise take every slot that comes free."""
    first = Fake("first", provides=("wide may",), cost=90)
    wide = Fake("wide", needs=("wide may",), workers=2)
    ledger = ledger_of(first, wide, A, B, held=["teacher/acc-30"], slots=2)
    assert take_all(ledger) == ["first", "A"]
    ledger.done("first")
    assert take_all(ledger) == ["B"]
    ledger.done("A")
    assert take_all(ledger) == []
    ledger.done("B")
    assert take_all(ledger) == ["wide"]


def test_stopping_starts_nothing_and_waits_for_what_runs() -> None:
    ledger = ledger_of(A, TEACHER, B)
    take_all(ledger)
    ledger.stopping = True
    ledger.provide("teacher/acc-30")
    assert take(ledger) is None
    assert not ledger.finished
    ledger.interrupt("A")
    assert not ledger.finished
    ledger.done("teacher")
    assert ledger.finished
    assert names(ledger, State.READY) == {"A", "B"}
    assert ledger.capacity.used == 0


def test_only_running_units_can_end() -> None:
    ledger = ledger_of(A)
    with pytest.raises(ValueError, match="A is ready, not running"):
        ledger.done("A")


# -- a whole sweep against a simulated clock ------------------------------------------------------


def grid(teachers: int, students: int, *, seed: int) -> list[Fake]:
    """Teachers with three presets each, soft targets, and students of all strategies."""
    rng = random.Random(seed)
    made: list[Fake] = []
    for number in range(teachers):
        name = f"teacher-{number}"
        tokens = tuple(f"{name}/acc-{preset}" for preset in (30, 60, 90))
        made.append(Fake(name, provides=tokens, cost=rng.randint(50, 200)))
        for token in tokens:
            targets = token.replace("/", "-targets-")
            made.append(Fake(targets, needs=(token,), provides=(targets,), cost=1))
            for student in range(students):
                wide = 2 if rng.random() < 0.2 else 1
                cost = rng.randint(5, 80)
                made.append(Fake(f"{token}-B{student}", (token,), cost=cost, workers=wide))
                made.append(Fake(f"{token}-C{student}", (token, targets), cost=cost))
    made += [Fake(f"A{number}", cost=rng.randint(5, 80)) for number in range(students)]
    rng.shuffle(made)
    return made


class Simulation:
    """Executes a ledger: units take their cost in time; teachers provide presets on the way; some
    attempts are lost, some units have a bug."""

    def __init__(self, ledger: Ledger, *, seed: int, lost: float = 0.0, bugs: Iterable[str] = ()):
        self.ledger = ledger
        self.now = 0.0
        self.starts: list[str] = []
        self._events: list[tuple[float, int, str, str]] = []
        self._rng = random.Random(seed)
        self._lost = lost
        self._bugs = set(bugs)

    def run(self) -> None:
        while not self.ledger.finished:
            while (task := self.ledger.next()) is not None:
                self._start(task)
                assert self.ledger.capacity.used <= self.ledger.capacity.total
            assert self._events, "nothing runs, nothing can start, and it is not finished"
            self.now, _, name, what = heapq.heappop(self._events)
            self._happen(name, what)

    def _start(self, task: Task) -> None:
        self.starts.append(task.name)
        if len(task.provides) > 1:
            for part, token in enumerate(task.provides[:-1], start=1):
                self._at(part / len(task.provides) * task.cost, task.name, token)
        lost = self._rng.random() < self._lost
        bug = task.name in self._bugs
        self._at(task.cost, task.name, "lost" if lost else "bug" if bug else "done")

    def _at(self, delay: float, name: str, what: str) -> None:
        heapq.heappush(self._events, (self.now + delay, len(self.starts), name, what))

    def _happen(self, name: str, what: str) -> None:
        if what == "done":
            self.ledger.done(name)
        elif what in ("lost", "bug"):
            self.ledger.fail(name, LOST if what == "lost" else BUG)
        else:
            self.ledger.provide(what)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("slots", [2, 3, 16])
def test_everything_ends_and_capacity_is_never_exceeded(slots: int, seed: int) -> None:
    tasks = grid(3, 6, seed=seed)
    simulation = Simulation(ledger_of(*tasks, slots=slots), seed=seed)
    simulation.run()
    assert names(simulation.ledger, State.DONE) == {task.name for task in tasks}
    assert sorted(simulation.starts) == sorted(task.name for task in tasks)  # each once
    assert simulation.ledger.capacity.used == 0


@pytest.mark.parametrize("seed", range(5))
def test_everything_ends_in_one_state_also_when_workers_die(seed: int) -> None:
    tasks = grid(3, 6, seed=seed)
    ledger = ledger_of(*tasks, slots=4, same_failures=0)
    simulation = Simulation(ledger, seed=seed, lost=0.3, bugs=["teacher-1"])
    simulation.run()
    ended = sum(ledger.count(one) for one in (State.DONE, State.FAILED, State.BLOCKED))
    assert ended == len(tasks)
    assert {"teacher-1"} <= names(ledger, State.FAILED)
    assert ledger.capacity.used == 0
    for entry in ledger.in_state(State.BLOCKED):
        assert entry.blocked_by is not None


def test_slots_are_kept_busy() -> None:
    """Longest chain first: on enough independent work, the last unit ends near the ideal time."""
    tasks = grid(2, 20, seed=0)
    simulation = Simulation(ledger_of(*tasks, slots=8), seed=0)
    simulation.run()
    work = sum(task.cost * task.workers for task in tasks)
    longest = max(entry.chain for entry in simulation.ledger.entries.values())
    assert simulation.now <= 1.15 * work / 8 + longest


def test_a_hundred_thousand_units() -> None:
    """Each move costs a heap operation, not a walk over all units."""
    tasks = [Fake(f"u{number}", cost=number % 97 + 1) for number in range(100_000)]
    ledger = ledger_of(*tasks, slots=64)
    running = take_all(ledger)
    while running:
        ledger.done(running.pop())
        running += take_all(ledger)
    assert ledger.count(State.DONE) == len(tasks)


def test_newly_blocked_units_are_told_once() -> None:
    teacher = Fake("teacher", provides=("token",))
    ledger = ledger_of(teacher, Fake("student", needs=("token",)), slots=1)
    assert ledger.take_newly_blocked() == []
    ledger.next()
    ledger.fail("teacher", Failure(cause=Cause.ERROR, message="ValueError: no"))
    assert [entry.task.name for entry in ledger.take_newly_blocked()] == ["student"]
    assert ledger.take_newly_blocked() == []


def test_the_cost_that_is_left_follows_the_states() -> None:
    ledger = ledger_of(Fake("a", cost=5), Fake("b", cost=7), slots=2)
    assert ledger.cost_left == 12
    ledger.next()
    assert ledger.cost_left == 12
    ledger.next()
    ledger.done("b")
    assert ledger.cost_left == 5
    ledger.fail("a", Failure(cause=Cause.WORKER_LOST, message="died"))
    assert ledger.cost_left == 5
    ledger.next()
    ledger.fail("a", Failure(cause=Cause.ERROR, message="ValueError: no"))
    assert ledger.cost_left == 0


def test_runs_that_diverge_do_not_stop_the_rest() -> None:
    tasks = [Fake(f"u{number}") for number in range(6)]
    ledger = ledger_of(*tasks, slots=1, same_failures=3)
    for task in tasks:
        assert ledger.next() is task
        ledger.fail(task.name, Failure(cause=Cause.DIVERGED, message="NonFiniteLossError: step 1"))
    assert ledger.stopped_early is None
