"""A cluster on a simulated clock: the real searcher, ledger and admission; nothing trains.

Runs take their true seconds. The ledger sees what it sees in life: estimates in steps, snapshots
while the teacher still trains, attempts that die, nodes that leave and join.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.admission import Capacity, Shape
from orchestrator.ledger import Ledger, State, Task
from orchestrator.retry import Cause, Failure
from orchestrator.searcher import UnitSearcher

__all__ = ["NARROW", "Devices", "NodeChange", "Run", "Simulation", "Span"]


NARROW = Shape()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A unit. cost: its length in steps, as the ledger estimates it. seconds: as it really is, on
    all its devices. provides: tokens by the share of its way at which they come (1: at the end)."""

    name: str
    cost: float
    seconds: float
    shape: Shape = NARROW
    needs: tuple[str, ...] = ()
    offers: tuple[tuple[float, str], ...] = ()

    @property
    def provides(self) -> tuple[str, ...]:
        return tuple(token for _, token in self.offers)

    @property
    def device_seconds(self) -> float:
        return self.seconds * self.shape.devices


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeChange:
    """At a moment a node joins (devices > 0) or leaves, with all that runs on it."""

    at_s: float
    node: int
    devices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One attempt: since when its run was ready, when it began and ended, what it occupied."""

    run: Run
    ready_s: float
    start_s: float
    end_s: float


_Device = tuple[int, int]


class Devices:
    """The GPUs themselves, as Ray hands them out: fractions share a GPU, a wide run takes whole
    ones, of any nodes."""

    def __init__(self, nodes: int, per_node: int) -> None:
        self.whole: dict[_Device, None] = {}
        self._parts: dict[_Device, float] = {}
        self.total = 0
        for node in range(nodes):
            self.join(node, per_node)

    def join(self, node: int, devices: int) -> None:
        self.whole |= {(node, index): None for index in range(devices)}
        self.total += devices

    def leave(self, node: int) -> None:
        """Once nothing runs there any more."""
        gone = [device for device in self.whole if device[0] == node]
        for device in gone:
            del self.whole[device]
        self.total -= len(gone)

    def place(self, shape: Shape) -> list[_Device] | None:
        share = shape.devices if shape.workers == 1 else 1.0
        if share < 1.0:
            fitting = [one for one, free in self._parts.items() if free >= share - 1e-9]
            if fitting:
                device = min(fitting, key=lambda one: self._parts[one])
            elif self.whole:
                device = self.whole.popitem()[0]
                self._parts[device] = 1.0
            else:
                return None
            self._parts[device] -= share
            return [device]
        if len(self.whole) < shape.devices:
            return None
        return [self.whole.popitem()[0] for _ in range(int(shape.devices))]

    def free(self, devices: Iterable[_Device], shape: Shape) -> None:
        for device in devices:
            if device in self._parts:
                self._parts[device] += shape.devices
                if self._parts[device] < 1.0 - 1e-9:
                    continue
                del self._parts[device]
            self.whole[device] = None


class _Conducted:
    """The conductor's part, without a store: what trials say becomes moves of the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._final: dict[str, str] = {}

    def next_trial(self) -> dict[str, Any] | None:
        task = self.ledger.next()
        return None if task is None else {"unit": task.name}

    @property
    def finished(self) -> bool:
        return self.ledger.finished

    def on_report(self, report: dict[str, Any]) -> None:
        if report["event"] == "snapshot":
            self.ledger.provide(report["token"])
        else:
            self._final[report["unit"]] = report["cause"]

    def on_end(self, unit: str, *, lost: bool, said: str = "") -> None:
        cause = self._final.pop(unit, "")
        if cause:
            self.ledger.fail(unit, Failure(cause=Cause(cause), message=cause))
        else:
            self.ledger.done(unit)


@dataclass
class _Attempt:
    run: Run
    trial: str
    ready_s: float
    start_s: float
    begun_at: float
    devices: list[_Device] = field(default_factory=list)


class Simulation:
    """checkpoint_s: what an attempt that dies loses at most. losses: the share of attempts that
    die. changes: nodes that join and leave."""

    def __init__(
        self,
        runs: Sequence[Run],
        *,
        nodes: int,
        per_node: int,
        seed: int = 0,
        checkpoint_s: float = 60.0,
        losses: float = 0.0,
        changes: Sequence[NodeChange] = (),
    ) -> None:
        self.runs = runs
        self.devices = Devices(nodes, per_node)
        self.ledger = Ledger(runs, Capacity(float(nodes * per_node)), shape_of=_shape)
        self.now = 0.0
        self.spans: list[Span] = []
        self.asked_s: list[float] = []
        """Real seconds of each answered `suggest`."""
        self.lost_s = 0.0
        self.squeezed = 0
        """Hand-outs that the ledger allowed and no devices could take at that moment."""
        self._searcher = UnitSearcher(_Conducted(self.ledger))
        self._by_name = {run.name: run for run in runs}
        self._provided_at: dict[str, float] = {}
        self._ready_at: dict[str, float] = {}
        self._kept: dict[str, float] = defaultdict(float)
        self._live: dict[str, _Attempt] = {}
        self._waiting: list[str] = []
        self._events: list[tuple[float, int, str, str, Any]] = []
        self._number = 0
        self._rng = random.Random(seed)
        self._checkpoint_s = checkpoint_s
        self._losses = losses
        for change in changes:
            self._at(change.at_s, "node", "", change)

    def run(self) -> Simulation:
        """Until Tune would end. RuntimeError when nothing runs, nothing can start, and units are
        left."""
        while self._hand_out():
            if not self._events:
                raise RuntimeError(f"stuck at {self.now:g} s: {self.ledger.count(State.READY)}")
            self.now, _, what, trial, argument = heapq.heappop(self._events)
            self._happen(what, trial, argument)
            while self._events and self._events[0][0] == self.now:
                _, _, what, trial, argument = heapq.heappop(self._events)
                self._happen(what, trial, argument)
        return self

    # -- handing out -------------------------------------------------------------------------

    def _hand_out(self) -> bool:
        """As Tune does: asks until the answer is "later" (True) or "nothing is left" (False)."""
        while True:
            self._number += 1
            trial = f"trial-{self._number}"
            begun = time.perf_counter()
            answer = self._searcher.suggest(trial)
            if isinstance(answer, dict):
                self.asked_s.append(time.perf_counter() - begun)
                self._begin(trial, self._by_name[answer["unit"]])
            else:
                return answer is None

    def _begin(self, trial: str, run: Run) -> None:
        ready = self._ready_at.get(run.name)
        if ready is None:
            ready = max((self._provided_at[token] for token in run.needs), default=0.0)
        self._live[trial] = _Attempt(run, trial, ready, self.now, self._kept[run.name])
        if not self._place(trial):
            self.squeezed += 1
            self._waiting.append(trial)

    def _place(self, trial: str) -> bool:
        attempt = self._live[trial]
        devices = self.devices.place(attempt.run.shape)
        if devices is None:
            return False
        attempt.devices, attempt.start_s = devices, self.now
        run, done = attempt.run, attempt.begun_at
        for share, token in run.offers:
            if share < 1.0 and share * run.seconds > done:
                self._at(self.now + share * run.seconds - done, "snapshot", trial, token)
        left = run.seconds - done
        if self._rng.random() < self._losses:
            self._at(self.now + left * self._rng.random(), "dies", trial, Cause.WORKER_LOST)
        else:
            self._at(self.now + left, "ends", trial, None)
        return True

    # -- what happens ------------------------------------------------------------------------

    def _at(self, when: float, what: str, trial: str, argument: Any) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, what, trial, argument))

    def _happen(self, what: str, trial: str, argument: Any) -> None:
        if what == "node":
            self._change(argument)
        elif trial not in self._live:
            return  # it died before
        elif what == "snapshot":
            self._provided_at.setdefault(argument, self.now)
            report = {"unit": self._live[trial].run.name, "event": "snapshot", "token": argument}
            self._searcher.on_trial_result(trial, report)
        else:
            self._end(trial, argument)

    def _end(self, trial: str, cause: Cause | None) -> None:
        attempt = self._live.pop(trial)
        run = attempt.run
        if attempt.devices:
            self.devices.free(attempt.devices, run.shape)
            self._count(attempt)
        report = {"unit": run.name, "event": "finished", "cause": cause.value if cause else ""}
        if cause is not None:
            self._ready_at[run.name] = self.now
            trained = attempt.begun_at + (self.now - attempt.start_s if attempt.devices else 0.0)
            self._kept[run.name] = trained - trained % self._checkpoint_s
            self.lost_s += (trained % self._checkpoint_s) * run.shape.devices
        else:
            for _, token in run.offers:
                self._provided_at.setdefault(token, self.now)
        self._searcher.on_trial_complete(trial, report)
        self._waiting = [one for one in self._waiting if one != trial and not self._place(one)]

    def _count(self, attempt: _Attempt) -> None:
        span = Span(
            run=attempt.run, ready_s=attempt.ready_s, start_s=attempt.start_s, end_s=self.now
        )
        self.spans.append(span)

    def _change(self, change: NodeChange) -> None:
        """A node that leaves takes its runs with it; capacity follows, as the driver's view of the
        cluster makes it."""
        if change.devices > 0:
            self.devices.join(change.node, change.devices)
        else:
            on_it = [
                trial
                for trial, attempt in self._live.items()
                if any(node == change.node for node, _ in attempt.devices)
            ]
            for trial in on_it:
                self._end(trial, Cause.PREEMPTED)
            self.devices.leave(change.node)
        self.ledger.capacity.total = float(self.devices.total)


def _shape(task: Task) -> Shape:
    assert isinstance(task, Run)
    return task.shape
