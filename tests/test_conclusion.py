"""The last lines of the screen after something went wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.conclusion import conclude
from orchestrator.driver import Outcome
from orchestrator.errors import RunsFailedError, StoreError
from orchestrator.plan import Plan
from orchestrator.retry import Cause, Failure
from orchestrator.store import Store, store_errors
from tests.driving import tiny_plan

TRACEBACK = "\n".join(["Traceback (most recent call last):", *(f"line {n}" for n in range(40))])
BUG = Failure(cause=Cause.ERROR, message="KeyError: 'lr'", traceback=TRACEBACK)
FULL = Failure(cause=Cause.STORE, message="StoreError: cannot write x: No space left on device")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return tiny_plan(tmp_path)


def last_lines(plan: Plan, **facts: Any) -> str:
    whole = {"failed": [], "blocked": [], "interrupted": False, "stopped_early": None, "left": 0}
    with pytest.raises(RunsFailedError) as caught:
        conclude(plan, [Outcome(**(whole | facts))])
    assert caught.value.exit_status == 1
    return str(caught.value)


def test_a_systematic_bug_ends_with_its_traceback(plan: Plan) -> None:
    text = last_lines(plan, stopped_early=BUG, left=7)
    assert "0 failed, 0 blocked, 7 not done" in text
    assert "  | line 39\n" in text
    assert "line 19" not in text
    assert "stopped early: runs all failed alike (error: KeyError: 'lr')" in text
    assert "what is finished is kept; to try again" in text


def test_a_full_disk_is_no_bug(plan: Plan) -> None:
    text = last_lines(plan, stopped_early=FULL, left=7)
    assert "could not be written any more" in text
    assert "No space left on device" in text
    assert "alike" not in text


def test_what_waits_for_files_to_be_made_again_is_not_done(plan: Plan) -> None:
    assert "0 failed, 0 blocked, 2 not done" in last_lines(plan, redo=("student-0", "student-1"))


def test_errors_of_files_that_others_write_keep_their_number(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a file")
    with pytest.raises(StoreError) as caught, store_errors("write", "the report of tiny"):
        (tmp_path / "x" / "y").write_text("not a folder")
    assert caught.value.errno is not None
    assert "cannot write the report of tiny" in caught.value.problem
    assert Store(tmp_path).exists("x")


@pytest.mark.parametrize("also", [{"interrupted": True}, {"spent": True}])
def test_why_it_stopped_early_is_said_whatever_came_on_top(plan: Plan, also: Any) -> None:
    """An impatient Ctrl-C, a limit that passed meanwhile."""
    assert "No space left on device" in last_lines(plan, stopped_early=FULL, left=7, **also)


def test_a_node_that_fails_alone_is_named(plan: Plan) -> None:
    for failure in (BUG, FULL):
        text = last_lines(plan, stopped_early=replace(failure, where="b01 (node 1a2b3c4d)"))
        assert ", all on b01 (node 1a2b3c4d) (" in text
        assert "mend that node or take it out of the cluster" in text
