"""The wall clock in one place, and what happens when it jumps."""

from __future__ import annotations

import itertools
import re
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator import clock, paths
from orchestrator.inventory import read_inventory
from orchestrator.orders import attempt_name
from orchestrator.plan import Plan
from orchestrator.prune import prune_checkpoints
from orchestrator.store import Store
from orchestrator.tracking_view import view
from tests.driving import (
    checkpoints,
    digits_store,
    drive_here,
    numbers,
    rows_of,
    tiny_plan,
)

ROOT = Path(clock.__file__).parent

DAY_NS = 24 * 3600 * 10**9
WALL = re.compile(r"\btime\.time\(|\btime_ns\(|datetime\.now\(|date\.today\(|\.utcnow\(")


def test_all_of_it_is_one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now_ns", lambda: 1_700_000_000_123_456_789)
    assert clock.now_ms() == 1_700_000_000_123
    assert clock.now_s() == pytest.approx(1_700_000_000.123, abs=1e-3)
    assert clock.now_utc() == datetime.fromtimestamp(clock.now_s(), UTC)
    assert clock.now_utc().tzinfo is UTC


def test_nobody_else_reads_the_wall_clock() -> None:
    """What takes a time without it cannot be tested with a clock that jumps."""
    readers = {
        path.name for path in ROOT.glob("*.py") if WALL.search(path.read_text(encoding="utf-8"))
    }
    assert readers == {"clock.py"}


def test_attempts_have_names_of_their_own_whatever_the_clock_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clock, "now_ns", lambda: 0)
    assert len({attempt_name(0) for _ in range(1000)}) == 1000
    assert attempt_name(3).startswith("3-")


# -- jumps -----------------------------------------------------------------------------------------


PRUNED = """\
name: jumps
title: Students whose states stay for a week
set:
  dataset: digits
  backbone: {name: resnet18, width: 4}
  training: {steps: 20, batch_size: 32, lr: 0.01}
  keep_checkpoint: 7
  augmentation: none
grids:
  - axes: {strategy: [A], seed: [0]}
"""


def finished_plan(folder: Path, store: Store) -> tuple[Plan, dict[str, list[str]]]:
    """A sweep that is done, and the states it keeps."""
    drive_here(tiny_plan(folder, store, text=PRUNED), store)
    plan = tiny_plan(folder, store, text=PRUNED)
    return plan, {unit.name: checkpoints(store, unit.name) for unit in plan.units}


def test_a_clock_that_goes_back_removes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither states that are to be kept for days nor what others may still be writing."""
    store = digits_store(tmp_path / "store")
    plan, kept = finished_plan(tmp_path, store)
    other = store.root / "runs" / ".ts-elsewhere~1~00000000.tmp"
    other.write_bytes(b"half a file")
    now = clock.now_ns()
    monkeypatch.setattr(clock, "now_ns", lambda: now - 400 * DAY_NS)
    assert prune_checkpoints(store, plan) == []
    assert store.sweep_temporaries() == []
    assert {name: checkpoints(store, name) for name in kept} == kept
    monkeypatch.setattr(clock, "now_ns", lambda: now + 400 * DAY_NS)
    assert store.sweep_temporaries() == ["runs/.ts-elsewhere~1~00000000.tmp"]


def test_the_state_of_an_extension_is_not_pruned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another command asked for more steps and was cut off; this one's runs are done."""
    store = digits_store(tmp_path / "store")
    plan, kept = finished_plan(tmp_path, store)
    ((name, (last,)),) = kept.items()
    now = clock.now_ns()
    monkeypatch.setattr(clock, "now_ns", lambda: now + 400 * DAY_NS)
    folder = store.root / paths.checkpoint_dir(name)
    further = "step-00099999.ckpt"
    (folder / last).rename(folder / further)
    assert prune_checkpoints(store, plan) == []
    (folder / further).rename(folder / last)
    assert prune_checkpoints(store, plan) == [name]


def test_a_clock_that_jumps_while_runs_train_changes_no_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A year forward and two back at every look: only the times in the rows show it, and MLflow's
    ends do not come before its beginnings."""
    jumping, steady = digits_store(tmp_path / "jumping"), digits_store(tmp_path / "steady")
    plan, _ = finished_plan(tmp_path, steady)
    jumps = itertools.cycle([365, -730, 0])
    monkeypatch.setattr(clock, "now_ns", lambda: time.time_ns() + next(jumps) * DAY_NS)
    drive_here(tiny_plan(tmp_path, jumping, text=PRUNED), jumping)
    (unit,) = plan.units
    assert numbers(jumping, unit.name) == numbers(steady, unit.name)
    seen = view(jumping, unit.name, live=False)
    assert seen is not None
    assert seen.end_ms >= seen.start_ms
    times = [row["timestamp_ms"] for row in rows_of(jumping, unit.name)]
    assert times != sorted(times)


def test_runs_without_a_state_are_not_asked_about(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Which a remote store would answer one after the other."""
    store = digits_store(tmp_path / "store")
    plan, kept = finished_plan(tmp_path, store)
    for name in kept:
        store.delete_tree(paths.checkpoint_dir(name))
    plan = plan.subtract(read_inventory(store, plan.units))

    def asked(rel: str) -> None:
        raise AssertionError(rel)

    for verb in ("modified", "list", "read_json"):
        monkeypatch.setattr(store, verb, asked)
    assert prune_checkpoints(store, plan) == []
