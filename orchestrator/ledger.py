"""What has happened to every unit of a plan, and which one is next: a pure state machine.

The searcher asks it, the driver tells it, the screen reads it. It knows neither Ray nor the store,
so it runs as well against a simulated clock.

    waiting ──needs met──▶ ready ──taken──▶ running ──▶ done
       │                     ▲                 │
       │                     └───── retry ─────┤
       └──a need is lost──▶ blocked            └──▶ failed, or to redo
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from orchestrator.admission import Capacity, Shape
from orchestrator.budget import Admit, Chance
from orchestrator.repeats import Repeats
from orchestrator.retry import Attempts, Decision, Failure
from orchestrator.turns import Turns
from orchestrator.worth import NEUTRAL, Rank, Worth

__all__ = ["Entry", "Ledger", "State", "Task"]


class State(StrEnum):
    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    BLOCKED = "blocked"
    REDO = "to redo"


_OVER = frozenset({State.DONE, State.FAILED, State.BLOCKED, State.REDO})


class Task(Protocol):
    """What the ledger must know of a unit. needs, provides: tokens, such as `teacher-1a2b/acc-30`.
    cost: an estimate of its length, in steps."""

    @property
    def name(self) -> str: ...
    @property
    def needs(self) -> Sequence[str]: ...
    @property
    def provides(self) -> Sequence[str]: ...
    @property
    def cost(self) -> float: ...


@dataclass
class Entry:
    """One unit's state. chain: length of the longest chain of work that starts here, in steps.
    resting: ready, but to be left alone until it is woken. place: the device that a running one
    shares with others. avoids: ids of the nodes that had been set aside when it was handed out."""

    task: Task
    shape: Shape
    order: int
    state: State = State.WAITING
    unmet: set[str] = field(default_factory=set)
    chain: float = 0.0
    cost: float = 1.0
    attempts: Attempts = field(default_factory=Attempts)
    blocked_by: str | None = None
    resting: bool = False
    place: int | None = None
    avoids: frozenset[str] = frozenset()


class Ledger:
    """All units of a plan. held: tokens that the store already provides. costs: better estimates
    than the tasks' own, by name (what is left of a run that was begun). worth: who goes before
    whom; None: nobody is worth more than another.

    same_failures: when the first so many units to end all failed alike, the rest is not started:
    a typo should not cost a night. failures_in_a_row: when so many attempts, of whatever units,
    failed alike one after the other, anywhere or on one node, nothing more is started either: a
    node that breaks fails fast, and so would be given one run after the other. 0 switches a rule
    off. Where all of them were on one node, and the others can do what is left, that node is set
    aside instead, and what failed there is ready again.

    aside: by node id, the last failure of those that set it aside; whoever places runs keeps them
    from these nodes.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        capacity: Capacity,
        *,
        shape_of: Callable[[Task], Shape],
        held: Iterable[str] = (),
        costs: Mapping[str, float] | None = None,
        worth: Worth | None = None,
        same_failures: int = 3,
        failures_in_a_row: int = 10,
    ) -> None:
        self.capacity = capacity
        self.entries = {
            task.name: Entry(
                task, shape_of(task), order, cost=max(1.0, (costs or {}).get(task.name, task.cost))
            )
            for order, task in enumerate(tasks)
        }
        self.stopping = False
        self.stopped_early: Failure | None = None
        self.aside: dict[str, Failure] = {}
        self._repeats = Repeats(same_failures, failures_in_a_row)
        self._dependants: dict[str, list[Entry]] = defaultdict(list)
        self._turns = Turns()
        self._worth = worth
        self._counts: dict[State, int] = defaultdict(int)
        self._newly_blocked: list[Entry] = []
        self.cost_left = sum(entry.cost for entry in self.entries.values())
        self._link(set(held))

    def _link(self, held: set[str]) -> None:
        provided = {token for entry in self.entries.values() for token in entry.task.provides}
        for entry in self.entries.values():
            entry.unmet = set(entry.task.needs) - held
            for token in entry.unmet:
                self._dependants[token].append(entry)
        self._measure_chains()
        self._counts[State.WAITING] = len(self.entries)
        for entry in self.entries.values():
            self._turns.expect(entry.shape, entry.cost)
        for entry in self.entries.values():
            lost = sorted(entry.unmet - provided)
            if lost:
                self._block(entry, lost[0])
            elif not entry.unmet:
                self._make_ready(entry)

    def _measure_chains(self) -> None:
        """Longest chains by depth-first order; the graph is at most three deep and acyclic."""

        def chain(entry: Entry) -> float:
            if not entry.chain:
                after = [
                    chain(dependant)
                    for token in entry.task.provides
                    for dependant in self._dependants[token]
                ]
                entry.chain = entry.cost + max(after, default=0.0)
            return entry.chain

        for entry in self.entries.values():
            chain(entry)

    # -- asking ------------------------------------------------------------------------------

    def next(self, admit: Admit | None = None) -> Task | None:
        """Takes the ready unit whose turn it is and that fits the free devices: the longest chain
        of its width (`turns` says which width). admit: what a time limit lets begin. None: ask
        again when devices are free."""
        name = None
        if not self.stopping:
            name = self._turns.take(self.capacity, admit)
        if name is None:
            return None
        entry = self.entries[name]
        entry.place, entry.avoids = self.capacity.take(entry.shape), frozenset(self.aside)
        self.capacity.rooms.begin(name, entry.shape)
        self._set(entry, State.RUNNING)
        if self._worth is not None:
            self._rerank(self._worth.taken(name))
        return entry.task

    def is_of_use(self, admit: Admit) -> bool:
        """Whether a unit is ready, or rests, that the time limit would still let begin."""
        return any(
            entry.state is State.READY and admit(entry.task.name) is not Chance.NONE
            for entry in self.entries.values()
        )

    @property
    def finished(self) -> bool:
        """Nothing runs and nothing can be started any more."""
        if self._counts[State.RUNNING]:
            return False
        return self.stopping or not self._counts[State.READY]

    def count(self, state: State) -> int:
        return self._counts[state]

    def in_state(self, state: State) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.state is state]

    def take_newly_blocked(self) -> list[Entry]:
        """Units blocked since the last call, once each."""
        taken, self._newly_blocked = self._newly_blocked, []
        return [entry for entry in taken if entry.state is State.BLOCKED]

    # -- telling -----------------------------------------------------------------------------

    def lies(self, name: str, nodes: Iterable[str]) -> None:
        """Where a running unit's workers are, a node for each; fewer than all tell nothing yet."""
        found = Counter(nodes)
        if found.total() == self.entries[name].shape.workers:
            self.capacity.rooms.lies(name, found)

    def provide(self, token: str) -> None:
        """A snapshot or targets file now exists, perhaps while its maker still runs."""
        for entry in self._dependants.pop(token, []):
            entry.unmet.discard(token)
            if not entry.unmet and entry.state in (State.WAITING, State.BLOCKED):
                self._make_ready(entry)

    def done(
        self,
        name: str,
        *,
        missing: Iterable[str] = (),
        failure: Failure | None = None,
        node: str = "",
    ) -> None:
        """A unit ended by itself. missing: tokens it was to provide and did not (a teacher's
        accuracy never reached); their dependants are blocked, and the unit counts as failed.
        node: id of the one it ran on."""
        entry = self._release(name)
        lost = set(missing)
        for token in entry.task.provides:
            if token not in lost:
                self.provide(token)
        self._set(entry, State.FAILED if lost else State.DONE)
        if lost and failure is not None:
            entry.attempts.decide(failure)
        self._repeats.ended(node, well=not lost)
        for token in sorted(lost):
            self._lose(token)

    def fail(
        self, name: str, failure: Failure, *, worked_s: float | None = None, rest: bool = False
    ) -> Decision:
        """An attempt failed: the unit is ready again, or failed with its dependants blocked, or
        left for another plan. worked_s: seconds of the attempt whose work lasts; None: none. rest:
        where the policy has the unit wait, it is handed out only after `wake`."""
        entry = self._release(name)
        if failure.is_systematic and failure.node in self.aside.keys() - entry.avoids:
            entry.attempts.failures.append(failure)
            entry.attempts.excuse()
            self._make_ready(entry)
            return Decision.RETRY
        decision = entry.attempts.decide(failure, worked_s=worked_s or 0.0)
        if worked_s is not None:
            self._repeats.ended(failure.node)
        if decision is Decision.RETRY:
            self._make_ready(entry, resting=rest and entry.attempts.wait_s() > 0)
        elif decision is Decision.REDO:
            self._set(entry, State.REDO)
        else:
            self._set(entry, State.FAILED)
            for token in entry.task.provides:
                self._lose(token)
        self._heed(self._repeats.failed(failure, given_up=decision is Decision.GIVE_UP))
        return Decision.RETRY if entry.state is State.READY else decision

    def wake(self, name: str) -> None:
        """Ends a rest; whoever has a clock decides when."""
        entry = self.entries[name]
        if entry.resting:
            entry.resting = False
            self._queue(entry)

    def stop_early(self, failure: Failure) -> None:
        """Nothing more is started, for this reason; the first one counts."""
        self.stopping = True
        if self.stopped_early is None:
            self.stopped_early = failure

    def interrupt(self, name: str) -> None:
        """A running unit stopped because it was asked to; it is ready for the next `run`."""
        self._make_ready(self._release(name))

    # -- inside ------------------------------------------------------------------------------

    def _heed(self, failure: Failure | None) -> None:
        """A failure that was one too many; it names a node if all of them were there."""
        if failure is None or failure.node in self.aside:
            return
        if failure.node and self._can_spare(failure.node):
            self._set_aside(failure)
        else:
            alone = len(self.capacity.rooms.nodes) <= 1
            self.stop_early(replace(failure, where="", node="") if alone else failure)

    def _can_spare(self, node: str) -> bool:
        """Whether the other nodes have the devices for any unit that is left."""
        rooms = self.capacity.rooms.nodes
        others = sum(room for one, room in rooms.items() if one not in {node, *self.aside})
        left = (entry.shape.devices for entry in self.entries.values() if entry.state not in _OVER)
        return others >= max([1.0, *left])

    def _set_aside(self, failure: Failure) -> None:
        """What failed there as this did has all its attempts again."""
        self.aside[failure.node] = failure
        for entry in self.entries.values():
            failed_there = any(
                (one.node, one.signature) == (failure.node, failure.signature)
                for one in entry.attempts.failures
            )
            if failed_there:
                entry.attempts.excuse()
                if entry.state is State.FAILED:
                    self._make_ready(entry)
                    self._regain(entry)

    def _regain(self, entry: Entry) -> None:
        """What waited for a failed unit may wait again."""
        for token in entry.task.provides:
            for dependant in self._dependants.get(token, []):
                if dependant.state is State.BLOCKED and dependant.blocked_by == token:
                    dependant.blocked_by = None
                    self._set(dependant, State.WAITING)
                    self._regain(dependant)

    def _release(self, name: str) -> Entry:
        entry = self.entries[name]
        if entry.state is not State.RUNNING:
            raise ValueError(f"{name} is {entry.state}, not running")
        self.capacity.release(entry.shape, entry.place)
        self.capacity.rooms.end(name)
        return entry

    def _make_ready(self, entry: Entry, *, resting: bool = False) -> None:
        if entry.state in (State.RUNNING, State.FAILED):
            self._turns.expect(entry.shape, entry.cost)  # once more
            if self._worth is not None:
                self._worth.returned(entry.task.name)
        self._set(entry, State.READY)
        entry.blocked_by = None
        entry.resting = resting
        if not resting:
            self._queue(entry)

    def _queue(self, entry: Entry) -> None:
        name = entry.task.name
        rank = NEUTRAL if self._worth is None else self._worth.rank(name)
        self._turns.add(entry.shape, entry.cost, entry.chain, entry.order, name, rank)

    def _rerank(self, names: Iterable[str]) -> None:
        """Of those that are ready."""
        assert self._worth is not None
        ranks: dict[Shape, dict[str, Rank]] = defaultdict(dict)
        for name in names:
            entry = self.entries[name]
            if entry.state is State.READY and not entry.resting:
                ranks[entry.shape][name] = self._worth.rank(name)
        for shape, changed in ranks.items():
            self._turns.rerank(shape, changed)

    def _lose(self, token: str) -> None:
        for entry in self._dependants.get(token, []):
            if entry.state is State.WAITING:
                self._block(entry, token)

    def _block(self, entry: Entry, token: str) -> None:
        entry.blocked_by = token
        self._set(entry, State.BLOCKED)
        self._newly_blocked.append(entry)
        for provided in entry.task.provides:
            self._lose(provided)

    def _set(self, entry: Entry, state: State) -> None:
        if (entry.state in _OVER) != (state in _OVER):
            self.cost_left += entry.cost if entry.state in _OVER else -entry.cost
        self._counts[entry.state] -= 1
        self._counts[state] += 1
        entry.state = state
