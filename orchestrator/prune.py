"""`keep_checkpoint: <days>`: states of complete runs go after that many days. `none`: the worker
drops them itself; what a kill left of those goes here."""

from __future__ import annotations

import time

from orchestrator import paths
from orchestrator.plan import Plan
from orchestrator.store import Store

__all__ = ["prune_checkpoints"]


def prune_checkpoints(store: Store, plan: Plan, now: float | None = None) -> list[str]:
    """Deletes the checkpoints of done runs whose result is older than they are to be kept; returns
    the runs' names. Such a run is extended by training it again, and `plan` says so."""
    now = time.time() if now is None else now
    pruned = []
    for unit in plan.units:
        days = 0 if unit.keep_checkpoint == "none" else unit.keep_checkpoint
        if not isinstance(days, int) or plan.work[unit.name].action != "done":
            continue
        finished = store.modified(paths.result(unit.name))
        old = finished is not None and now - finished >= days * 86400
        if old and store.list(paths.checkpoint_dir(unit.name)):
            store.delete_tree(paths.checkpoint_dir(unit.name))
            pruned.append(unit.name)
    return pruned
