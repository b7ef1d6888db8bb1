"""How a `run` ends: the exit status and the last lines of the screen."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator import paths
from orchestrator.driver import Outcome
from orchestrator.errors import RunsFailedError, TargetsweepError
from orchestrator.invocation import again, command
from orchestrator.ledger import Entry
from orchestrator.plan import Plan
from orchestrator.retry import Cause, Failure
from orchestrator.units import Unit
from orchestrator.worth import tally

__all__ = ["BudgetSpentError", "InterruptedByUser", "command", "conclude", "stopped_text"]

_TRACEBACK_LINES = 20


def conclude(plan: Plan, outcomes: Sequence[Outcome], limit: str = "") -> None:
    """The exit status, as an exception; silence means success. outcomes: of the teachers that were
    measured first, and of the plan. limit: what limited the time, in words."""
    is_early = any(outcome.stopped_early for outcome in outcomes)  # whatever came on top of that
    if not is_early and any(outcome.interrupted for outcome in outcomes):
        raise InterruptedByUser(stopped_text())
    if not is_early and any(outcome.spent for outcome in outcomes):
        raise BudgetSpentError(_spent_text(plan, outcomes, limit))
    known = [unit for unit in plan.units if plan.work[unit.name].action in ("exhausted", "blocked")]
    bad = [
        outcome
        for outcome in outcomes
        if outcome.failed
        or outcome.blocked
        or outcome.stopped_early
        or outcome.left
        or outcome.redo
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
        redo=tuple(name for outcome in outcomes for name in outcome.redo),
        done=frozenset(name for outcome in outcomes for name in outcome.done),
        cut_off={name: step for one in outcomes for name, step in one.cut_off.items()},
    )


class InterruptedByUser(TargetsweepError):
    exit_status = 130


class BudgetSpentError(TargetsweepError):
    """The time limit left some of the work."""

    exit_status = 3


def _spent_text(plan: Plan, outcomes: Sequence[Outcome], limit: str) -> str:
    """What was reached, what is left because of the limit, and how to go on."""
    together = _together(outcomes)
    lost = {entry.task.name for entry in (*together.failed, *together.blocked)}
    left = [unit for unit in plan.left if unit.name not in together.done | lost]
    labels = {unit.name: unit.label for unit in plan.units}
    cut_off = [
        f"  cut off, saved: {labels.get(name, name)} at step {step:,}"
        for name, step in together.cut_off.items()
    ]
    reached = tally(plan.means, plan.done_names | together.done)
    return "\n".join(
        [
            f"the time is over ({limit}); nothing is lost",
            f"  reached: {len(together.done):,} units done now; {reached}",
            f"  left for want of time: {len(left):,} units, {len(cut_off):,} of them begun",
            *cut_off[:10],
            *_failed_lines(together),
            f"to go on:\n  {again()}",
        ]
    )


def _failed_lines(outcome: Outcome) -> list[str]:
    if not outcome.failed and not outcome.blocked:
        return []
    head = f"  {len(outcome.failed)} failed, {len(outcome.blocked)} blocked:"
    return [head, *(f"    {_failure_line(entry)}" for entry in outcome.failed[:10])]


def _known_text(known: Sequence[Unit]) -> str:
    names = "\n".join(f"  {unit.label}" for unit in known[:10])
    if len(known) > 10:
        names += f"\n  … and {len(known) - 10} more"
    return (
        f"{len(known)} units cannot be done, because a teacher's accuracy was searched in vain:\n"
        f"{names}\n  raise teacher.max_steps, or ask for another accuracy"
    )


def stopped_text() -> str:
    return f"stopped; nothing is lost. To go on:\n  {again()}"


def _failed_text(outcome: Outcome, known: Sequence[Unit]) -> str:
    blocked = len(outcome.blocked) + len(known)
    not_done = outcome.left + len(outcome.redo)
    left = f", {not_done} not done" if not_done else ""
    lines = [f"{len(outcome.failed)} failed, {blocked} blocked{left}"]
    lines += [f"  {_failure_line(entry)}" for entry in outcome.failed[:10]]
    if len(outcome.failed) > 10:
        lines.append(f"  … and {len(outcome.failed) - 10} more")
    if outcome.stopped_early:
        lines += _early_lines(outcome.stopped_early)
    rest = "what is finished is kept" if not_done else "everything else is finished and kept"
    lines.append(f"{rest}; to try again:\n  {again()}")
    return "\n".join(lines)


def _early_lines(failure: Failure) -> list[str]:
    """Why nothing more was started, with the end of the traceback; failure.json has the whole."""
    advice = "mend that node or take it out of the cluster; the others may well be sound"
    mend = [advice] if failure.where else []
    if failure.cause is Cause.STORE:
        what = f"the store could not be written any more{failure.place}"
        return [f"stopped early: {what} ({failure.message})", *mend]
    end = failure.traceback.rstrip().splitlines()[-_TRACEBACK_LINES:]
    lines = [f"  | {line}" for line in end]
    what = f"runs all failed alike{failure.place}"
    return [*lines, f"stopped early: {what} ({failure.cause}: {failure.message})", *mend]


def _failure_line(entry: Entry) -> str:
    failures = entry.attempts.failures
    last = failures[-1].message.splitlines()[0] if failures and failures[-1].message else "?"
    label = entry.task.label if isinstance(entry.task, Unit) else entry.task.name
    return f"{label}: {last} ({paths.failure(entry.task.name)})"
