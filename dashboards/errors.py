"""The one error of this package.

ReportError    the store or the plan cannot be reported: what is wrong, and what to do about it
"""

from __future__ import annotations

__all__ = ["ReportError"]


class ReportError(Exception):
    """problem: what is wrong, with the value. remedy: what to do about it."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n  remedy: {self.remedy}" if self.remedy else self.problem
