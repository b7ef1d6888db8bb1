"""The report's page and its Markdown twin: what is filled, what is missing, every item in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from dashboards.labels import as_key, field_label, phrase, value_label
from dashboards.raw import teacher_records
from dashboards.results import Results
from dashboards.table_text import Grid

__all__ = ["Section", "missing_runs", "render_html", "render_markdown"]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One item of the report, ready to be shown.

    filled, planned: cells (tables), positions or curves (figures); full: cells with every seed,
    None for figures. image: figure file without its extension, relative to the report. problem:
    why the item cannot be shown, or empty. markdown: the table as text, empty for figures.
    """

    name: str
    title: str
    filled: int = 0
    planned: int = 0
    full: int | None = None
    grids: tuple[Grid, ...] = ()
    notes: str = ""
    image: str = ""
    files: tuple[str, ...] = ()
    problem: str = ""
    markdown: str = ""


def render_html(results: Results, sections: Sequence[Section]) -> str:
    """The page; every text is escaped. It links figures and files relative to itself."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "html"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=results.plan.title or results.plan.sweep,
        description=results.plan.description,
        coverage=_coverage(results),
        items=sections,
        teachers=teacher_records(results),
        missing=missing_runs(results),
        problems=results.problems,
    )


def render_markdown(results: Results, sections: Sequence[Section]) -> str:
    """The same report as Markdown, without times or machines."""
    coverage = _coverage(results)
    parts = [f"# {results.plan.title or results.plan.sweep}", results.plan.description]
    parts.append(f"{coverage['complete']} of {coverage['runs']} runs complete.")
    parts += [f"The same in all: {coverage['settings']}."] if coverage["settings"] else []
    for section in sections:
        heading = f"### {section.title}"
        if section.problem:
            parts.append(f"{heading}\n\nNot shown: {section.problem}")
        elif section.image:
            parts.append(f"{heading}\n\n![{section.title}]({section.image}.png)\n\n{section.notes}")
        else:
            parts.append(section.markdown.rstrip())
    missing = [f"- `{run['name']}` {run['state']}: {run['label']}" for run in missing_runs(results)]
    parts += ["## Missing runs\n", "\n".join(missing)] if missing else []
    problems = [f"- {problem}" for problem in results.problems]
    parts += ["## Files that could not be read", "\n".join(problems)] if problems else []
    return "\n\n".join(part for part in parts if part) + "\n"


def missing_runs(results: Results) -> list[dict[str, str]]:
    """Runs of the plan that are not complete up to what the sweep asks: name, state, label."""
    values = {
        name: {as_key(point.settings.get(name)) for point in results.plan.points} - {None}
        for name in results.plan.fields
    }
    telling = [name for name in results.plan.fields if len(values[name]) > 1]
    missing = {}
    for point in results.plan.points:
        if not results.is_complete(point) and point.run not in missing:
            state = results.runs[point.run].state
            settings = {name: as_key(point.settings.get(name)) for name in telling}
            texts = [phrase(name, v) for name, v in settings.items() if v is not None]
            missing[point.run] = {
                "name": point.run,
                "state": "shorter than asked" if state == "complete" else state,
                "label": ", ".join(texts),
            }
    return list(missing.values())


def _coverage(results: Results) -> dict[str, Any]:
    runs = len({point.run for point in results.plan.points})
    settings = [
        f"{field_label(name)} {value_label(name, as_key(value))}"
        for name, value in results.plan.settings.items()
        if value is not None
    ]
    return {
        "runs": runs,
        "complete": runs - len(missing_runs(results)),
        "settings": "; ".join(settings),
    }
