"""Writes the report of a sweep, or of a group of sweeps, from its store.

Works on a store that is still growing (cells stay empty) and on a copied one. `tables/` is
byte-identical for equal measurements; what describes an execution is in the pages and in
provenance.json alone. index.html is one file that needs no other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dashboards.claim_text import (
    CLAIM_COLUMNS,
    begun_claims_markdown,
    claim_records,
    claims_markdown,
)
from dashboards.claims import Judgement, judge
from dashboards.errors import ReportError
from dashboards.groups import Loaded, load
from dashboards.html_report import render_html, render_markdown
from dashboards.long_form import csv_text
from dashboards.notes import restriction_notes
from dashboards.page import Page, build_page
from dashboards.provenance import Sources, provenance
from dashboards.raw import TEACHER_COLUMNS, run_columns, run_records, teacher_records
from dashboards.referee import teachers_markdown
from dashboards.restriction import Restriction, restricted
from dashboards.scoring import scoring_costs
from dashboards.sections import Files, Section, render_items
from dashboards.sources import claim_sources
from dashboards.store import Store, child_uri
from dashboards.tracking_ids import RunIds, tracking_ids

__all__ = ["CLAIMS", "ReportPaths", "ReportText", "report_text", "write_report"]

_ALL = Restriction()

CLAIMS = "Claims"
"""Title of the table of claims."""


@dataclass(frozen=True, kw_only=True)
class ReportText:
    """What a report says in text. is_group: of several sweeps.

    tables: (title, Markdown) of every table in the sweep's order, claims that have data first.
    problems: items that could not be shown and files that could not be read; the rest is whole.
    teachers: students beside their teachers, as Markdown; empty where there are none. filled,
    planned: cells of its tables and figures that have a value, and all.
    """

    is_group: bool
    tables: list[tuple[str, str]]
    problems: list[str]
    teachers: str
    filled: int
    planned: int


@dataclass(frozen=True, kw_only=True)
class ReportPaths(ReportText):
    """Where a report lies (local paths or URIs) and what a screen shows of it. summary: what a
    group's page holds, in a line; empty for a sweep."""

    root: str
    index: str
    markdown: str
    provenance: str
    figures: list[str]
    summary: str


@dataclass(frozen=True)
class _Made:
    """A report before it is written. sections: by sweep. files: tables and figures, by path."""

    loaded: Loaded
    sections: dict[str, list[Section]]
    files: Files
    judgements: list[Judgement]
    ids: RunIds
    scoring: list[dict[str, Any]]
    page: Page

    @property
    def shown(self) -> list[Section]:
        return [section for own in self.sections.values() for section in own]


def report_text(store: str | Path, sweep: str) -> ReportText:
    """What `write_report` would say, with nothing drawn or written. Raises as it does."""
    made = _make(str(store), load(str(store), sweep), pictures=False)
    return _text(made)


def write_report(
    store: str | Path,
    sweep: str,
    out: str | Path | None = None,
    restriction: Restriction = _ALL,
) -> ReportPaths:
    """Writes `sweeps/<sweep>/report/` of the store, or `out`. sweep: a sweep's or a group's name.

    store, out: local path or pyarrow.fs URI. Each file appears whole, the pages last. Files of the
    previous report that this one no longer has are removed. restriction: of which runs alone; such
    a report has a folder of its own, `out`. Raises ReportError when there is no such sweep, its
    plan cannot be read or no run is left.
    """
    store = str(store)
    if restriction and out is None:
        raise ReportError(
            f"a report of {restriction.text} alone does not replace the sweep's own",
            "give it another folder: --out",
        )
    loaded = restricted(load(store, sweep), restriction)
    root = str(out) if out is not None else child_uri(store, f"sweeps/{sweep}/report")
    made = _make(store, loaded, pictures=True)
    files, judgements = made.files, made.judgements
    if judgements:
        files["tables/claims.csv"] = csv_text(claim_records(judgements), CLAIM_COLUMNS).encode()
        note = "".join(f"{text}\n\n" for text in restriction_notes(restriction.text))
        files["tables/claims.md"] = f"{note}{claims_markdown(judgements, 1)}".encode()
    files["report.md"] = render_markdown(made.page, judgements).encode()
    files["index.html"] = render_html(made.page).encode()
    sources = _sources(loaded, made.sections, judgements)
    origins = provenance(loaded, store, sorted(files), sources, made.ids, made.scoring)
    _publish(Store.open(root), files, origins)
    return ReportPaths(
        root=root,
        index=child_uri(root, "index.html"),
        markdown=child_uri(root, "report.md"),
        provenance=child_uri(root, "provenance.json"),
        figures=[child_uri(root, f"{one.image}.png") for one in made.shown if one.image],
        summary=_summary(made.page, made.shown) if loaded.is_group else "",
        **vars(_text(made)),
    )


def _make(store: str, loaded: Loaded, *, pictures: bool) -> _Made:
    sections, files = _render(loaded, pictures)
    judgements = _judge(loaded)
    ids = tracking_ids(store, loaded.sweeps)
    scoring = scoring_costs(store, loaded)
    page = build_page(loaded, sections, judgements, ids, scoring)
    return _Made(loaded, sections, files, judgements, ids, scoring, page)


def _text(made: _Made) -> ReportText:
    loaded, shown = made.loaded, made.shown
    return ReportText(
        is_group=loaded.is_group,
        tables=[(CLAIMS, begun_claims_markdown(made.judgements))] * bool(made.judgements)
        + [(section.title, section.markdown) for section in shown if section.markdown],
        problems=[s.problem for s in shown if s.problem]
        + [f"{name} was never planned in this store" for name in loaded.absent]
        + list(loaded.problems),
        teachers="" if loaded.is_group else teachers_markdown(made.page.parts[0].teachers),
        filled=made.page.filled,
        planned=made.page.planned,
    )


def _summary(page: Page, shown: Sequence[Section]) -> str:
    figures = sum(bool(section.image) for section in shown)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in page.verdicts.items())
    return (
        f"{page.title}: {len(page.parts)} sweeps, {len(shown) - figures} tables, "
        f"{figures} figures; {page.filled:,} of {page.planned:,} cells filled; "
        f"claims: {verdicts or 'none'}"
    )


def _render(loaded: Loaded, pictures: bool) -> tuple[dict[str, list[Section]], Files]:
    """Sections by sweep. A group's sweeps have a folder each, since their items may share names."""
    files: Files = {}
    sections = {}
    for name, results in loaded.sweeps.items():
        folder = f"{name}/" if loaded.is_group else ""
        sections[name], own = render_items(results, folder, pictures=pictures)
        runs = csv_text(run_records(results), run_columns(results))
        files |= own | {f"tables/{folder}runs.csv": runs.encode()}
    teachers = csv_text(teacher_records(loaded.results), TEACHER_COLUMNS)
    return sections, files | {"tables/teachers.csv": teachers.encode()}


def _judge(loaded: Loaded) -> list[Judgement]:
    """The report's own claims, then those of the sweeps it includes."""
    owners = [loaded.plan]
    owners += [results.plan for results in loaded.sweeps.values()] if loaded.is_group else []
    judgements: list[Judgement] = []
    for plan in owners:
        suffix = f"-{plan.scale.name}" if plan.scale else ""
        judgements += judge(plan.claims, loaded.sweeps, plan.sweep, suffix)
    return judgements


def _sources(
    loaded: Loaded, sections: dict[str, list[Section]], judgements: Sequence[Judgement]
) -> Sources:
    """Of a claim by the sweep whose runs it rests on, so that they find their MLflow runs."""
    found = {
        name: {section.name: list(section.sources) for section in own}
        for name, own in sections.items()
    }
    for judgement in judgements:
        for cell in (cell for finding in judgement.findings for cell in finding.cells):
            claims = found[cell.sweep].setdefault(f"claim {judgement.item.name}", [])
            claims += [source for source in claim_sources([cell]) if source not in claims]
    return found


def _publish(target: Store, files: Files, about: str) -> None:
    """Tables and figures, then the pages that show them, then provenance.json, then what the
    previous report had and this one has not."""
    stale = _previous(target) - set(files)
    for path in sorted(files, key=lambda path: ("/" not in path, path)):
        target.write(path, files[path])
    target.write("provenance.json", about.encode())
    for path in sorted(stale):
        target.remove(path)


def _previous(target: Store) -> set[str]:
    """Files that an earlier report of ours wrote; only plain names inside its two folders, or in a
    sweep's folder there."""
    try:
        listed = json.loads(target.read("provenance.json"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    parts = {path: PurePosixPath(path).parts for path in listed if isinstance(path, str)}
    return {
        path
        for path, p in parts.items()
        if len(p) in (2, 3) and p[0] in ("tables", "figures") and ".." not in p
    }
