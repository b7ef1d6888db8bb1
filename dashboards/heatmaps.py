"""Heat maps: the cells of a table as colours, each with its number, the paper's in small print."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from dashboards.labels import Key, axis_label, field_label, format_score, here_label, phrase
from dashboards.layout import FigureItem, TableItem
from dashboards.notes import departure_notes
from dashboards.results import Results
from dashboards.tables import Coordinates, Table, build_table

__all__ = ["draw_heatmap", "heatmap_notes", "heatmap_table", "plot_heatmap"]

_COLORS = "cividis"  # reads the same without red-green vision, and in grey
_EMPTY = "0.93"


def heatmap_table(results: Results, item: FigureItem) -> Table:
    """The numbers: a table with the panel and y in its rows and x in its columns.

    Raises ReportError when a cell would mix settings that the item does not show.
    """
    assert item.y is not None  # the model demands it of a heat map
    panel = (item.panel,) if item.panel else ()
    shared = {
        name: getattr(item, name) for name in ("title", "where", "metric", "steps", "references")
    }
    rows = (*panel, item.y)
    table = TableItem.model_validate(
        {"table": item.figure, "rows": rows, "columns": (item.x,), **shared}
    )
    return build_table(results, table)


def heatmap_notes(table: Table) -> list[str]:
    """What a reader must know to read it, one sentence each."""
    planned = max((cell.num_planned for cell in table.cells), default=0)
    text = [f"Mean over {planned} seeds; n is given where seeds are missing, grey is empty."]
    references = [comparison.reference for comparison in table.compared]
    if references:
        only_review = all(reference.value is None for reference in references)
        copy = "review copy" if only_review else "paper"
        legible = (
            " as far as it is legible" if any(r.status == "partial" for r in references) else ""
        )
        text.append(f"Small print: the number of the {copy}{legible}.")
    if table.is_mixed:
        text.append("More than one teacher snapshot (weight digest) stands behind a number.")
    return text + departure_notes(table)


def draw_heatmap(table: Table) -> Figure:
    """One panel a value of the first row field, where there are two. Never touches pyplot."""
    panels: list[Key] = [None]
    if len(table.item.rows) > 1:
        ranks = table.ranks[0]
        found = {cell.coordinates[0] for cell in table.cells}
        panels = sorted(found, key=lambda value: ranks.get(value, len(ranks)))
    with mpl.rc_context(sns.axes_style("white") | {"font.size": 9, "pdf.fonttype": 42}):
        num_x, num_y = len(_values(table, -1)), len(_values(table, -2))
        size = ((0.95 * num_x + 1.2) * len(panels) + 1.0, 0.72 * num_y + 1.5)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        norm = _norm(table)
        for ax, panel in zip(axes, panels, strict=True):
            plot_heatmap(table, panel, norm, ax)
        axes[0].set_ylabel(_axis_name(table, table.item.rows[-1]))
        metric = axis_label(table.item.metric)
        figure.colorbar(ScalarMappable(norm, _COLORS), ax=list(axes), label=metric, pad=0.02)
        figure.suptitle(table.title, fontsize=11)
    return figure


def plot_heatmap(table: Table, panel: Key, norm: Normalize, ax: Axes) -> Axes:
    """One panel. panel: value of the first row field, None where there is none."""
    xs, ys = _values(table, -1), _values(table, -2)
    prefix: Coordinates = () if len(table.item.rows) == 1 else (panel,)
    index = {cell.coordinates: i for i, cell in enumerate(table.cells)}
    places = [[index.get((*prefix, y, x)) for x in xs] for y in ys]
    means = np.array(
        [[np.nan if i is None else table.summary.mean[i] for i in row] for row in places]
    )
    ax.set_facecolor(_EMPTY)
    ax.pcolormesh(np.ma.masked_invalid(means), cmap=_COLORS, norm=norm, edgecolor="white")
    for y, row in enumerate(places):
        for x, i in enumerate(row):
            if i is not None:
                _annotate(table, i, x, y, norm, ax)
    x_field, y_field = table.item.columns[0], table.item.rows[-1]
    rotation = 0 if sum(len(_name(table, x_field, x)) for x in xs) < 11 * len(xs) else 30
    ax.set_xticks(np.arange(len(xs)) + 0.5, [_name(table, x_field, x) for x in xs])
    ax.tick_params(axis="x", rotation=rotation)
    ax.set_yticks(np.arange(len(ys)) + 0.5, [_name(table, y_field, y) for y in ys])
    ax.set_ylim(len(ys), 0)  # the first value at the top
    ax.set_xlabel(_axis_name(table, x_field))
    if prefix:
        ax.set_title(phrase(table.item.rows[0], panel), fontsize=10)
    sns.despine(ax=ax, left=True, bottom=True)
    return ax


def _annotate(table: Table, index: int, x: int, y: int, norm: Normalize, ax: Axes) -> None:
    cell, comparison = table.cells[index], table.comparisons[index]
    lines: list[tuple[str, float]] = []
    n = int(table.summary.n[index])
    if n:
        short = f" (n={n})" if n != cell.num_planned else ""
        lines.append((format_score(table.summary.mean[index], cell.column) + short, 9))
    if comparison is not None:
        reference = comparison.reference
        number = reference.value if reference.value is not None else reference.review_value
        lines.append((f"paper {format_score(number or 0.0, cell.column)}", 6.5))
    shade = _is_dark(norm(table.summary.mean[index])) if n else False
    style: dict[str, Any] = {"ha": "center", "va": "center", "color": "white" if shade else "0.1"}
    offsets = (0.5,) if len(lines) == 1 else (0.38, 0.72)
    for (text, size), offset in zip(lines, offsets, strict=False):
        ax.text(x + 0.5, y + offset, text, fontsize=size, **style)


def _is_dark(level: float) -> bool:
    red, green, blue, _ = mpl.colormaps[_COLORS](level)
    return bool(0.299 * red + 0.587 * green + 0.114 * blue < 0.5)


def _norm(table: Table) -> Normalize:
    means = table.summary.mean[~np.isnan(table.summary.mean)]
    return Normalize(float(means.min()), float(means.max())) if len(means) else Normalize(0, 100)


def _values(table: Table, axis: int) -> list[Key]:
    ranks = table.ranks[axis]
    found = {cell.coordinates[axis] for cell in table.cells}
    return sorted(found, key=lambda value: ranks.get(value, len(ranks)))


def _name(table: Table, field: str, value: Key) -> str:
    return here_label(field, value, table.here.get(field, {}).get(value))


def _axis_name(table: Table, field: str) -> str:
    return table.item.heads.get(field, field_label(field))
