"""Which trials have said nothing for too long: a pure bookkeeping of when each was heard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.watchdog import FIRST_TIMES

__all__ = ["Silences"]

_NAP_S = 10.0
"""Looks come every second. One that is so late means that the driver itself did not run (a machine
that slept, a store that kept it waiting): nobody can have been heard meanwhile."""


@dataclass
class _Trial:
    """heard: when it last said something, or was killed for not doing so. has_begun: it has said
    something ever; before, it may be waiting for its devices. silent_s: how long it had been
    silent when it was killed."""

    heard: float
    has_begun: bool = False
    silent_s: float | None = None


class Silences:
    """after_s: silence that is too long. clock: seconds, of a clock that never jumps."""

    def __init__(self, after_s: float, clock: Callable[[], float]) -> None:
        self._after_s = max(after_s, _NAP_S)  # what is said takes its time through Ray
        self._clock = clock
        self._looked = clock()
        self._trials: dict[str, _Trial] = {}

    def begin(self, name: str) -> None:
        self._trials[name] = _Trial(self._clock())

    def heard(self, name: str) -> None:
        trial = self._trials[name]
        trial.heard, trial.has_begun = self._clock(), True

    def end(self, name: str) -> float | None:
        """Forgets a trial. The seconds for which it was silent where it was to be killed for it."""
        trial = self._trials.pop(name, None)
        return None if trial is None else trial.silent_s

    def look(self) -> list[str]:
        """Trials to kill (or, if they never began, to wonder about), once for every `after_s` that
        they stay silent; one that never began gets longer."""
        now = self._clock()
        nap_s, self._looked = now - self._looked, now
        found = []
        for name, trial in self._trials.items():
            if nap_s > _NAP_S:
                trial.heard = min(now, trial.heard + nap_s)
            limit_s = self._after_s * (1.0 if trial.has_begun else FIRST_TIMES)
            if now - trial.heard >= limit_s:
                trial.silent_s = (trial.silent_s or 0.0) + now - trial.heard
                trial.heard = now
                found.append(name)
        return found
