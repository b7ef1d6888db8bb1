"""The report's page: one HTML file that needs nothing beside it, and its Markdown twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from dashboards.claim_text import claims_markdown
from dashboards.claims import Judgement
from dashboards.contributions import HEADS, contributions_markdown
from dashboards.page import Page, Part
from dashboards.referee import TEACHERS_NOTE, teachers_markdown
from dashboards.sections import Section

__all__ = ["render_html", "render_markdown"]


def render_html(page: Page) -> str:
    """The page; every text is escaped. It refers to no other file and to no address."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "html"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html.j2").render(
        page=page, heads=HEADS, left_out=_left_out(page), teachers_note=TEACHERS_NOTE
    )
    return text.lstrip()


def render_markdown(page: Page, judgements: Sequence[Judgement]) -> str:
    """The same report as Markdown, without provenance but for who contributed."""
    parts = [f"# {page.title}", page.description, f"{page.coverage}."]
    parts += [f"The same in all: {page.settings}."] if page.settings else []
    if page.pilot_notes is not None:
        parts.append(" ".join(["**Pilot.**", "; ".join(page.pilot_notes)]).rstrip())
    if page.overrides:
        parts.append(f"**Other settings than the sweep file's.** {'; '.join(page.overrides)}")
    if page.restriction:
        parts.append(f"**Restricted to runs of {page.restriction}.** {_left_out(page)}")
    parts += [f"Never planned in this store: {', '.join(page.absent)}."] if page.absent else []
    parts += [claims_markdown(judgements).rstrip()] if judgements else []
    for part in page.parts:
        parts += _heading(part) if page.is_group else []
        parts += [_section(section) for section in part.sections]
        parts.append(teachers_markdown(part.teachers))
    parts += [contributions_markdown(page.contributions)] if page.contributions else []
    missing = [run for part in page.parts for run in part.missing]
    parts += ["## Missing runs", _missing(missing)] if missing else []
    problems = [f"- {problem}" for problem in page.problems]
    parts += ["## What could not be read", "\n".join(problems)] if problems else []
    return "\n\n".join(part for part in parts if part) + "\n"


def _left_out(page: Page) -> str:
    """How many runs of others do not count."""
    return f"{page.left_out} runs of others, or of several, are left out; teachers stay."


def _heading(part: Part) -> list[str]:
    text = f"{part.coverage}."
    text += f" The same in all: {part.settings}." if part.settings else ""
    return [f"## {part.title}", part.description, text]


def _section(section: Section) -> str:
    if section.problem:
        return f"### {section.title}\n\nNot shown: {section.problem}"
    if section.image:
        image = f"![{section.title}]({section.image}.png)"
        return f"### {section.title}\n\n{image}\n\n{section.notes}"
    return section.markdown.rstrip()


def _missing(runs: Sequence[Mapping[str, str]]) -> str:
    lines = {run["name"]: f"- `{run['name']}` {run['state']}: {run['label']}" for run in runs}
    return "\n".join(lines.values())
