"""A run's time limit, and what may still be begun within it: a pure policy over seconds.

Three moments: at `stop_at` running trials are asked to save a checkpoint and end, at `leave_at` the
driver goes on without those that have not, at `end_s` the command is over. Between the last two
come reports, MLflow and the bundle.

What may begin: a run that ends before `stop_at`; else one that trains for `useful_s` at least and
for a tenth of what it has left, since it saves a checkpoint when it is asked to stop. Nothing is
begun that would end neither way. Of one priority, runs that can end go before those that cannot.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from orchestrator.errors import UserError

__all__ = [
    "NO_BUDGET", "Admit", "Chance", "Limit", "parse_budget", "parse_slurm_time", "reserve_s",
]  # fmt: skip

NO_BUDGET = "none"
"""The word that turns a limit off, Slurm's too."""

_SECONDS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}
_DURATION = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in _SECONDS))

_USEFUL_S = 60.0
_USEFUL_SHARE = 0.1
_LEAST_RESERVE_S = 20.0
_LEAST_UNMEASURED_S = 30.0
_MOST_UNMEASURED_S = 120.0
_MARGIN = 1.5
_ESTIMATE_MARGIN = 1.1
"""A run's seconds are known to a few per cent at best."""

_SEARCH_MARGIN = 2.0
"""A search's are not: how far a teacher must go, nobody knows before."""


class Chance(StrEnum):
    """What a run would come to if it began now."""

    ENDS = "ends"
    PROGRESSES = "progresses"
    NONE = "none"


Admit = Callable[[str], Chance]
"""Of a unit, by name."""


def parse_budget(text: str) -> float | None:
    """Seconds of `25m`, `1h30m`, `90s`, `2h`, `1d`; None of `none`. Raises UserError for what is no
    duration, or none at all."""
    said = text.strip().lower().replace(" ", "")
    if said == NO_BUDGET:
        return None
    found = _DURATION.fullmatch(said) if said else None
    if found is None:
        remedy = "say it with units, as 25m, 1h30m, 90s or 2h; `none` is no limit"
        raise UserError(f"--budget {text!r} is no duration", remedy)
    parts = zip(found.groups(), _SECONDS.values(), strict=True)
    seconds = sum(float(number) * unit for number, unit in parts if number)
    if seconds <= 0:
        raise UserError(
            f"--budget {text!r} leaves no time", "give a duration above 0, or `none` for no limit"
        )
    return seconds


def parse_slurm_time(text: str) -> float | None:
    """Seconds of what `squeue -o %L` prints, `[days-][hours:]minutes:seconds` (squeue(1)); None
    where a job has no limit, or is not known."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def reserve_s(total_s: float, measured_s: float | None) -> float:
    """Seconds kept free at the end. measured_s: what stopping and reporting took in this store the
    last time; half as much again is kept. Never measured: a twentieth of the whole, 30 s to 2 min.
    At least 20 s, else at most half of the whole: what was slow once may be so no more."""
    if measured_s is None:
        wanted = min(max(_LEAST_UNMEASURED_S, 0.05 * total_s), _MOST_UNMEASURED_S)
    else:
        wanted = _MARGIN * measured_s
    return max(_LEAST_RESERVE_S, min(wanted, 0.5 * total_s))


@dataclass(frozen=True, kw_only=True)
class Limit:
    """total_s: the whole budget. end_s: when it is over, on a clock that never jumps. reserve_s:
    `reserve_s`. said: whose limit it is, for the screen. began_s: when the command began to get
    ready, on the same clock."""

    total_s: float
    end_s: float
    reserve_s: float = _LEAST_RESERVE_S
    said: str = "--budget"
    began_s: float = 0.0

    @property
    def stop_at(self) -> float:
        return self.end_s - self.reserve_s

    @property
    def leave_at(self) -> float:
        return self.end_s - 0.6 * self.reserve_s

    @property
    def useful_s(self) -> float:
        """The least training that is worth a start: a minute; in short budgets, a quarter of what
        is not reserved."""
        return min(_USEFUL_S, 0.25 * max(0.0, self.total_s - self.reserve_s))

    def ready(self, now: float) -> Limit:
        """The same limit, once Ray is there and the first run can begin. Getting ready (libraries,
        plan, Ray) is about as much work as the end (trials, reports, MLflow), some ten seconds each
        on a machine that does nothing else: so the end gets as long at least."""
        slow = max(self.reserve_s, min(now - self.began_s, 0.5 * self.total_s))
        return replace(self, reserve_s=slow)

    def chance(
        self,
        now: float,
        start_up_s: float,
        needed_s: float | None,
        saves: bool,
        *,
        is_search: bool = False,
    ) -> Chance:
        """Of a run that is handed out now. start_up_s: until its first step. needed_s: from there
        to its end; None where nothing like it was measured. saves: it can stop at a checkpoint.
        is_search: needed_s is an assumption; only twice as long counts as enough for its end."""
        left_s = self.stop_at - now - start_up_s
        if left_s <= 0:
            return Chance.NONE
        if needed_s is None:
            return Chance.PROGRESSES if left_s >= self.useful_s else Chance.NONE
        if needed_s * (_SEARCH_MARGIN if is_search else _ESTIMATE_MARGIN) <= left_s:
            return Chance.ENDS
        enough = left_s >= max(self.useful_s, _USEFUL_SHARE * needed_s)
        return Chance.PROGRESSES if saves and enough else Chance.NONE
