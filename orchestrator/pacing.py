"""How long a unit will take, corrected by what runs of this command really take. Pure.

Begins with the paces that were measured before (`Pace`); what trials report goes before them: the
seconds between a run's first step and its latest, evaluations and waiting for a shared device
included. A kind of run that has not been seen yet takes its earlier pace times the correction of
those that have, or the pace of its siblings (same data set, backbone and batch).
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.estimate import Pace, group_of
from orchestrator.rates import Group
from orchestrator.units import ARTEFACTS, Unit
from trainers.data.info import DatasetInfo

__all__ = ["Pacing"]

_ENOUGH_S = 5.0
"""Of training before a pace counts: the first steps load and compile."""


@dataclass
class _Seen:
    """steps trained in so many seconds; expected_s: by the earlier pace, where there is one,
    elsewhere_s: by another device's. ended: runs that came to their end."""

    steps: int = 0
    seconds: float = 0.0
    expected_s: float = 0.0
    elsewhere_s: float = 0.0
    ended: int = 0

    @property
    def counts(self) -> bool:
        return self.steps > 0 and (self.seconds >= _ENOUGH_S or self.ended > 0)

    def add(self, other: _Seen) -> None:
        self.steps += other.steps
        self.seconds += other.seconds
        self.expected_s += other.expected_s
        self.elsewhere_s += other.elsewhere_s
        self.ended += other.ended


@dataclass
class _Running:
    first_step: int
    since: float
    seen: _Seen = field(default_factory=_Seen)


class Pacing:
    """steps: what is left of each unit, by name (`units.cost_left`). compare: paces of another
    device, for what kinds of runs take beside each other. Clocks are the caller's, in seconds."""

    def __init__(
        self,
        pace: Pace,
        infos: Mapping[str, DatasetInfo],
        steps: Mapping[str, float],
        compare: Pace | None = None,
    ) -> None:
        self._pace = pace
        self._compare = compare
        self._infos = infos
        self._steps = steps
        self._groups: dict[str, Group] = {}
        self._past: dict[Group, _Seen] = defaultdict(_Seen)
        self._running: dict[str, _Running] = {}
        self._units: dict[str, Unit] = {}
        self._artefact_s: dict[tuple[str, str], float] = {}
        self._known: dict[Group, _Seen] | None = None

    def seconds(self, unit: Unit, steps: float | None = None) -> float | None:
        """Of so many of the unit's steps, else of all that are left of it, from the first to its
        end; None where nothing like it was measured. Files
        that others learn from take as long as the slowest so far of their kind and data set; before
        one was seen, as long as training on all images, which is more than evaluating them."""
        if unit.kind in ARTEFACTS:
            return self._artefact_s.get(_artefact(unit), self._pass_s(unit))
        steps = self._steps[unit.name] if steps is None else steps
        group = self._group(unit)
        known = self._seen()
        own = known.get(group)
        if own is not None:
            return steps * own.seconds / own.steps
        earlier = self._pace.seconds(unit, steps)
        if earlier is not None:
            return earlier * _correction(known.values())
        siblings = [seen for other, seen in known.items() if _family(other) == _family(group)]
        trained = sum(seen.steps for seen in siblings)
        if trained:
            return steps * sum(seen.seconds for seen in siblings) / trained
        return self._compared_s(unit, steps)

    # -- what trials say ---------------------------------------------------------------------

    def began(self, unit: Unit, first_step: int, now: float) -> None:
        self._units[unit.name] = unit
        self._running[unit.name] = _Running(first_step, now)

    def at(self, name: str, step: int, now: float) -> None:
        running = self._running.get(name)
        if running is None or (unit := self._units[name]).kind in ARTEFACTS:
            return
        seen = running.seen
        seen.steps = max(seen.steps, step - running.first_step + 1)
        seen.seconds = now - running.since
        seen.expected_s = self._pace.seconds(unit, seen.steps) or 0.0
        if self._compare is not None:
            seen.elsewhere_s = self._compare.seconds(unit, seen.steps) or 0.0
        self._known = None

    def ended(self, name: str, now: float, *, well: bool) -> None:
        """well: it came to its end, so that its seconds have all in them."""
        running = self._running.pop(name, None)
        if running is None:
            return
        unit = self._units.pop(name)
        if unit.kind in ARTEFACTS:
            if well:
                at = _artefact(unit)
                self._artefact_s[at] = max(self._artefact_s.get(at, 0.0), now - running.since)
            return
        if well:
            running.seen.seconds = now - running.since
            running.seen.ended = 1
        self._past[self._group(unit)].add(running.seen)
        self._known = None

    # -- inside ------------------------------------------------------------------------------

    def _compared_s(self, unit: Unit, steps: float) -> float | None:
        """What another device would take, times what runs of this command take of it."""
        if self._compare is None or not self._seen():
            return None
        theirs = self._compare.seconds(unit, steps)
        both = [(seen.seconds, seen.elsewhere_s) for seen in self._seen().values()]
        expected = sum(other for _, other in both if other)
        if theirs is None or not expected:
            return None
        return theirs * sum(own for own, other in both if other) / expected

    def _pass_s(self, unit: Unit) -> float | None:
        """Of training on every image once, at the slowest pace seen; None before one was."""
        dataset = unit.spec.dataset.name
        info = self._infos.get(dataset)
        paces = [
            seen.seconds / seen.steps / group.batch_size
            for group, seen in self._seen().items()
            if group.dataset == dataset
        ]
        return info.num_train * max(paces) if info is not None and paces else None

    def _group(self, unit: Unit) -> Group:
        if unit.name not in self._groups:
            self._groups[unit.name] = group_of(unit, self._infos)
        return self._groups[unit.name]

    def _seen(self) -> dict[Group, _Seen]:
        """What counts, by group, the trials that run now among it."""
        if self._known is None:
            found = {group: dataclasses.replace(seen) for group, seen in self._past.items()}
            for name, running in self._running.items():
                unit = self._units[name]
                if unit.kind not in ARTEFACTS:
                    found.setdefault(self._group(unit), _Seen()).add(running.seen)
            self._known = {group: seen for group, seen in found.items() if seen.counts}
        return self._known


def _correction(seen: Iterable[_Seen]) -> float:
    """Seconds that runs took for one that was expected."""
    both = [one for one in seen if one.expected_s > 0]
    expected = sum(one.expected_s for one in both)
    return sum(one.seconds for one in both) / expected if expected else 1.0


def _family(group: Group) -> Group:
    return dataclasses.replace(group, strategy="")


def _artefact(unit: Unit) -> tuple[str, str]:
    return unit.kind, unit.spec.dataset.name
