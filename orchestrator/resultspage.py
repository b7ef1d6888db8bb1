"""`targetsweep results`: what bundles have measured, as one page of Markdown.

The bundles go into a store of its own, as `store import` takes them in, and every sweep that has a
number is reported from there, as `report` reports it. Pilots stand apart from full scale: they have
names of their own, so no table ever holds both. Equal bundles give equal bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dashboards.contributions import arithmetic
from dashboards.errors import ReportError
from dashboards.report import CLAIMS, ReportText, report_text
from dashboards.results import load_plan
from orchestrator import paths
from orchestrator.bundleimport import Imported, import_bundles
from orchestrator.errors import UserError
from orchestrator.store import Store
from orchestrator.storecommands import refuse_conflicts

__all__ = ["results_page", "write_results"]

_HEAD = """\
# Results

Made by `targetsweep results` (`make results`) from the bundles below; do not edit. Ours are mean ±
sample standard deviation over seeds. The paper's numbers stand beside them; differences are tested
at full scale alone. What is empty was not measured. [findings.md](findings.md) reads it as a
referee would; [README](../README.md) says how to add to it.
"""


def write_results(console: Console, bundles: Sequence[str], out: Path) -> None:
    """Raises UserError for a damaged or foreign bundle, ConflictsError where two say different
    numbers of one run; nothing is written then."""
    text = results_page(bundles)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    console.print(f"{out}: {len(bundles)} bundle(s)", soft_wrap=True, highlight=False)


def results_page(bundles: Sequence[str]) -> str:
    """The page, in Markdown. bundles: folders or zip files; their order does not matter."""
    places = sorted(bundles, key=lambda place: (Path(place).name, place))
    with tempfile.TemporaryDirectory(prefix="targetsweep-results-") as folder:
        store = Store(folder)
        imported = import_bundles(store, places)
        refuse_conflicts(imported)
        try:
            reports = {n: report_text(store.uri, n) for n in store.list(paths.sweeps_dir())}
        except ReportError as error:
            raise UserError(error.problem, error.remedy) from error
        departs = {name: _departs(store, name) for name in reports}
    parts = [_HEAD, _contributions(imported)]
    for title, is_pilot in (("Full scale", False), ("Pilots", True)):
        chosen = {n: report for n, report in reports.items() if departs[n] is is_pilot}
        parts.append(f"## {title}\n\n{_section(chosen)}")
    return "\n".join(parts)


def _departs(store: Store, name: str) -> bool:
    """Whether a sweep, or one that a group stands for, is no full experiment of its file."""
    plan = load_plan(store.uri, name)
    there = set(store.list(paths.sweeps_dir()))
    return bool(plan.departure) or any(_departs(store, one) for one in plan.include if one in there)


def _contributions(bundles: Sequence[Imported]) -> str:
    """A line a bundle and machine; below it, how the runs were made, as who exported them said, and
    what did not go into the tables."""
    lines = [
        "## Contributions",
        "",
        "| Bundle | Made | Machine | Device | Precision | torch | Runs | Hours | Exported by |",
        "| --- | --- | --- | --- | --- | --- | ---: | ---: | --- |",
    ]
    for bundle in bundles:
        for machine in bundle.manifest.get("hardware", []):
            lines.append(f"| {' | '.join(_contribution(bundle, machine))} |")
    said = [(bundle, bundle.manifest.get("note")) for bundle in bundles]
    noted = [(bundle, note) for bundle in bundles for note in bundle.notes]
    notes = [
        f"- `{Path(bundle.place).name}`: {' '.join(str(note).split())}"
        for bundle, note in (*said, *noted)
        if note
    ]
    lines += ["", *notes] if notes else []
    return "\n".join(lines) + "\n"


def _contribution(bundle: Imported, machine: Mapping[str, Any]) -> list[str]:
    about = bundle.manifest
    device = str(machine.get("device", "?"))
    known = [str(machine[name]) for name in ("hardware", "gpu") if machine.get(name)]
    return [
        f"`{Path(bundle.place).name}`",
        str(about.get("created", "?"))[:10],
        f"`{machine.get('hostname', '?')}`, {machine.get('cpus', '?')} cores",
        ", ".join([device, *known]),
        arithmetic(machine) or "?",
        str(machine.get("torch", "?")),
        f"{machine.get('runs', 0):,}",
        f"{float(machine.get('wall_time_s') or 0) / 3600:.2f}",
        f"`{about.get('command', '?')}`",
    ]


def _section(reports: Mapping[str, ReportText]) -> str:
    """Sweeps with a number; of the others, their names."""
    parts: list[str] = []
    empty: list[str] = []
    claims: set[str] = set()
    for name, report in reports.items():
        if not report.filled:
            empty.append(name)
            continue
        cells = f"{report.filled:,} of {report.planned:,} cells measured"
        # A group's tables are its sweeps', which stand here by themselves; groups share claims.
        tables = [
            text.strip() for title, text in report.tables if not report.is_group or title == CLAIMS
        ]
        if report.is_group and claims.issuperset(tables):
            continue
        claims.update(tables)
        tables += [report.teachers] * bool(report.teachers)
        parts.append("\n\n".join([f"### `{name}`: {cells}", *map(_lower, tables)]) + "\n")
    if empty:
        parts.append(f"Planned and not measured: {', '.join(empty)}.\n")
    return "\n".join(parts) or "None yet.\n"


def _lower(markdown: str) -> str:
    """Headings below their sweep's, which is of the third level."""
    first = len(markdown) - len(markdown.lstrip("#"))
    down = "#" * max(0, 4 - first) if first else ""
    return "\n".join(
        f"{down}{line}" if line.startswith("#") else line for line in markdown.split("\n")
    )
