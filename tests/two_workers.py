"""A unit on two workers, each a process of its own."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

from orchestrator.store import Store
from orchestrator.trial import _lockstep
from orchestrator.worker import execute
from tests.driving import RUNTIME
from tests.training_helpers import join_group, leave_group

SIZE = 2


def _work(rank: int, folder: Path, root: Path, name: str, attempt: str) -> None:
    join_group(rank, folder / f"rendezvous-{name}", SIZE)
    reports = list(execute(Store(root), name, RUNTIME, None, attempt))
    (folder / f"{name}-{rank}.pickle").write_bytes(pickle.dumps(reports))
    leave_group()


def reports_of_two(folder: Path, root: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """What worker 0 reports of a unit. Train's reports are a barrier: both must pass the same."""
    name = config["unit"]
    mp.spawn(_work, (folder, root, name, config["attempt"]), nprocs=SIZE)  # type: ignore[no-untyped-call]
    workers = [
        pickle.loads((folder / f"{name}-{rank}.pickle").read_bytes()) for rank in range(SIZE)
    ]
    passed = [
        [(one["event"], one.get("step")) for one in reports if _lockstep(one)]
        for reports in workers
    ]
    assert passed[0] == passed[1]
    found: list[dict[str, Any]] = workers[0]
    return found
