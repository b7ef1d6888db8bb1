"""Rows of failures that end a sweep, units that rest, and files that must be made again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.ledger import Ledger, State
from orchestrator.retry import Cause, Decision, Failure
from tests.ledgers import (
    BUG,
    LOST,
    TARGETS,
    TEACHER,
    C,
    Fake,
    ledger_of,
    names,
    state,
    take,
    take_all,
)

FROZEN = Failure(cause=Cause.HUNG, message="hung: worker 0 did nothing")
ROTTEN = Failure(cause=Cause.DAMAGED, message="DamagedFileError: acc-30")


def fail_next(ledger: Ledger, failure: Failure, **how: Any) -> Decision:
    name = take(ledger)
    assert name is not None
    return ledger.fail(name, failure, **how)


def units(count: int) -> list[Fake]:
    return [Fake(f"u{number}") for number in range(count)]


def test_ten_attempts_in_a_row_that_failed_alike_end_a_sweep() -> None:
    """Also after a success, and although each of them may be tried again."""
    ledger = ledger_of(*units(9), slots=1)
    name = take(ledger)
    assert name is not None
    ledger.done(name)
    for _ in range(9):
        fail_next(ledger, LOST)
        assert not ledger.stopping
    fail_next(ledger, LOST)
    assert ledger.stopped_early == LOST
    assert take(ledger) is None
    assert ledger.finished


def on_node(failure: Failure, node: str = "b") -> Failure:
    return replace(failure, where=f"{node}01 (node {node})", node=node)


def on_nodes(ledger: Ledger, **rooms: float) -> Ledger:
    ledger.capacity.rooms.nodes = rooms or {"a": 1.0, "b": 1.0}
    return ledger


def fail_on_b_while_a_does_well(ledger: Ledger, failure: Failure, times: int) -> None:
    for _ in range(times):
        well = take(ledger)
        assert well is not None
        fail_next(ledger, on_node(failure))
        ledger.done(well, node="a")


def test_a_node_that_fails_all_it_gets_is_set_aside_while_another_does_well() -> None:
    """It fails fast, and would be given one run after the other."""
    ledger = on_nodes(ledger_of(*units(40), slots=2))
    fail_on_b_while_a_does_well(ledger, LOST, 9)
    assert ledger.aside == {}
    fail_on_b_while_a_does_well(ledger, LOST, 1)
    assert ledger.aside == {"b": on_node(LOST)}
    assert not ledger.stopping
    assert take(ledger) is not None


def test_what_failed_on_a_node_set_aside_is_ready_again_and_so_is_what_waited_for_it() -> None:
    teachers = [Fake(f"t{number}", provides=(f"s{number}",)) for number in range(11)]
    students = [Fake(f"u{number}", needs=(f"s{number}",), cost=1) for number in range(11)]
    ledger = on_nodes(ledger_of(*teachers, *students, slots=2, same_failures=0))
    for _ in range(9):
        assert fail_next(ledger, on_node(BUG)) is Decision.GIVE_UP
    assert names(ledger, State.BLOCKED) == {f"u{number}" for number in range(9)}
    left = ledger.cost_left
    assert fail_next(ledger, on_node(BUG)) is Decision.RETRY
    assert ledger.aside == {"b": on_node(BUG)}
    assert names(ledger, State.FAILED) == names(ledger, State.BLOCKED) == set()
    assert ledger.cost_left == left + 9 * 10 + 9
    assert ledger.count(State.READY) == 11
    assert ledger.count(State.WAITING) == 11
    done = []
    while (name := take(ledger)) is not None:
        done.append(name)
        ledger.done(name, node="a")
    assert len(done) == 22
    assert ledger.finished


def test_three_first_failures_on_one_node_try_another_before_they_end_a_sweep() -> None:
    ledger = on_nodes(ledger_of(*units(9), slots=1))
    for _ in range(3):
        fail_next(ledger, on_node(BUG))
    assert list(ledger.aside) == ["b"]
    assert not ledger.stopping
    fail_next(ledger, on_node(BUG, "a"))
    assert ledger.stopped_early == BUG  # it is no node's


def test_what_still_ran_on_a_node_set_aside_has_lost_nothing_by_it() -> None:
    ledger = on_nodes(ledger_of(*units(4), slots=4), b=4.0, a=4.0)
    running = take_all(ledger)
    for name in running[:3]:
        ledger.fail(name, on_node(BUG))
    assert list(ledger.aside) == ["b"]
    assert ledger.fail(running[3], on_node(BUG)) is Decision.RETRY
    assert not ledger.stopping
    again = take(ledger)
    assert again is not None
    assert ledger.entries[again].avoids == {"b"}
    # It was to be placed elsewhere: on the same node all the same, this one would go on for ever.
    assert ledger.fail(again, on_node(BUG)) is Decision.GIVE_UP


def test_a_node_that_the_others_cannot_do_without_ends_a_sweep() -> None:
    wide = Fake("wide", workers=2)
    ledger = on_nodes(ledger_of(*units(40), wide, slots=3), a=1.0, b=2.0)
    assert take(ledger) == "wide"
    ledger.fail("wide", on_node(LOST))
    while ledger.stopped_early is None:
        name = take(ledger)
        assert name is not None
        ledger.fail(name, on_node(LOST))
    assert ledger.stopped_early == on_node(LOST)  # says where
    assert ledger.aside == {}


def test_a_second_bad_node_is_set_aside_too_but_not_the_last() -> None:
    ledger = on_nodes(ledger_of(*units(40), slots=1), a=1.0, b=1.0, c=1.0)
    for node in "bca":
        ledger.done(take(ledger) or "", node="a")
        for _ in range(10):
            assert ledger.stopped_early is None
            fail_next(ledger, on_node(LOST, node))
    assert list(ledger.aside) == ["b", "c"]
    assert ledger.stopped_early == on_node(LOST, "a")


def test_a_success_on_the_node_breaks_its_row() -> None:
    ledger = on_nodes(ledger_of(*units(40), slots=1))
    for number in range(17):
        if number == 8:
            ledger.done(take(ledger) or "", node="b")
        fail_next(ledger, on_node(LOST))
    assert ledger.stopped_early is None
    assert ledger.aside == {}


def test_what_fails_on_several_nodes_or_where_there_is_one_names_none() -> None:
    ledger = on_nodes(ledger_of(*units(4), slots=1))
    for node in "bab":
        fail_next(ledger, on_node(BUG, node))
    assert ledger.stopped_early == BUG
    alone = on_nodes(ledger_of(*units(4), slots=1), b=1.0)
    for _ in range(3):
        fail_next(alone, on_node(BUG))
    assert alone.stopped_early == BUG


def test_a_success_between_them_breaks_the_row() -> None:
    ledger = ledger_of(*units(20), slots=1)
    for number in range(18):
        name = take(ledger)
        assert name is not None
        if number % 9 == 8:
            ledger.done(name)
        else:
            ledger.fail(name, LOST)
    assert not ledger.stopping


def test_an_attempt_that_came_far_breaks_the_row() -> None:
    """Ten long runs on a machine that kills are not a bug of the sweep."""
    ledger = ledger_of(*units(9), slots=1, same_failures=0)
    for _ in range(15):
        fail_next(ledger, LOST, worked_s=60.0)
    assert not ledger.stopping


@pytest.mark.parametrize(("worked_s", "after"), [(7200.0, State.READY), (600.0, State.FAILED)])
def test_only_long_work_that_lasts_renews_a_run(worked_s: float, after: State) -> None:
    ledger = ledger_of(*units(1), slots=1, same_failures=0)
    for _ in range(4):
        fail_next(ledger, LOST, worked_s=worked_s)
    assert ledger.entries["u0"].state is after


def test_failures_of_two_kinds_are_no_row() -> None:
    ledger = ledger_of(*units(20), slots=1, same_failures=0)
    for number in range(18):
        fail_next(ledger, LOST if number % 2 else FROZEN)
    assert not ledger.stopping


@pytest.mark.parametrize("cause", [Cause.PREEMPTED, Cause.DAMAGED, Cause.DIVERGED])
def test_what_nodes_and_disks_do_never_ends_a_sweep(cause: Cause) -> None:
    ledger = ledger_of(*units(40), slots=1)
    for _ in range(40):
        fail_next(ledger, Failure(cause=cause, message="alike"))
    assert not ledger.stopping


def test_preemptions_between_them_neither_count_nor_hide_a_row() -> None:
    ledger = ledger_of(*units(9), slots=1)
    for _ in range(10):
        fail_next(ledger, Failure(cause=Cause.PREEMPTED, message="its node left"))
        fail_next(ledger, LOST)
    assert ledger.stopped_early == LOST


def test_a_resting_unit_is_ready_but_not_handed_out() -> None:
    ledger = ledger_of(*units(2), slots=1)
    assert fail_next(ledger, LOST, rest=True) is Decision.RETRY
    assert state(ledger, "u0") is State.READY
    assert take(ledger) == "u1"
    ledger.done("u1")
    assert take(ledger) is None
    assert not ledger.finished
    ledger.wake("u0")
    assert take(ledger) == "u0"


def test_waking_twice_or_in_vain_changes_nothing() -> None:
    ledger = ledger_of(*units(1), slots=1)
    fail_next(ledger, LOST, rest=True)
    ledger.wake("u0")
    ledger.wake("u0")
    assert take_all(ledger) == ["u0"]
    ledger.wake("u0")
    assert take(ledger) is None
    ledger.done("u0")
    assert ledger.finished


def test_a_preempted_unit_does_not_rest() -> None:
    ledger = ledger_of(*units(1), slots=1)
    fail_next(ledger, Failure(cause=Cause.PREEMPTED, message="its node left"), rest=True)
    assert take(ledger) == "u0"


def test_a_stopped_ledger_does_not_wait_for_those_that_rest() -> None:
    ledger = ledger_of(*units(1), slots=1)
    fail_next(ledger, LOST, rest=True)
    ledger.stopping = True
    assert ledger.finished


def test_a_unit_whose_need_is_damaged_is_left_for_another_plan() -> None:
    """Neither failed nor tried again; what follows from it waits, and is not blocked."""
    ledger = ledger_of(TEACHER, TARGETS, C, held=["teacher/acc-60"], slots=1)
    while take(ledger) != "targets":
        ledger.done("teacher")
    assert ledger.fail("targets", ROTTEN) is Decision.REDO
    assert state(ledger, "targets") is State.REDO
    assert names(ledger, State.FAILED) == set()
    assert names(ledger, State.BLOCKED) == set()
    assert ledger.finished
    assert state(ledger, "C") is State.WAITING


def test_units_to_redo_count_as_over() -> None:
    ledger = ledger_of(*units(2), slots=1)
    before = ledger.cost_left
    fail_next(ledger, ROTTEN)
    assert ledger.cost_left == before - 10
    assert ledger.count(State.REDO) == 1
    assert ledger.capacity.used == 0


def test_the_first_reason_to_stop_counts() -> None:
    ledger = ledger_of(*units(2), slots=1)
    ledger.stop_early(LOST)
    ledger.stop_early(BUG)
    assert ledger.stopped_early == LOST
    assert ledger.stopping
