"""Errors a person sees: one message with what, where and what to do; no traceback.

TargetsweepError              exit status 1
├── UserError                 exit status 2: nothing was started, nothing was lost
│   ├── SpecError             all problems of the sweep files at once
│   ├── StoreError            the store cannot be read or written
│   │   ├── StoreInUseError   another driver holds the store
│   │   ├── DamagedFileError  a file is not what was once written: its checksum does not fit
│   │   ├── LostNeedError     a file that a run learns from is gone
│   │   └── SupersededError   a worker's run was given to another one
│   └── MachineError          this machine lacks something (a device, an address)
├── StoreTakenError           another driver took the store over while this one ran
└── RunsFailedError           some runs failed or are blocked; the rest is finished
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "DamagedFileError",
    "LostNeedError",
    "MachineError",
    "Problem",
    "RunsFailedError",
    "SpecError",
    "StoreError",
    "StoreInUseError",
    "StoreTakenError",
    "SupersededError",
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
    """errno: what the system said, where a read or a write failed; EIO where it gave no number
    (an object store's network). verb: what failed then: read, write, delete."""

    errno: int | None = None
    verb: str = ""


class StoreInUseError(StoreError):
    pass


class DamagedFileError(StoreError):
    """A file that is not what was once written.

    rel: the file. reason: how that was noticed. also: files that go with it and are set aside with
    it (a snapshot's record and its weights).
    """

    def __init__(
        self, rel: str, reason: str, also: Iterable[str] = (), *, remedy: str | None = None
    ) -> None:
        self.rel = rel
        self.reason = reason
        self.also = tuple(also)
        if remedy is None:
            remedy = "run the sweep again: damaged files are set aside and made again"
        super().__init__(f"{rel} is damaged: {reason}", remedy)

    def __reduce__(self) -> tuple[object, ...]:
        return _damaged, (self.rel, self.reason, self.also, self.remedy)

    @property
    def damaged(self) -> list[str]:
        """Every file to set aside, relative to the store."""
        return [self.rel, *self.also]


def _damaged(rel: str, reason: str, also: tuple[str, ...], remedy: str) -> DamagedFileError:
    return DamagedFileError(rel, reason, also, remedy=remedy)


class LostNeedError(StoreError):
    """What a run learns from (a snapshot, soft targets, kept weights) is gone; running again makes
    it anew."""

    @property
    def damaged(self) -> list[str]:
        """Nothing is left to set aside."""
        return []


class SupersededError(StoreError):
    pass


class MachineError(UserError):
    pass


class StoreTakenError(TargetsweepError):
    pass


class RunsFailedError(TargetsweepError):
    pass
