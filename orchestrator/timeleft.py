"""How long a sweep will still take: what is left of its units, by `Pacing`, on the devices it has.

What is left of a unit are its steps less those that it has reached, none below: a search that goes
on beyond what it counts as takes nothing off the others' work. Steps are weighed by the seconds
that they take, which runs of this command measure. Of the first run of a process these are counted
from the first step that is heard of, since it loads libraries and compiles; what later runs take
until their first step is added to each that is still to begin.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from orchestrator.ledger import Entry, Ledger, State
from orchestrator.listener import Live
from orchestrator.pacing import Pacing
from orchestrator.units import ARTEFACTS, Unit

__all__ = ["Left", "TimeLeft"]

_LEFT = frozenset({State.WAITING, State.READY, State.RUNNING})
_REMEMBERED = 5
_FEW = 0.25
"""Share of a first run's steps: where more are done before it is looked at, all of it counts."""


@dataclass(frozen=True)
class Left:
    """at_least: a teacher searches beyond the steps it counts as."""

    seconds: float
    at_least: bool = False


@dataclass
class _Begun:
    """A trial since its first step. paced: whether its seconds are counted."""

    live: Live
    at: float
    paced: bool


class TimeLeft:
    """pacing: of this command's runs alone; it is told here what they do. Clocks are the caller's,
    in seconds, and those of `Live.started`."""

    def __init__(self, ledger: Ledger, pacing: Pacing) -> None:
        self._ledger = ledger
        self._pacing = pacing
        self._takers = _takers(ledger)
        self._begun: dict[str, _Begun] = {}
        self._reached: dict[str, int] = {}
        self._ends: dict[str, float] = {}
        """Last step of units that were begun, as far as it is known."""
        self._start_ups: deque[float] = deque(maxlen=_REMEMBERED)
        self._first_end: float | None = None

    # -- what trials say ---------------------------------------------------------------------

    def started(self, live: Live, now: float) -> None:
        name, before = live.unit.name, live.first_step - 1
        self._close(name, now)
        self._reached[name] = before
        self._ends.setdefault(name, before + self._ledger.entries[name].cost)
        is_warm = self._first_end is not None and live.started >= self._first_end
        if is_warm:
            self._start_ups.append(now - live.started)
        paced = is_warm or live.unit.kind in ARTEFACTS
        if paced:
            self._pacing.began(live.unit, live.first_step, now)
        self._begun[name] = _Begun(live, now, paced)

    def look(self, live: Mapping[str, Live], now: float) -> None:
        """live: what runs now, by name."""
        for name, begun in list(self._begun.items()):
            if live.get(name) is begun.live:
                self._hear(name, begun, now)
            else:
                self._close(name, now)

    def finished(self, live: Live, now: float) -> None:
        """It came to its end."""
        begun = self._begun.get(live.unit.name)
        if begun is not None:
            self._hear(live.unit.name, begun, now)
            self._close(live.unit.name, now, well=True)

    def _hear(self, name: str, begun: _Begun, now: float) -> None:
        live = begun.live
        self._reached[name] = max(self._reached[name], live.step)
        trained = live.steps_trained
        if not begun.paced and trained:
            few = trained <= _FEW * self._ledger.entries[name].cost
            at = (live.step + 1, now) if few else (live.first_step, begun.at)
            self._pacing.began(live.unit, *at)
            begun.paced = True
        self._pacing.at(name, live.step, now)

    def _close(self, name: str, now: float, *, well: bool = False) -> None:
        if self._begun.pop(name, None) is not None:
            self._pacing.ended(name, now, well=well)
            self._first_end = now if self._first_end is None else self._first_end

    # -- asking ------------------------------------------------------------------------------

    def left(self, now: float) -> Left | None:
        """None while no pace is known. The work that is left on all devices, or the longest chain
        of units that wait for each other, whichever takes longer. Kinds of runs like which nothing
        was measured take the mean pace of those that were."""
        entries = [entry for entry in self._ledger.entries.values() if entry.state in _LEFT]
        seconds = self._seconds(entries, now)
        if seconds is None:
            return None
        work = sum(seconds[entry.task.name] * entry.shape.devices for entry in entries)
        chains = self._chains(entries, seconds)
        return Left(
            max(work / self._devices(entries), max(chains.values(), default=0.0)),
            at_least=any(self._is_beyond(entry) for entry in entries),
        )

    def _seconds(self, entries: list[Entry], now: float) -> dict[str, float] | None:
        """Of each unit until its end."""
        found: dict[str, float] = {}
        unknown: dict[str, float] = {}
        known_s = known_steps = 0.0
        start_up_s = median(self._start_ups) if self._start_ups else 0.0
        for entry in entries:
            unit = _unit(entry)
            steps = 0.0 if unit.kind in ARTEFACTS else self._steps(entry)
            counted = max(1.0, steps)  # of what has no steps left, the pace is known all the same
            own = self._pacing.seconds(unit, counted)
            found[unit.name] = 0.0 if entry.state is State.RUNNING else start_up_s
            if unit.kind in ARTEFACTS:
                begun = self._begun.get(unit.name)
                found[unit.name] += max(0.0, (own or 0.0) - (now - begun.at if begun else 0.0))
            elif own is None:
                unknown[unit.name] = steps
            else:
                found[unit.name] += own * steps / counted
                known_s, known_steps = known_s + own, known_steps + counted
        if sum(unknown.values()) and not known_steps:
            return None
        for name, steps in unknown.items():
            found[name] += known_s / known_steps * steps if steps else 0.0
        return found

    def _steps(self, entry: Entry) -> float:
        name = entry.task.name
        return max(0.0, self._ends.get(name, entry.cost) - self._reached.get(name, 0))

    def _is_beyond(self, entry: Entry) -> bool:
        """Whether it is a search with nothing left of what it counts as."""
        is_search = _unit(entry).kind == "teacher" and entry.task.name in self._begun
        return is_search and not self._steps(entry)

    def _chains(self, entries: list[Entry], seconds: Mapping[str, float]) -> dict[str, float]:
        """Seconds from each unit's beginning to the end of the longest chain that waits for it."""
        found: dict[str, float] = {}
        for entry in sorted(entries, key=lambda entry: -_unit(entry).rank):  # from the far end
            waiting = (found.get(one.task.name, 0.0) for one in self._takers[entry.task.name]
                       if one.state is State.WAITING)  # fmt: skip
            found[entry.task.name] = seconds[entry.task.name] + max(waiting, default=0.0)
        return found

    def _devices(self, entries: list[Entry]) -> float:
        """That these units can use at once, also those that wait for a teacher now."""
        capacity = self._ledger.capacity
        there = max(capacity.total - capacity.taken, capacity.used)
        if capacity.most_runs is not None:
            widest = max((entry.shape.devices for entry in entries), default=1.0)
            there = min(there, capacity.most_runs * widest)
        return there or 1.0


def _takers(ledger: Ledger) -> Mapping[str, list[Entry]]:
    """By unit, who waits for something of it."""
    maker = {token: entry.task.name for entry in ledger.entries.values()
             for token in entry.task.provides}  # fmt: skip
    takers: dict[str, list[Entry]] = defaultdict(list)
    for entry in ledger.entries.values():
        for name in {maker[token] for token in entry.task.needs if token in maker}:
            takers[name].append(entry)
    return takers


def _unit(entry: Entry) -> Unit:
    assert isinstance(entry.task, Unit)
    return entry.task
