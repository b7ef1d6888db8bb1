"""`keep_checkpoint: <days>`: states of complete runs go after that many days, and with them the
weights that students kept for probes which are done. `none`: the worker drops its states itself;
what a kill left of those goes here."""

from __future__ import annotations

from orchestrator import clock, paths
from orchestrator.plan import Plan
from orchestrator.store import Store

__all__ = ["prune_checkpoints"]


def prune_checkpoints(store: Store, plan: Plan, now: float | None = None) -> list[str]:
    """Deletes the checkpoints of done runs whose result is older than they are to be kept; returns
    the runs' names. Such a run is extended by training it again, and `plan` says so."""
    now = clock.now_s() if now is None else now
    awaited = {token for unit in plan.left for token in unit.needs}
    pruned = []
    for unit in plan.units:
        days = 0 if unit.keep_checkpoint == "none" else unit.keep_checkpoint
        if not isinstance(days, int) or plan.work[unit.name].action != "done":
            continue
        if not (plan.held[unit.name].checkpoints or unit.provides):
            continue  # most runs of most plans: a remote store need not be asked about each
        finished = store.modified(paths.result(unit.name))
        if finished is None or now - finished < days * 86400:
            continue
        states = store.list(paths.checkpoint_dir(unit.name))
        if _is_being_extended(store, unit.name, states):
            continue
        there = [paths.checkpoint_dir(unit.name)] if states else []
        kept = paths.snapshots_dir(unit.name)  # a teacher's are no part of this
        if unit.kind == "student" and unit.provides and awaited.isdisjoint(unit.provides):
            there += [kept] if store.list(kept) else []
        for folder in there:
            store.delete_tree(folder)
        if there:
            pruned.append(unit.name)
    return pruned


def _is_being_extended(store: Store, name: str, states: list[str]) -> bool:
    """Whether another command's longer horizon has a state beyond the result."""
    rolling = [file for file in states if file.startswith("step-")]
    if not rolling:
        return False
    result = store.read_json(paths.result(name)) or {}
    return max(rolling) > f"{paths.step_name(int(result.get('horizon', 0)))}.ckpt"
