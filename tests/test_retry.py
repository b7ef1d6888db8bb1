"""Which failures are tried again, and how often."""

from __future__ import annotations

import pytest

from orchestrator.retry import Attempts, Cause, Decision, Failure


def failure(cause: Cause, message: str = "RuntimeError: boom") -> Failure:
    return Failure(cause=cause, message=message)


def retries(cause: Cause) -> int:
    attempts = Attempts()
    count = 0
    while (decision := attempts.decide(failure(cause))) is Decision.RETRY:
        count += 1
        assert count < 1000
    assert decision is Decision.GIVE_UP
    assert len(attempts.failures) == count + 1
    return count


@pytest.mark.parametrize(
    ("cause", "budget"),
    [
        (Cause.PREEMPTED, 20),
        (Cause.WORKER_LOST, 3),
        (Cause.OUT_OF_MEMORY, 2),
        (Cause.DEVICE, 2),
        (Cause.HUNG, 2),
        (Cause.STORE, 5),
        (Cause.ERROR, 0),
        (Cause.DIVERGED, 0),
        (Cause.UNREACHABLE, 0),
        (Cause.SUPERSEDED, 0),  # the conductor asks nobody then
    ],
)
def test_budget_by_cause(cause: Cause, budget: int) -> None:
    assert retries(cause) == budget


def test_every_other_cause_is_a_damaged_file() -> None:
    assert len(Cause) == 10 + 1
    assert Attempts().decide(failure(Cause.DAMAGED)) is Decision.REDO


def test_damaged_files_have_no_budget() -> None:
    attempts = Attempts()
    assert {attempts.decide(failure(Cause.DAMAGED)) for _ in range(50)} == {Decision.REDO}


def test_an_attempt_that_got_far_renews_the_budgets() -> None:
    """A day on eight GPUs loses a worker now and then; that is no reason to give the run up."""
    attempts = Attempts()
    lost = failure(Cause.WORKER_LOST)
    for _ in range(20):
        assert attempts.decide(lost, worked_s=2 * 3600.0) is Decision.RETRY
    assert attempts.wait_s() == 1.0
    assert attempts.by_cause() == {Cause.WORKER_LOST: 20}
    later = [attempts.decide(lost, worked_s=600.0) for _ in range(3)]
    assert later == [Decision.RETRY, Decision.RETRY, Decision.GIVE_UP]


def waits(cause: Cause, count: int) -> list[float]:
    attempts = Attempts()
    found = []
    for _ in range(count):
        attempts.decide(failure(cause))
        found.append(attempts.wait_s())
    return found


def test_each_retry_waits_twice_as_long_as_the_one_before() -> None:
    assert waits(Cause.WORKER_LOST, 3) == [1, 2, 4]
    assert waits(Cause.STORE, 5) == [5, 10, 20, 40, 60]


def test_who_was_preempted_goes_on_at_once() -> None:
    assert waits(Cause.PREEMPTED, 3) == [0, 0, 0]
    assert Attempts().wait_s() == 0


def test_causes_wait_by_themselves() -> None:
    attempts = Attempts()
    for _ in range(3):
        attempts.decide(failure(Cause.STORE))
    attempts.decide(failure(Cause.WORKER_LOST))
    assert attempts.wait_s() == 1
    assert attempts.by_cause() == {Cause.STORE: 3, Cause.WORKER_LOST: 1}


@pytest.mark.parametrize(
    "cause", [Cause.PREEMPTED, Cause.DAMAGED, Cause.DIVERGED, Cause.UNREACHABLE]
)
def test_what_says_nothing_of_the_next_run(cause: Cause) -> None:
    assert not failure(cause).is_systematic
    assert failure(Cause.ERROR).is_systematic


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
