"""Probes on two workers: what one computes, and one that writes to the store."""

from __future__ import annotations

import os
import pickle
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from orchestrator import paths
from orchestrator.ledger import State
from orchestrator.store import Store
from orchestrator.trial import _lockstep
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
from tests.training_helpers import leave_group

pytestmark = pytest.mark.timeout(180)

SIZE = 2
OFFLINE = (
    TINY + "  probe_steps: 30\n  workers: 2\n  scaling.teacher_workers: 1\n"
    "grids: [{axes: {strategy: [B], teacher.accuracy: [20], probe: [offline]}}]\n"
)


def work(rank: int, folder: Path, root: Path, name: str, attempt: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous-{name}", rank=rank, world_size=SIZE,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    reports = list(execute(Store(root), name, RUNTIME, None, attempt))
    (folder / f"{name}-{rank}.pickle").write_bytes(pickle.dumps(reports))
    leave_group()


def reports_of(folder: Path, root: Path, config: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """What each of two workers reports of one unit."""
    name = config["unit"]
    mp.spawn(work, (folder, root, name, config["attempt"]), nprocs=SIZE)  # type: ignore[no-untyped-call]
    return [pickle.loads((folder / f"{name}-{rank}.pickle").read_bytes()) for rank in range(SIZE)]


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
            workers = [list(execute(store, name, RUNTIME, None, config["attempt"]))]
        else:
            workers = reports_of(tmp_path, root, config)
            passed = [
                [(one["event"], one.get("step")) for one in reports if _lockstep(one)]
                for reports in workers
            ]
            assert passed[0] == passed[1]  # Train's reports are a barrier
        for report in workers[0]:
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
