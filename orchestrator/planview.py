"""A plan as a person reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table

from orchestrator.estimate import Estimate, Pace
from orchestrator.glance import duration
from orchestrator.labels import backbone_name
from orchestrator.plan import Plan
from orchestrator.rates import Group, Rates
from orchestrator.sharing import Choice
from orchestrator.sweeprows import sweep_rows, total_of
from orchestrator.units import ARTEFACTS, SEARCH_STEPS, cost_left

__all__ = ["show_plan"]


def show_plan(
    console: Console,
    plan: Plan,
    rates: Rates,
    num_bytes: int | None,
    notes: Iterable[str] = (),
    sharing: Iterable[Choice] = (),
) -> None:
    """What is asked, what sharing saved, what the store has, what is left; of several sweeps, a row
    each first. notes: what else a person must know. sharing: of GPUs, where it is left to `auto`.
    """
    pace = Pace(rates, plan.infos)
    if len(plan.points) > 1:
        console.print(_sweeps(plan, pace, console))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column()
    left = pace.total((unit, cost_left(unit, plan.work[unit.name])) for unit in plan.left)
    for name, value, remark in (*_rows(plan, left, num_bytes), *_sharing_rows(sharing)):
        table.add_row(name, value, remark)
    console.print(table)
    for name in plan.provisional:
        console.print(
            f"data set {name} has not been opened: its run keys are provisional until "
            f"`targetsweep data prepare {name}`",
            style="yellow",
        )
    for line in (*notes, *_remarks(plan), *_pace_remarks(rates, pace)):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


_COLUMNS = ("cells", "points", "runs", "shared", "steps", "snapshots", "device-hours")


def _sweeps(plan: Plan, pace: Pace, console: Console) -> Table:
    """One row a sweep as if it were alone, the sum of them, and the plan, which shares."""
    rows = sweep_rows(plan, pace)
    total = total_of(plan, rows, pace)
    table = Table(box=None, pad_edge=False)
    table.add_column("sweep", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    with_sharers = console.width >= _WIDE or not console.is_terminal
    if with_sharers:
        table.add_column("most shared with")
    for row in rows:
        numbers = (row.cells, row.points, row.runs, row.shared, row.steps, row.snapshots)
        cells = [row.name, *(f"{number:,}" for number in numbers), _hours(row.time)]
        if with_sharers:
            most = list(row.sharers.items())[:_SHARERS]
            cells.append(", ".join(f"{name} ({n:,})" for name, n in most))
        table.add_row(*cells)
    asked, points = f"{plan.cells:,}", f"{plan.num_points:,}"
    table.add_row(
        "sum", asked, points, f"{total.runs_before:,}", "", f"{total.steps_before:,}",
        f"{total.snapshots_before:,}", _hours(total.time_before), style="dim",
    )  # fmt: skip
    table.add_row(
        "after sharing", asked, points, f"{total.runs:,}", f"{plan.num_shared:,}",
        f"{total.steps:,}", f"{total.snapshots:,}", _hours(total.time), style="bold",
    )  # fmt: skip
    table.add_row("")
    return table


_SHARERS = 2
_WIDE = 120
"""Columns of a screen from which names of sweeps have room beside the numbers."""


def _hours(time: Estimate) -> str:
    """A plus stands for runs without a measured pace."""
    if not time.seconds:
        return "?" if time.unknown else "0"
    text = f"{time.seconds / 3600:,.3g}" if time.seconds < 3.6e6 else f"{time.seconds / 3600:,.0f}"
    return f"{text} + ?" if time.unknown else text


def _pace_remarks(rates: Rates, pace: Pace) -> Iterator[str]:
    """On what the hours rest, and what they lack."""
    about = rates.about
    if about:
        yield (
            f"hours of {about.get('device', 'a device')}, measured {about.get('date', '?')} with "
            f"torch {about.get('torch', '?')}; {about.get('method', '')}"
        )
    slow = [f"{_model(group)}" for group in rates.left_out]
    if slow:
        yield f"too slow or too large to measure here: {', '.join(dict.fromkeys(slow))}"
    lent: dict[str, list[str]] = {}
    for asked, lender in pace.borrowed.items():
        lent.setdefault(_lender(asked, lender), []).append(_model(asked))
    for how, models in lent.items():
        yield f"{how}: {', '.join(dict.fromkeys(models))}"
    unknown = list(dict.fromkeys(_model(group) for group in pace.unknown))
    if unknown and (about or rates.runs):
        yield f"no measured pace, not in the hours: {', '.join(unknown)}"


def _lender(asked: Group, lender: Group) -> str:
    """What runs lent their pace, where none like those asked were measured here."""
    if lender.hardware:
        return f"not measured here, hours of {lender.hardware}"
    return f"not measured on {asked.workers} workers, device time as on {lender.workers}"


def _model(group: Group) -> str:
    size = f" {group.image_size}px" if group.image_size else ""
    precision = "" if group.precision == "fp32" else f" {group.precision}"
    return (
        f"{group.dataset}{size} {backbone_name(group.backbone)} batch {group.batch_size}{precision}"
    )


def _rows(plan: Plan, left_time: Estimate, num_bytes: int | None) -> list[tuple[str, str, str]]:
    runs = [unit for unit in plan.units if unit.kind not in ARTEFACTS]
    saved = plan.asked_steps - plan.student_steps
    kinds = Counter(unit.kind for unit in plan.left)
    left = ", ".join(f"{count} {_plural(kind, count)}" for kind, count in kinds.items())
    rows = [
        ("cells asked", f"{plan.cells:,}", "numbers in tables and figures"),
        ("grid points", f"{plan.num_points:,}", f"in {len(plan.points)} sweep(s), seeds included"),
        ("unique runs", f"{len(runs):,}", _kinds(plan)),
        ("shared by sweeps", f"{plan.num_shared:,}", "runs that more than one sweep asks"),
        ("teacher snapshots", f"{plan.num_snapshots:,}", ""),
        ("student steps", f"{plan.student_steps:,}", f"{saved:,} saved by sharing"),
        ("left to do", f"{len(plan.left):,}", left or "nothing: the store holds everything"),
        ("student steps left", f"{plan.student_steps_left:,}", ""),
    ]
    if num_bytes is not None:
        rows.append(("store, when done", _bytes(num_bytes), "checkpoints, snapshots and targets"))
    if plan.left:
        rows.append(_time_row(left_time))
    return rows


def _time_row(time: Estimate) -> tuple[str, str, str]:
    if not time.seconds:
        how = "`plan --calibrate` measures it here, `--device NAME` takes another's"
        return ("device time", "?", f"nothing measured yet: {how}")
    remark = f"{duration(time.seconds)} of one device for what is left, at the measured "
    remark += f"pace; a teacher counts as {SEARCH_STEPS:,} steps"
    if time.unknown:
        remark += f"; {time.unknown:,} runs without a pace are not in it"
    hours = time.seconds / 3600
    return ("device time", f"{hours:,.{0 if hours >= 100 else 2}f} h", remark)


def _sharing_rows(sharing: Iterable[Choice]) -> Iterator[tuple[str, str, str]]:
    """A row for each number of runs and reason."""
    loads: dict[tuple[int, str], list[str]] = {}
    for choice in sharing:
        loads.setdefault((choice.runs, choice.why), []).append(str(choice.load))
    for (runs, why), named in loads.items():
        more = f" and {len(named) - 1} more" if len(named) > 1 else ""
        yield ("students a GPU", f"{runs}", f"{named[0]}{more}: {why}")


def _kinds(plan: Plan) -> str:
    teachers, students = len(plan.of_kind("teacher")), len(plan.of_kind("student"))
    targets, probes = len(plan.of_kind("targets")), len(plan.of_kind("probe"))
    probed = f", {probes} {_plural('probe', probes)}" if probes else ""
    scores = len(plan.of_kind("scores"))
    scored = f", {scores} {_plural('scores', scores)}" if scores else ""
    return (
        f"{teachers} {_plural('teacher', teachers)}, {students} {_plural('student', students)}"
        f"{probed}; "
        f"{targets} {_plural('targets', targets)}{scored}"
    )


def _plural(kind: str, count: int) -> str:
    if kind in ARTEFACTS:
        kind = {"targets": "soft-target file", "scores": "score file"}[kind]
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
