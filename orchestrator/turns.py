"""Whose turn it is among ready units of different widths: a pure policy.

Units of one shape are a kind; within it the longest chain goes first. Each hand-out moves its kind
forward by the part of the kind's remaining work that it is. Kinds may drift apart by a twentieth:
within that the widest that fits goes first, so that a place stays with its kind. One that fell
further behind is served alone until it is level again: devices that come free wait for it. So all
kinds end together and none starves, however many units the others have.

A rank goes before all that: of several priorities, whatever widths they have, only the highest
that has something ready is served. Within a kind the rank goes before the chain. Under a time limit
units that could do nothing useful any more are passed over, and of one priority those that can end
go first (`budget`).

A strict order over all units would cost up to a sixth of the cluster: each time narrow units take
the place of a wide one, as many devices must fall idle before the next wide one fits. Measured by
benchmarks/schedule_sim.py.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.admission import Capacity, Shape
from orchestrator.budget import Admit, Chance
from orchestrator.worth import NEUTRAL, Rank

__all__ = ["Turns"]

_MOST_BEHIND = 0.05
"""Of a kind's remaining work. Less means more changes of hands, each with idle devices; more means
longer waits for a kind whose units are few or large."""


_Item = tuple[Rank, float, int, str, float]
"""Rank, −chain, order, name, cost of a ready unit: the smallest goes first."""


@dataclass(eq=False)
class _Kind:
    """left: work (cost × devices) not handed out yet. passed: how far the kind has come."""

    shape: Shape
    left: float = 0.0
    passed: float = 0.0
    ready: list[_Item] = field(default_factory=list)

    def hand_out(self, cost: float) -> None:
        work = cost * self.shape.devices
        self.passed += min(1.0, work / max(self.left, 1e-9))
        self.left -= work

    def head(self, admit: Admit | None) -> _Item | None:
        """The next one, left where it is."""
        if admit is None:
            return self.ready[0] if self.ready else None
        partly: _Item | None = None
        for item in sorted(self.ready):
            if partly is not None and item[0][0] != partly[0][0]:  # a lower priority
                break
            chance = admit(item[3])
            if chance is Chance.ENDS:
                return item
            if chance is Chance.PROGRESSES and partly is None:
                partly = item
        return partly

    def remove(self, item: _Item) -> None:
        if item is self.ready[0]:
            heapq.heappop(self.ready)
        else:
            self.ready.remove(item)
            heapq.heapify(self.ready)

    def rerank(self, ranks: Mapping[str, Rank]) -> None:
        self.ready = [(ranks.get(item[3], item[0]), *item[1:]) for item in self.ready]
        heapq.heapify(self.ready)


class Turns:
    def __init__(self) -> None:
        self._kinds: dict[Shape, _Kind] = {}
        self._catching_up: _Kind | None = None

    def expect(self, shape: Shape, cost: float) -> None:
        """A unit that is to be handed out some day, or once more."""
        self._kinds.setdefault(shape, _Kind(shape)).left += cost * shape.devices

    def add(
        self, shape: Shape, cost: float, chain: float, order: int, name: str, rank: Rank = NEUTRAL
    ) -> None:
        """An expected unit is ready. A kind that had nothing ready for a while begins level with
        the others: it does not catch up at their cost."""
        kind = self._kinds[shape]
        if not kind.ready:
            passed = [other.passed for other in self._kinds.values() if other.ready]
            kind.passed = max(kind.passed, min(passed, default=0.0))
        heapq.heappush(kind.ready, (rank, -chain, order, name, cost))

    def rerank(self, shape: Shape, ranks: Mapping[str, Rank]) -> None:
        """Ready units of this shape have other ranks now."""
        self._kinds[shape].rerank(ranks)

    def take(self, capacity: Capacity, admit: Admit | None = None) -> str | None:
        """The unit whose turn it is, taken out; None when that one must wait for devices. Units
        that no devices could take now or later keep nobody waiting, nor do those that a time limit
        does not admit."""
        fitting = capacity.can_ever_fit
        kinds = [kind for kind in self._kinds.values() if kind.ready and fitting(kind.shape)]
        if admit is not None and not any(capacity.fits(kind.shape) for kind in kinds):
            return None  # before anything is looked through
        heads = {kind: head for kind in kinds if (head := kind.head(admit)) is not None}
        highest = min((head[0][0] for head in heads.values()), default=0)
        kinds = [kind for kind, head in heads.items() if head[0][0] == highest]
        self._choose_who_catches_up(kinds)
        for kind in sorted(kinds, key=lambda kind: -kind.shape.devices):
            if self._may_go(kind, capacity):
                item = heads[kind]
                kind.remove(item)
                kind.hand_out(item[4])
                return item[3]
        return None

    def _may_go(self, kind: _Kind, capacity: Capacity) -> bool:
        """While one catches up, others may still fill the rest of a shared device, which that one
        cannot use, but not for ever: shared devices would never become whole."""
        behind = self._catching_up
        if behind is None or kind.passed <= behind.passed:
            return capacity.fits(kind.shape)
        near = kind.passed <= behind.passed + 2 * _MOST_BEHIND
        return near and capacity.fits_beside(kind.shape, behind.shape)

    def _choose_who_catches_up(self, kinds: Sequence[_Kind]) -> None:
        """A kind that fell too far behind any other is served alone, until it is level with the
        first or another is as far behind it."""
        if not kinds:
            return
        first = max(kind.passed for kind in kinds)
        last = min(kinds, key=lambda kind: kind.passed)
        now = self._catching_up if self._catching_up in kinds else None
        if now is not None and now.passed >= first:
            now = None
        if (first if now is None else now.passed) - last.passed > _MOST_BEHIND:
            now = last
        self._catching_up = now
