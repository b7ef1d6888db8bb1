"""A table laid out as in the paper: lines, spanning heads, small second lines, bold.

A contrast in the rows adds its line below the lines it compares. One in the columns adds a line
below each line, in the columns of its numerators (the paper's Table 8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from dashboards.comparisons import signed
from dashboards.labels import Key, axis_label, field_label, format_score, here_label
from dashboards.tables import Coordinates, Differences, Pair, Ratios, Table

__all__ = ["MIXED", "Grid", "Head", "grids", "heading"]

MIXED = "†"


@dataclass(frozen=True)
class Head:
    """A text above `span` columns."""

    text: str
    span: int = 1


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A laid-out table: header and body lines of equally many texts, the first `num_keys` of which
    name the row. caption: empty for the main block.

    head_lines: the header as the paper has it, one line a column field and above it the field's
    spanning head; each line covers all columns, and the last names the keys. seconds: what stands
    small below a body text (the paper's number), and bold: which texts are; both shaped as `body`.
    """

    caption: str
    header: list[str]
    body: list[list[str]]
    num_keys: int
    head_lines: tuple[tuple[Head, ...], ...]
    seconds: list[list[str]]
    bold: list[list[bool]]


@dataclass(frozen=True)
class _Text:
    main: str
    second: str = ""
    is_bold: bool = False


@dataclass(frozen=True)
class _Line:
    """A body line: coordinates of its row; below: the contrast that it shows under that row."""

    row: Coordinates
    below: str = ""


def grids(table: Table) -> list[Grid]:
    """The main block (cells, with Gain lines) and, if asked, the paired differences."""
    split = len(table.item.rows)
    bold = set(_bold_cells(table))
    texts: dict[tuple[_Line, Coordinates], _Text] = {}
    for index, cell in enumerate(table.cells):
        at = cell.coordinates
        text = _Text(_cell_text(table, index), _second(table, index), index in bold)
        texts[_Line(at[:split]), at[split:]] = text
    if table.ratios:
        texts |= _ratio_texts(table, table.ratios)
    blocks = [_grid(table, texts, "")]
    if table.differences:
        caption = f"Paired differences by seed, {table.differences.label}: mean [95% interval]"
        blocks.append(_grid(table, _difference_texts(table.differences, split), caption))
    return blocks


def heading(table: Table, fields: Sequence[str], values: Coordinates) -> str:
    """Values in the paper's words; in a pilot with those that its runs have."""
    return ", ".join(_label(table, f, v) for f, v in zip(fields, values, strict=True))


def _label(table: Table, field: str, value: Key) -> str:
    return here_label(field, value, table.here.get(field, {}).get(value))


def _cell_text(table: Table, index: int) -> str:
    cell, s = table.cells[index], table.summary
    if s.n[index] == 0:
        return ""
    text = format_score(s.mean[index], cell.column)
    if s.n[index] > 1:
        text += f" ± {format_score(s.std[index], cell.column)}"
    if s.n[index] != cell.num_planned:
        text += f" (n={s.n[index]})"
    return text + MIXED * (len(cell.digests) > 1)


def _second(table: Table, index: int) -> str:
    comparison = table.comparisons[index]
    return comparison.text(table.cells[index].column) if comparison else ""


def _bold_cells(table: Table) -> Iterator[int]:
    """Indices of the cells in bold: the largest printed mean of a row or a column, where it has
    at least two to choose from."""
    if table.item.bold not in ("row_max", "column_max"):
        return
    split = len(table.item.rows)

    def group(index: int) -> Coordinates:
        at = table.cells[index].coordinates
        return at[:split] if table.item.bold == "row_max" else at[: split - 1] + at[split:]

    filled = [i for i in range(len(table.cells)) if table.summary.n[i]]
    groups: dict[Coordinates, list[int]] = {}
    for index in filled:
        groups.setdefault(group(index), []).append(index)
    for members in groups.values():
        means = [round(float(table.summary.mean[i]), 2) for i in members]
        if len(members) > 1:
            yield from (i for i, mean in zip(members, means, strict=True) if mean == max(means))


def _ratio_texts(table: Table, ratios: Ratios) -> dict[tuple[_Line, Coordinates], _Text]:
    item = table.item
    assert item.ratio is not None  # there are ratios
    texts = {}
    for index, (pair, value) in enumerate(zip(ratios.pairs, ratios.ratio, strict=True)):
        comparison = ratios.comparisons[index]
        main = "" if np.isnan(value) else f"{value:.2f}" + MIXED * pair.is_mixed
        is_bold = item.bold == "gain" and round(float(value), 2) > 1
        second = comparison.text("top1_h") if comparison else ""  # two decimals, like a top-1
        place = _ratio_place(pair, len(item.rows), item.ratio.field in item.columns, ratios.label)
        texts[place] = _Text(main, second, is_bold)
    return texts


def _ratio_place(
    pair: Pair, split: int, is_in_columns: bool, label: str
) -> tuple[_Line, Coordinates]:
    if is_in_columns:
        return _Line(pair.at[:split], below=label), pair.of.coordinates[split:]
    return _Line(pair.at[:split]), pair.at[split:]


def _difference_texts(
    differences: Differences, split: int
) -> dict[tuple[_Line, Coordinates], _Text]:
    return {
        (_Line(pair.at[:split]), pair.at[split:]): _Text(_difference_text(pair, differences, index))
        for index, pair in enumerate(differences.pairs)
    }


def _difference_text(pair: Pair, differences: Differences, index: int) -> str:
    s = differences.summary
    if s.n[index] == 0:
        return ""
    mean, low, high = (
        signed(float(values[index]), pair.of.column) for values in (s.mean, s.ci_low, s.ci_high)
    )
    text = f"{mean} [{low}, {high}]" if s.n[index] > 1 else mean
    if s.n[index] != min(pair.of.num_planned, pair.to.num_planned):
        text += f" (n={s.n[index]})"
    return text + MIXED * pair.is_mixed


def _grid(table: Table, texts: dict[tuple[_Line, Coordinates], _Text], caption: str) -> Grid:
    """Lines and columns in the plan's order; a contrast's line follows those it compares."""
    fields, split = table.item.rows, len(table.item.rows)
    lines = sorted(
        {line for line, _ in texts},
        key=lambda line: (_order(line.row, table.ranks[:split]), bool(line.below)),
    )
    columns = sorted({column for _, column in texts}, key=lambda c: _order(c, table.ranks[split:]))
    keys = [table.item.heads.get(name, field_label(name)) for name in fields]
    names = [heading(table, table.item.columns, c) or _only_heading(table) for c in columns]
    rows = [[texts.get((line, column), _Text("")) for column in columns] for line in lines]
    return Grid(
        caption=caption,
        header=keys + names,
        body=[
            _keys(table, line) + [text.main for text in row]
            for line, row in zip(lines, rows, strict=True)
        ],
        num_keys=split,
        head_lines=_head_lines(table, keys, columns),
        seconds=[[""] * split + [text.second for text in row] for row in rows],
        bold=[[False] * split + [text.is_bold for text in row] for row in rows],
    )


def _order(at: Coordinates, ranks: Sequence[dict[Key, int]]) -> tuple[int, ...]:
    return tuple(rank.get(value, len(rank)) for rank, value in zip(ranks, at, strict=True))


def _keys(table: Table, line: _Line) -> list[str]:
    keys = [
        _label(table, name, value) for name, value in zip(table.item.rows, line.row, strict=True)
    ]
    return [*keys[:-1], line.below] if line.below else keys


def _head_lines(
    table: Table, keys: list[str], columns: list[Coordinates]
) -> tuple[tuple[Head, ...], ...]:
    """One line a column field, equal neighbours as one head; above it the field's own head over all
    columns."""
    above = tuple(Head("") for _ in keys)
    lines: list[tuple[Head, ...]] = []
    for level, name in enumerate(table.item.columns):
        if name in table.item.heads:
            lines.append((*above, Head(table.item.heads[name], len(columns))))
        groups = [list(group) for _, group in groupby(columns, key=lambda c: c[: level + 1])]
        heads = tuple(Head(_label(table, name, group[0][level]), len(group)) for group in groups)
        lines.append(above + heads)
    last = lines.pop()[len(keys) :] if lines else (Head(_only_heading(table)),) * len(columns)
    return (*lines, (*map(Head, keys), *last))


def _only_heading(table: Table) -> str:
    """Heading of the numbers of a table without column fields."""
    return "Value" if table.item.metrics else axis_label(table.item.metric)
