"""Probes on two workers: what one computes, and one that writes to the store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestrator import paths
from orchestrator.ledger import State
from orchestrator.worker import execute
from tests.driving import (
    RUNTIME,
    TINY,
    conductor_of,
    digits_store,
    drive_here,
    facts,
    numbers,
    tiny_plan,
)
from tests.two_workers import SIZE, reports_of_two

pytestmark = pytest.mark.timeout(180)

OFFLINE = (
    TINY + "  probe_steps: 30\n  workers: 2\n  scaling.teacher_workers: 1\n"
    "grids: [{axes: {strategy: [B], teacher.accuracy: [20], probe: [offline]}}]\n"
)


@pytest.mark.slow
def test_two_workers_train_student_and_probe(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = digits_store(root)
    conductor = conductor_of(tiny_plan(tmp_path, store, text=OFFLINE), store)
    names = {}
    while not conductor.finished:
        config = conductor.next_trial()
        assert config is not None
        name = config["unit"]
        names[name.partition("-")[0]] = name
        if name.startswith("teacher-"):
            reports = list(execute(store, name, RUNTIME, None, config["attempt"]))
        else:
            reports = reports_of_two(tmp_path, root, config)
        for report in reports:
            conductor.on_report({"unit": name, **report})
        conductor.on_end(name, lost=False)
    assert conductor.ledger.count(State.DONE) == 3
    assert store.exists(paths.kept_weights(names["student"], 20))
    assert facts(store, names["probe"])["environment"]["workers"] == SIZE

    alone = digits_store(tmp_path / "alone")  # with the same teacher and student
    for kind in ("teacher", "student"):
        folder = paths.run_dir(names[kind])
        shutil.copytree(store.local(folder), alone.root / folder)
    plan = tiny_plan(tmp_path, alone, text=OFFLINE)
    assert [unit.kind for unit in plan.left] == ["probe"]
    drive_here(plan, alone)
    probe = names["probe"]
    for one, other in zip(numbers(store, probe), numbers(alone, probe), strict=True):
        assert one["step"] == other["step"]
        assert one["train_ce"] == pytest.approx(other["train_ce"], rel=1e-5)
        assert abs(one["correct_h"] - other["correct_h"]) <= 1
