"""A plan as a person reads it."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table

from orchestrator.estimate import Estimate
from orchestrator.plan import Plan
from orchestrator.progress import duration

__all__ = ["show_plan"]


def show_plan(
    console: Console, plan: Plan, estimate: Estimate | None, num_bytes: int | None
) -> None:
    """What is asked, what sharing saved, what the store has, what is left."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column()
    for name, value, remark in _rows(plan, estimate, num_bytes):
        table.add_row(name, value, remark)
    console.print(table)
    for name in plan.provisional:
        console.print(
            f"data set {name} has not been opened: its run keys are provisional until "
            f"`targetsweep data prepare {name}`",
            style="yellow",
        )
    for line in _remarks(plan):
        console.print(line, soft_wrap=True)


def _rows(
    plan: Plan, estimate: Estimate | None, num_bytes: int | None
) -> list[tuple[str, str, str]]:
    students = plan.of_kind("student")
    saved = plan.asked_steps - plan.student_steps
    kinds = Counter(unit.kind for unit in plan.left)
    left = ", ".join(f"{count} {_plural(kind, count)}" for kind, count in kinds.items())
    rows = [
        ("cells asked", f"{plan.cells:,}", "numbers in tables and figures"),
        ("grid points", f"{plan.num_points:,}", f"in {len(plan.points)} sweep(s), seeds included"),
        ("unique runs", f"{len(students) + len(plan.of_kind('teacher')):,}", _kinds(plan)),
        ("shared by sweeps", f"{plan.num_shared:,}", "runs that more than one sweep asks"),
        ("teacher snapshots", f"{plan.num_snapshots:,}", ""),
        ("student steps", f"{plan.student_steps:,}", f"{saved:,} saved by sharing"),
        ("left to do", f"{len(plan.left):,}", left or "nothing: the store holds everything"),
        ("student steps left", f"{plan.student_steps_left:,}", ""),
    ]
    if num_bytes is not None:
        rows.append(("store, when done", _bytes(num_bytes), "checkpoints, snapshots and targets"))
    if estimate is not None and plan.left:
        rows.append(_time_row(estimate))
    return rows


def _time_row(estimate: Estimate) -> tuple[str, str, str]:
    if not estimate.seconds:
        return ("device time", "?", "nothing measured yet: `plan --calibrate` measures it here")
    remark = "one run after the other, at the measured pace; a teacher counts as 1,000 steps"
    if estimate.unknown:
        remark += f"; {estimate.unknown} runs without a pace"
    return ("device time", f"{estimate.seconds / 3600:.2f} h", f"{remark} "
            f"({duration(estimate.seconds)})")  # fmt: skip


def _kinds(plan: Plan) -> str:
    teachers, students = len(plan.of_kind("teacher")), len(plan.of_kind("student"))
    targets = len(plan.of_kind("targets"))
    return (
        f"{teachers} {_plural('teacher', teachers)}, {students} {_plural('student', students)}; "
        f"{targets} soft-target {'file' if targets == 1 else 'files'}"
    )


def _plural(kind: str, count: int) -> str:
    if kind == "targets":
        return "soft-target file" if count == 1 else "soft-target files"
    return kind if count == 1 else f"{kind}s"


def _remarks(plan: Plan) -> list[str]:
    """What is not simply new or done."""
    lines = []
    for unit in plan.units:
        work = plan.work[unit.name]
        if work.action in ("extend", "resume", "replay"):
            lines.append(f"  {unit.label}: {_action(work.action)} from step {work.from_step:,}")
        elif work.action in ("exhausted", "blocked"):
            lines.append(f"  {unit.label}: {work.action}")
    if len(lines) > 12:
        lines[12:] = [f"  … and {len(lines) - 12} more"]
    return lines


def _action(action: str) -> str:
    return {"extend": "continues", "resume": "resumes", "replay": "is replayed"}[action]


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
