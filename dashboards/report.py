"""Writes a sweep's report from its store: tables, figures, pages, provenance.

Works on a store that is still growing (cells stay empty) and on a copied one. `tables/` is
byte-identical for equal measurements; what describes an execution is in provenance.json alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from dashboards.errors import ReportError
from dashboards.figure_data import FigureData, figure_data
from dashboards.figures import draw, image
from dashboards.html_report import Section, render_html, render_markdown
from dashboards.layout import FigureItem, TableItem
from dashboards.provenance import provenance
from dashboards.raw import TEACHER_COLUMNS, run_columns, run_records, teacher_records
from dashboards.results import Results, load_plan, load_results
from dashboards.store import Store, child_uri
from dashboards.table_text import (
    csv_text,
    grids,
    latex,
    long_columns,
    long_form,
    markdown,
    notes,
    parquet_bytes,
)
from dashboards.tables import Table, build_table

__all__ = ["ReportPaths", "write_report"]

Files = dict[str, bytes]
_FIGURE_COLUMNS = ("panel", "hue", "style", "x", "mean", "std", "n", "ci_low", "ci_high")


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """Where a report lies (local paths or URIs) and what a screen shows of it.

    tables: (title, Markdown) of every table in the sweep's order. problems: items that could not be
    shown and files that could not be read; the rest of the report is whole.
    """

    root: str
    index: str
    markdown: str
    provenance: str
    tables: list[tuple[str, str]]
    figures: list[str]
    problems: list[str]


def write_report(store: str | Path, sweep: str, out: str | Path | None = None) -> ReportPaths:
    """Writes `sweeps/<sweep>/report/` of the store, or `out`.

    store, out: local path or pyarrow.fs URI. Each file appears whole, the pages last. Files of the
    previous report that this one no longer has are removed. Raises ReportError when there is no
    such sweep or its plan cannot be read.
    """
    store = str(store)
    results = load_results(store, load_plan(store, sweep))
    root = str(out) if out is not None else child_uri(store, f"sweeps/{sweep}/report")
    sections, files = _render(results)
    files["report.md"] = render_markdown(results, sections).encode()
    files["index.html"] = render_html(results, sections).encode()
    about = provenance(results, store, sorted(files))
    _publish(Store.open(root), files, json.dumps(about, indent=2, allow_nan=False))
    return ReportPaths(
        root=root,
        index=child_uri(root, "index.html"),
        markdown=child_uri(root, "report.md"),
        provenance=child_uri(root, "provenance.json"),
        tables=[(section.title, section.markdown) for section in sections if section.markdown],
        figures=[child_uri(root, f"{section.image}.png") for section in sections if section.image],
        problems=[s.problem for s in sections if s.problem] + list(results.problems),
    )


def _render(results: Results) -> tuple[list[Section], Files]:
    sections: list[Section] = []
    files: Files = {
        "tables/runs.csv": csv_text(run_records(results), run_columns(results)).encode(),
        "tables/teachers.csv": csv_text(teacher_records(results), TEACHER_COLUMNS).encode(),
    }
    for item in results.plan.report:
        try:
            section, own = _render_item(results, item)
        except ReportError as error:  # one item's mistake does not cost the others
            title = item.title or item.name
            section, own = Section(name=item.name, title=title, problem=str(error)), {}
        sections.append(section)
        files |= own
    return sections, files


def _render_item(results: Results, item: TableItem | FigureItem) -> tuple[Section, Files]:
    if isinstance(item, TableItem):
        return _render_table(build_table(results, item))
    return _render_figure(figure_data(results, item))


def _render_table(table: Table) -> tuple[Section, Files]:
    name, records, columns = table.item.name, long_form(table), long_columns(table)
    text = markdown(table)
    files = {
        f"tables/{name}.md": text.encode(),
        f"tables/{name}.csv": csv_text(records, columns).encode(),
        f"tables/{name}.tex": latex(table).encode(),
        f"tables/{name}.parquet": parquet_bytes(records, columns),
    }
    section = Section(
        name=name,
        title=table.title,
        filled=sum(bool(cell.scores) for cell in table.cells),
        planned=len(table.cells),
        full=sum(len(cell.scores) == cell.num_planned for cell in table.cells),
        grids=tuple(grids(table)),
        notes=" ".join(notes(table)),
        files=tuple(files),
        markdown=text,
    )
    return section, files


def _render_figure(data: FigureData) -> tuple[Section, Files]:
    name = f"figures/{data.item.name}"
    figure = draw(data)
    files = {f"{name}.{kind}": image(figure, kind) for kind in ("png", "pdf")}
    files[f"{name}.csv"] = csv_text(_figure_records(data), _FIGURE_COLUMNS).encode()
    smooth = " with a LOWESS line over a tenth of the points" if data.item.smooth else ""
    section = Section(
        name=data.item.name,
        title=data.item.title or data.item.name,
        filled=data.filled,
        planned=data.planned,
        notes=f"Mean over seeds{smooth}; bands and bars are 95% t-intervals.",
        image=name,
        files=tuple(files),
    )
    return section, files


def _figure_records(data: FigureData) -> list[dict[str, object]]:
    value_at = {position: value for value, position in data.axis.positions.items()}
    records = []
    for row in data.means.to_dict("records"):
        numbers = {k: None if np.isnan(v) else v for k, v in row.items() if k != "series"}
        x = numbers["x"] if data.item.x == "step" else value_at.get(row["x"])
        records.append(numbers | vars(data.series[int(row["series"])]) | {"x": x})
    return records


def _publish(target: Store, files: Files, about: str) -> None:
    """Tables and figures, then the pages that link them, then provenance.json, then what the
    previous report had and this one has not."""
    stale = _previous(target) - set(files)
    for path in sorted(files, key=lambda path: ("/" not in path, path)):
        target.write(path, files[path])
    target.write("provenance.json", about.encode())
    for path in sorted(stale):
        target.remove(path)


def _previous(target: Store) -> set[str]:
    """Files that an earlier report of ours wrote; only plain names inside its two folders."""
    try:
        listed = json.loads(target.read("provenance.json"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    parts = {path: PurePosixPath(path).parts for path in listed if isinstance(path, str)}
    return {path for path, p in parts.items() if len(p) == 2 and p[0] in ("tables", "figures")}
