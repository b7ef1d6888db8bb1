"""What to do about a failed attempt: a pure policy. The driver acts on its answer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Attempts", "Cause", "Decision", "Failure"]


class Cause(StrEnum):
    """Why an attempt ended without finishing. Every failure has exactly one. SUPERSEDED: by the
    worker of another driver, which took the store over."""

    PREEMPTED = "preempted"
    WORKER_LOST = "worker lost"
    OUT_OF_MEMORY = "out of memory"
    DEVICE = "device error"
    HUNG = "hung"
    STORE = "store"
    SUPERSEDED = "superseded"
    DAMAGED = "damaged file"
    UNREACHABLE = "accuracy not reached"
    DIVERGED = "diverged"
    ERROR = "error"


class Decision(StrEnum):
    """What becomes of the unit. REDO: what it needs must be made again first, which takes a new
    plan; the unit is left, not failed."""

    RETRY = "retry"
    GIVE_UP = "give up"
    REDO = "redo"


_BUDGETS = {
    Cause.PREEMPTED: 20,
    Cause.WORKER_LOST: 3,
    Cause.OUT_OF_MEMORY: 2,
    Cause.DEVICE: 2,
    Cause.HUNG: 2,
    Cause.STORE: 5,
}
"""Retries a run has for each cause. What is not listed would fail again the same way: a bug, bad
data, a loss that is not finite (training is deterministic), an accuracy never reached."""

_UNSYSTEMATIC = frozenset({Cause.PREEMPTED, Cause.DAMAGED, Cause.DIVERGED, Cause.UNREACHABLE})
"""Causes that say nothing about the next run: nodes leave, files rot, and a learning rate on an
axis may well begin with values that diverge."""

_FIRST_WAIT_S = {
    Cause.WORKER_LOST: 1.0,
    Cause.OUT_OF_MEMORY: 1.0,
    Cause.DEVICE: 5.0,
    Cause.HUNG: 1.0,
    Cause.STORE: 5.0,
}
_LONGEST_WAIT_S = 60.0

_RENEWAL_S = 3600.0
"""An attempt that went on for so long, and saved what it did, gives its run all its retries again:
a day's training on eight GPUs may lose a worker now and then, and gets on all the same."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One failed attempt. message: one line. traceback: as Python prints it, or empty. where: the
    machine and Ray node it ran on, for people, and node: that node's id; both empty where that is
    not known, or was more than one."""

    cause: Cause
    message: str
    traceback: str = ""
    where: str = ""
    node: str = ""

    @property
    def place(self) -> str:
        """Of failures that were all on one node, for the end of a clause; else ""."""
        return f", all on {self.where}" if self.where else ""

    @property
    def signature(self) -> tuple[Cause, str]:
        """Equal for failures that are "the same way": the cause and the kind of error."""
        return self.cause, self.message.split(":", 1)[0]

    @property
    def is_systematic(self) -> bool:
        """Whether many failures alike would mean that the sweep itself is wrong."""
        return self.cause not in _UNSYSTEMATIC


@dataclass
class Attempts:
    """A run's failures so far; each cause has a budget of its own. forgiven: how many of the first
    ones no longer count against it."""

    failures: list[Failure] = field(default_factory=list)
    forgiven: int = 0

    def decide(self, failure: Failure, *, worked_s: float = 0.0) -> Decision:
        """Records the failure and says whether the run gets another attempt. worked_s: seconds that
        this attempt went on for, where the store has what it did."""
        if worked_s >= _RENEWAL_S:
            self.forgiven = len(self.failures)
        self.failures.append(failure)
        if failure.cause is Cause.DAMAGED:
            return Decision.REDO
        used = self._counting()[failure.cause]
        return Decision.RETRY if used <= _BUDGETS.get(failure.cause, 0) else Decision.GIVE_UP

    def excuse(self) -> None:
        """What has failed so far was its node's fault, and counts against it no longer."""
        self.forgiven = len(self.failures)

    def by_cause(self) -> Counter[Cause]:
        """All of them."""
        return Counter(one.cause for one in self.failures)

    def _counting(self) -> Counter[Cause]:
        return Counter(one.cause for one in self.failures[self.forgiven :])

    def wait_s(self) -> float:
        """Seconds to leave the run alone after its last failure: 1, 2, 4 … (a store: 5, 10, 20 …),
        a minute at most. A machine that kills, a store that stutters, gets time to recover. None
        after a preemption: the run goes on elsewhere."""
        if not self.failures or (cause := self.failures[-1].cause) not in _FIRST_WAIT_S:
            return 0.0
        doubled = _FIRST_WAIT_S[cause] * 2.0 ** (self._counting()[cause] - 1)
        return min(doubled, _LONGEST_WAIT_S)
