"""Drives a plan until nothing of it waits for files that were found damaged meanwhile.

A run that meets a damaged file of another run is left, not failed, and the file is set aside; a new
plan then sees that it is gone and has it made again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from orchestrator import paths
from orchestrator.driver import Outcome
from orchestrator.ledger import Entry
from orchestrator.plan import Plan
from orchestrator.retry import Cause
from orchestrator.store import Store
from orchestrator.units import Work

__all__ = ["ROUNDS", "drive_until_sound"]

ROUNDS = 5
"""Plans made again within one command. Files that are damaged once more by then lie on a bad disk
or are written by something else."""


def drive_until_sound(
    drive: Callable[[Plan], Outcome],
    plan: Plan,
    again: Callable[[], Plan],
    store: Store,
    say: Callable[[str], None],
) -> Outcome:
    """What became of the plan's units, over all rounds. again: the same plan, less what the store
    holds by then. What failed is not tried again: it would fail alike; a teacher that never
    reached one accuracy is, if it has to give another one once more."""
    before = set(store.list(paths.damaged_dir()))
    outcome = drive(plan)
    failed = {entry.task.name: entry for entry in outcome.failed}
    blocked = {entry.task.name: entry for entry in outcome.blocked}
    done = outcome.done
    for _ in range(ROUNDS):
        if not outcome.redo or outcome.interrupted or outcome.stopped_early or outcome.spent:
            break
        say(f"{len(outcome.redo)} units met files that were damaged or gone: planning again")
        left = _without(again(), {name for name, entry in failed.items() if _would_again(entry)})
        if not left.left:
            outcome = replace(outcome, redo=(), left=0, failed=())
            break
        outcome = drive(left)
        done |= outcome.done
        failed |= {entry.task.name: entry for entry in outcome.failed}
        driven = {unit.name for unit in left.left}
        blocked = {name: entry for name, entry in blocked.items() if name not in driven}
        blocked |= {entry.task.name: entry for entry in outcome.blocked}
    else:
        if outcome.redo:
            say(_hopeless(outcome, set(store.list(paths.damaged_dir())) - before))
    failed_, blocked_ = list(failed.values()), list(blocked.values())
    return replace(outcome, failed=failed_, blocked=blocked_, done=done)


def _would_again(entry: Entry) -> bool:
    failures = entry.attempts.failures
    return not failures or failures[-1].cause is not Cause.UNREACHABLE


def _without(plan: Plan, names: set[str]) -> Plan:
    there = {name: Work(action="blocked") for name in names & plan.work.keys()}
    return replace(plan, work={**plan.work, **there})


def _hopeless(outcome: Outcome, kept: set[str]) -> str:
    """kept: names of what was set aside, `<time>-<path>`."""
    times = Counter(name.partition("-")[2] for name in kept)
    files = [f"  {rel.replace('~', '/')}, {n} times" for rel, n in times.most_common(10) if n > 1]
    units = ", ".join(outcome.redo[:5]) + (" …" if len(outcome.redo) > 5 else "")
    head = f"gave up after {ROUNDS} rounds: damaged or gone again and again for {units}"
    return "\n".join([head, *files, "  check the disk (or who else writes to this store)"])
