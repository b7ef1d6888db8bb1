"""A time limit as the conductor sees it: what may begin now, and whether it is over."""

from __future__ import annotations

from collections import deque
from statistics import median

from orchestrator.budget import Admit, Chance, Limit
from orchestrator.pacing import Pacing
from orchestrator.units import ARTEFACTS, Unit

__all__ = ["Timebox"]

_START_UP_S = 5.0
"""From a hand-out to the first step, until one was seen."""

_REMEMBERED = 3


class Timebox:
    """units: those of the plan, by name. spent: the limit, and not a person or a failure, is why
    nothing more is begun. asked_at: when what ran was asked to save and end, on the conductor's
    clock; None: not yet. cut_off: the step at which each run that it cut off was saved."""

    def __init__(self, limit: Limit, pacing: Pacing, units: dict[str, Unit]) -> None:
        self.limit = limit
        self.spent = False
        self.asked_at: float | None = None
        self.cut_off: dict[str, int] = {}
        self._pacing = pacing
        self._units = units
        self._taken: dict[str, float] = {}
        self._start_ups: deque[float] = deque(maxlen=_REMEMBERED)

    def admit(self, now: float) -> Admit:
        start_up_s = median(self._start_ups) if self._start_ups else _START_UP_S

        def chance(name: str) -> Chance:
            unit = self._units[name]
            needed_s = self._pacing.seconds(unit)
            saves, is_search = unit.kind not in ARTEFACTS, unit.kind == "teacher"
            return self.limit.chance(now, start_up_s, needed_s, saves, is_search=is_search)

        return chance

    def is_over(self, now: float) -> bool:
        return now >= self.limit.stop_at

    def must_leave(self, now: float) -> bool:
        """Trials that were asked to end and did not are left where their last checkpoint is."""
        return now >= self.limit.leave_at

    # -- what trials say ---------------------------------------------------------------------

    def taken(self, name: str, now: float) -> None:
        self._taken[name] = now

    def began(self, unit: Unit, first_step: int, now: float) -> None:
        taken = self._taken.pop(unit.name, None)
        if taken is not None:
            self._start_ups.append(now - taken)
        self._pacing.began(unit, first_step, now)

    def at(self, name: str, step: int, now: float) -> None:
        self._pacing.at(name, step, now)

    def ended(self, name: str, step: int, now: float, *, reason: str | None) -> None:
        """reason: as a trial's last word gives it; None: it failed."""
        self._taken.pop(name, None)
        self._pacing.ended(name, now, well=reason == "done")
        if self.spent and reason == "stopped":
            self.cut_off[name] = step
