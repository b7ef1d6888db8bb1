"""Errors a person sees: one message with what, where and what to do; no traceback.

TargetsweepError              exit status 1
├── UserError                 exit status 2: nothing was started, nothing was lost
│   ├── SpecError             all problems of the sweep files at once
│   ├── StoreError            the store cannot be read or written
│   │   └── StoreInUseError   another driver holds the store
│   └── MachineError          this machine lacks something (a device, an address)
└── RunsFailedError           some runs failed or are blocked; the rest is finished
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "MachineError",
    "Problem",
    "RunsFailedError",
    "SpecError",
    "StoreError",
    "StoreInUseError",
    "TargetsweepError",
    "UserError",
    "nearest",
]


def nearest(value: object, valid: Iterable[object]) -> str | None:
    """The valid name most like `value`, or None when none is alike."""
    matches = difflib.get_close_matches(str(value), [str(name) for name in valid], n=1, cutoff=0.5)
    return matches[0] if matches else None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong in one place of a sweep file or of an option."""

    file: str
    key: str
    message: str
    line: int | None = None
    value: object = None
    nearest: str | None = None
    remedy: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        text = f"{place}: {self.key}: {self.message}"
        if self.nearest is not None:
            text += f"\n  nearest valid name: {self.nearest}"
        if self.remedy:
            text += f"\n  remedy: {self.remedy}"
        return text


class TargetsweepError(Exception):
    exit_status = 1


class UserError(TargetsweepError):
    """problem: what is wrong, with the value. remedy: what to do about it."""

    exit_status = 2

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n  remedy: {self.remedy}" if self.remedy else self.problem


class SpecError(UserError):
    """problems: every problem found, in file order."""

    def __init__(self, problems: list[Problem]) -> None:
        Exception.__init__(self, problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class StoreError(UserError):
    pass


class StoreInUseError(StoreError):
    pass


class MachineError(UserError):
    pass


class RunsFailedError(TargetsweepError):
    pass
