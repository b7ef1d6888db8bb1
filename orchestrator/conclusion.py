"""How a `run` ends: the exit status and the last lines of the screen."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence

from orchestrator import paths
from orchestrator.driver import Outcome
from orchestrator.errors import RunsFailedError, TargetsweepError
from orchestrator.ledger import Entry
from orchestrator.plan import Plan
from orchestrator.units import Unit

__all__ = ["InterruptedByUser", "command", "conclude", "stopped_text"]


def command(*arguments: str) -> str:
    """A command line that works from here, also without the environment activated."""
    name = "targetsweep" if shutil.which("targetsweep") else sys.argv[0]
    return shlex.join([name, *arguments])


def conclude(plan: Plan, outcomes: Sequence[Outcome]) -> None:
    """The exit status, as an exception; silence means success. outcomes: of the teachers that were
    measured first, and of the plan."""
    if any(outcome.interrupted for outcome in outcomes):
        raise InterruptedByUser(stopped_text())
    known = [unit for unit in plan.units if plan.work[unit.name].action in ("exhausted", "blocked")]
    bad = [
        outcome
        for outcome in outcomes
        if outcome.failed or outcome.blocked or outcome.stopped_early or outcome.left
    ]
    if bad:
        raise RunsFailedError(_failed_text(_together(bad), known))
    if known:
        raise RunsFailedError(_failed_text(outcomes[-1], known) if outcomes else _known_text(known))


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    return Outcome(
        failed=[entry for outcome in outcomes for entry in outcome.failed],
        blocked=[entry for outcome in outcomes for entry in outcome.blocked],
        interrupted=False,
        stopped_early=next((one.stopped_early for one in outcomes if one.stopped_early), None),
        left=sum(outcome.left for outcome in outcomes),
    )


class InterruptedByUser(TargetsweepError):
    exit_status = 130


def _known_text(known: Sequence[Unit]) -> str:
    names = "\n".join(f"  {unit.label}" for unit in known[:10])
    if len(known) > 10:
        names += f"\n  … and {len(known) - 10} more"
    return (
        f"{len(known)} units cannot be done, because a teacher's accuracy was searched in vain:\n"
        f"{names}\n  raise teacher.max_steps, or ask for another accuracy"
    )


def stopped_text() -> str:
    return f"stopped; nothing is lost. To go on:\n  {command(*sys.argv[1:])}"


def _failed_text(outcome: Outcome, known: Sequence[Unit]) -> str:
    blocked = len(outcome.blocked) + len(known)
    left = f", {outcome.left} not done" if outcome.left else ""
    lines = [f"{len(outcome.failed)} failed, {blocked} blocked{left}"]
    if outcome.stopped_early:
        lines.append(f"stopped early: the first runs all failed alike ({outcome.stopped_early})")
    lines += [f"  {_failure_line(entry)}" for entry in outcome.failed[:10]]
    if len(outcome.failed) > 10:
        lines.append(f"  … and {len(outcome.failed) - 10} more")
    rest = "what is finished is kept" if outcome.left else "everything else is finished and kept"
    lines.append(f"{rest}; to try again:\n  {command(*sys.argv[1:])}")
    return "\n".join(lines)


def _failure_line(entry: Entry) -> str:
    failures = entry.attempts.failures
    last = failures[-1].message.splitlines()[0] if failures and failures[-1].message else "?"
    label = entry.task.label if isinstance(entry.task, Unit) else entry.task.name
    return f"{label}: {last} ({paths.failure(entry.task.name)})"
