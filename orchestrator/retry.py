"""What to do about a failed attempt: a pure policy. The driver acts on its answer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Attempts", "Cause", "Decision", "Failure"]


class Cause(StrEnum):
    """Why an attempt ended without finishing. Every failure has exactly one."""

    PREEMPTED = "preempted"
    WORKER_LOST = "worker lost"
    OUT_OF_MEMORY = "out of memory"
    UNREACHABLE = "accuracy not reached"
    DIVERGED = "diverged"
    ERROR = "error"


class Decision(StrEnum):
    RETRY = "retry"
    GIVE_UP = "give up"


_BUDGETS = {Cause.PREEMPTED: 20, Cause.WORKER_LOST: 3, Cause.OUT_OF_MEMORY: 2}
"""Retries a run has for each cause. What is not listed would fail again the same way: a bug, bad
data, a loss that is not finite (training is deterministic), an accuracy never reached."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One failed attempt. message: one line. traceback: as Python prints it, or empty."""

    cause: Cause
    message: str
    traceback: str = ""

    @property
    def signature(self) -> tuple[Cause, str]:
        """Equal for failures that are "the same way": the cause and the kind of error."""
        return self.cause, self.message.split(":", 1)[0]


@dataclass
class Attempts:
    """A run's failures so far; each cause has a budget of its own."""

    failures: list[Failure] = field(default_factory=list)

    def decide(self, failure: Failure) -> Decision:
        """Records the failure and says whether the run gets another attempt."""
        self.failures.append(failure)
        used = Counter(one.cause for one in self.failures)[failure.cause]
        return Decision.RETRY if used <= _BUDGETS.get(failure.cause, 0) else Decision.GIVE_UP
