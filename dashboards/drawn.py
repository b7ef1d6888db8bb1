"""A figure item made ready, lines or heat map: the drawing, its numbers and what to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from matplotlib.figure import Figure

from dashboards.figure_data import figure_data
from dashboards.figure_text import figure_columns, figure_notes, figure_records
from dashboards.figures import draw
from dashboards.heatmaps import draw_heatmap, heatmap_notes, heatmap_table
from dashboards.layout import FigureItem
from dashboards.long_form import csv_text, long_columns, long_form
from dashboards.results import Results

__all__ = ["Drawn", "drawn"]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """filled, planned: curves, positions or cells, as `unit` says. num_means: numbers drawn. csv:
    the same numbers as text. draw: makes the figure."""

    title: str
    draw: Callable[[], Figure]
    filled: int
    planned: int
    unit: str
    num_means: int
    notes: str
    csv: str

    @cached_property
    def figure(self) -> Figure:
        """Drawn when somebody looks at it."""
        return self.draw()


def drawn(results: Results, item: FigureItem) -> Drawn:
    """Raises ReportError when a position would mix settings that the item does not show."""
    return _heatmap(results, item) if item.kind == "heatmap" else _lines(results, item)


def _lines(results: Results, item: FigureItem) -> Drawn:
    data = figure_data(results, item)
    return Drawn(
        title=data.title,
        draw=partial(draw, data),
        filled=data.filled,
        planned=data.planned,
        unit="curves" if item.x == "step" else "positions",
        num_means=len(data.means),
        notes=" ".join(figure_notes(data)),
        csv=csv_text(figure_records(data), figure_columns(data)),
    )


def _heatmap(results: Results, item: FigureItem) -> Drawn:
    table = heatmap_table(results, item)
    records: list[dict[str, Any]] = long_form(table)
    filled = sum(bool(cell.scores) for cell in table.cells)
    return Drawn(
        title=table.title,
        draw=partial(draw_heatmap, table),
        filled=filled,
        planned=table.num_planned,
        unit="cells",
        num_means=filled,
        notes=" ".join(heatmap_notes(table)),
        csv=csv_text(records, long_columns(table)),
    )
