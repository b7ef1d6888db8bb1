"""A report item made ready: its numbers, its files, its sources."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dashboards.drawn import drawn
from dashboards.embed import csv_uri, figure_uri
from dashboards.errors import ReportError
from dashboards.figures import image
from dashboards.grids import grids
from dashboards.layout import FigureItem, TableItem
from dashboards.long_form import csv_text, long_columns, long_form, parquet_bytes
from dashboards.notes import notes
from dashboards.results import Results
from dashboards.sources import Source, item_sources, measured_for
from dashboards.table_html import Block, block
from dashboards.table_text import latex, markdown
from dashboards.tables import Table, build_table

__all__ = ["Files", "Section", "render_items"]

Files = dict[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One item of the report, ready to be shown.

    anchor: its id in the page. filled, planned: cells (tables), positions or curves (figures);
    unit: which. full: cells with every seed, None for figures. image: figure file without its
    extension, relative to the report; image_uri, alt, image_width (CSS pixels): the same in the
    page. problem: why the item
    cannot be shown, or empty. markdown: the table as text, empty for figures.
    """

    name: str
    title: str
    anchor: str
    filled: int = 0
    planned: int = 0
    full: int | None = None
    unit: str = "cells"
    blocks: tuple[Block, ...] = ()
    notes: str = ""
    image: str = ""
    image_uri: str = ""
    image_width: int = 0
    alt: str = ""
    csv_uri: str = ""
    files: tuple[str, ...] = ()
    problem: str = ""
    markdown: str = ""
    sources: tuple[Source, ...] = field(default=(), repr=False)

    @property
    def num_values(self) -> int:
        """Values of runs that stand behind it."""
        return sum(len(source.runs) for source in self.sources)


def render_items(
    results: Results, folder: str = "", *, pictures: bool = True
) -> tuple[list[Section], Files]:
    """Sections of a sweep's tables and figures, and their files. folder: below `tables` and
    `figures`, with a slash at its end; empty for a sweep on its own. pictures: whether figures are
    drawn, or just their numbers told, in a fraction of the time."""
    measured = measured_for(results)
    sections: list[Section] = []
    files: Files = {}
    for item in results.plan.items:
        anchor = f"{results.plan.sweep}--{item.name}"
        try:
            sources = item_sources(results, item, measured)
            if isinstance(item, TableItem):
                table = build_table(results, item)
                section, own = _render_table(table, folder, anchor, sources)
            else:
                section, own = _render_figure(
                    results, item, folder, anchor, sources, pictures=pictures
                )
        except ReportError as error:  # one item's mistake does not cost the others
            title = item.title or item.name
            section, own = (
                Section(name=item.name, title=title, anchor=anchor, problem=str(error)),
                {},
            )
        sections.append(section)
        files |= own
    return sections, files


def _render_table(
    table: Table, folder: str, anchor: str, sources: tuple[Source, ...]
) -> tuple[Section, Files]:
    name, records, columns = table.item.name, long_form(table), long_columns(table)
    text = markdown(table)
    path = f"tables/{folder}{name}"
    files = {
        f"{path}.md": text.encode(),
        f"{path}.csv": csv_text(records, columns).encode(),
        f"{path}.tex": latex(table).encode(),
        f"{path}.parquet": parquet_bytes(records, columns),
    }
    section = Section(
        name=name,
        title=table.title,
        anchor=anchor,
        filled=sum(bool(cell.scores) for cell in table.cells),
        planned=table.num_planned,
        full=sum(0 < cell.num_planned == len(cell.scores) for cell in table.cells),
        blocks=tuple(block(grid) for grid in grids(table)),
        notes=" ".join(notes(table)),
        csv_uri=csv_uri(files[f"{path}.csv"]),
        files=tuple(files),
        markdown=text,
        sources=sources,
    )
    return section, files


def _render_figure(
    results: Results,
    item: FigureItem,
    folder: str,
    anchor: str,
    sources: tuple[Source, ...],
    *,
    pictures: bool,
) -> tuple[Section, Files]:
    shown = drawn(results, item)
    name = f"figures/{folder}{item.name}"
    files = {f"{name}.csv": shown.csv.encode()}
    section = Section(
        name=item.name,
        title=shown.title,
        anchor=anchor,
        filled=shown.filled,
        planned=shown.planned,
        unit=shown.unit,
        notes=shown.notes,
        csv_uri=csv_uri(files[f"{name}.csv"]),
        sources=sources,
    )
    if not pictures:
        return replace(section, files=tuple(files)), files
    files[f"{name}.png"] = image(shown.figure, "png")
    shown.figure.set_layout_engine("none")  # stays as it is: laying out costs more than drawing
    files[f"{name}.pdf"] = image(shown.figure, "pdf")
    section = replace(
        section,
        image=name,
        image_uri=figure_uri(shown.figure, files[f"{name}.png"], shown.num_means),
        image_width=round(96 * float(shown.figure.get_size_inches()[0])),
        alt=f"{shown.title}. Its numbers are in the CSV file below.",
        files=(f"{name}.png", f"{name}.pdf", f"{name}.csv"),
    )
    return section, files
