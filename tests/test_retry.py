"""Which failures are tried again, and how often."""

from __future__ import annotations

import pytest

from orchestrator.retry import Attempts, Cause, Decision, Failure


def failure(cause: Cause, message: str = "RuntimeError: boom") -> Failure:
    return Failure(cause=cause, message=message)


def retries(cause: Cause) -> int:
    attempts = Attempts()
    count = 0
    while attempts.decide(failure(cause)) is Decision.RETRY:
        count += 1
        assert count < 1000
    assert len(attempts.failures) == count + 1
    return count


@pytest.mark.parametrize(
    ("cause", "budget"),
    [
        (Cause.PREEMPTED, 20),
        (Cause.WORKER_LOST, 3),
        (Cause.OUT_OF_MEMORY, 2),
        (Cause.ERROR, 0),
        (Cause.DIVERGED, 0),
        (Cause.UNREACHABLE, 0),
    ],
)
def test_budget_by_cause(cause: Cause, budget: int) -> None:
    assert retries(cause) == budget


def test_every_cause_is_covered_by_the_table_above() -> None:
    assert len(Cause) == 6


def test_budgets_are_separate() -> None:
    """A machine that was taken away ten times does not use up what a lost worker is allowed."""
    attempts = Attempts()
    for _ in range(10):
        assert attempts.decide(failure(Cause.PREEMPTED)) is Decision.RETRY
    for _ in range(3):
        assert attempts.decide(failure(Cause.WORKER_LOST)) is Decision.RETRY
    assert attempts.decide(failure(Cause.WORKER_LOST)) is Decision.GIVE_UP


def test_alike_is_the_cause_and_the_kind_of_error() -> None:
    first = failure(Cause.ERROR, "KeyError: 'a'")
    assert first.signature == failure(Cause.ERROR, "KeyError: 'b'").signature
    assert first.signature != failure(Cause.ERROR, "ValueError: 'a'").signature
    assert first.signature != failure(Cause.DIVERGED, "KeyError: 'a'").signature
