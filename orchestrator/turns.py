"""Whose turn it is among ready units of different widths: a pure policy.

Units of one shape are a kind; within it the longest chain goes first. Each hand-out moves its kind
forward by the part of the kind's remaining work that it is. Kinds may drift apart by a twentieth:
within that the widest that fits goes first, so that a place stays with its kind. One that fell
further behind is served alone until it is level again: devices that come free wait for it. So all
kinds end together and none starves, however many units the others have.

A strict order over all units would cost up to a sixth of the cluster: each time narrow units take
the place of a wide one, as many devices must fall idle before the next wide one fits. Measured by
benchmarks/schedule_sim.py.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.admission import Capacity, Shape

__all__ = ["Turns"]

_MOST_BEHIND = 0.05
"""Of a kind's remaining work. Less means more changes of hands, each with idle devices; more means
longer waits for a kind whose units are few or large."""


@dataclass(eq=False)
class _Kind:
    """left: work (cost × devices) not handed out yet. passed: how far the kind has come."""

    shape: Shape
    left: float = 0.0
    passed: float = 0.0
    ready: list[tuple[float, int, str, float]] = field(default_factory=list)

    def hand_out(self, cost: float) -> None:
        work = cost * self.shape.devices
        self.passed += min(1.0, work / max(self.left, 1e-9))
        self.left -= work


class Turns:
    def __init__(self) -> None:
        self._kinds: dict[Shape, _Kind] = {}
        self._catching_up: _Kind | None = None

    def expect(self, shape: Shape, cost: float) -> None:
        """A unit that is to be handed out some day, or once more."""
        self._kinds.setdefault(shape, _Kind(shape)).left += cost * shape.devices

    def add(self, shape: Shape, cost: float, chain: float, order: int, name: str) -> None:
        """An expected unit is ready. A kind that had nothing ready for a while begins level with
        the others: it does not catch up at their cost."""
        kind = self._kinds[shape]
        if not kind.ready:
            passed = [other.passed for other in self._kinds.values() if other.ready]
            kind.passed = max(kind.passed, min(passed, default=0.0))
        heapq.heappush(kind.ready, (-chain, order, name, cost))

    def take(self, capacity: Capacity) -> str | None:
        """The unit whose turn it is, taken out; None when that one must wait for devices. Units
        that no devices could take now or later keep nobody waiting."""
        fitting = capacity.can_ever_fit
        kinds = [kind for kind in self._kinds.values() if kind.ready and fitting(kind.shape)]
        self._choose_who_catches_up(kinds)
        for kind in sorted(kinds, key=lambda kind: -kind.shape.devices):
            if self._may_go(kind, capacity):
                _, _, name, cost = heapq.heappop(kind.ready)
                kind.hand_out(cost)
                return name
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
