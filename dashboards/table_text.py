"""Tables as text and files: Markdown and LaTeX in the paper's layout, CSV and Parquet in long form.

Equal measurements give equal bytes: no time, path, host or library object reaches these files, and
floats in CSV have ten significant digits.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dashboards.cells import Cell
from dashboards.labels import Key, axis_label, field_label, format_score, value_label
from dashboards.tables import Coordinates, Differences, Pair, Ratios, Table

__all__ = [
    "Grid",
    "csv_text",
    "grids",
    "latex",
    "long_columns",
    "long_form",
    "markdown",
    "notes",
    "parquet_bytes",
]

MIXED = "†"
_NUM_STATISTICS = ("mean", "std", "n", "n_planned", "ci_low", "ci_high", "p_value")
_INTEGERS = ("step", "n", "n_planned", "teacher_digests")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A laid-out table: header and body lines of equally many texts, the first `num_keys` of which
    name the row. caption: empty for the main block."""

    caption: str
    header: list[str]
    body: list[list[str]]
    num_keys: int


def grids(table: Table) -> list[Grid]:
    """The main block (cells, with Gain rows or columns) and, if asked, the paired differences."""
    texts = {cell.coordinates: _cell_text(table, index) for index, cell in enumerate(table.cells)}
    if table.ratios:
        texts |= _ratio_texts(table.ratios)
    blocks = [_grid(table, texts, "")]
    if table.differences:
        caption = f"Paired differences by seed, {table.differences.label}: mean [95% interval]"
        blocks.append(_grid(table, _difference_texts(table.differences), caption))
    return blocks


def notes(table: Table) -> list[str]:
    """What a reader must know to read the numbers, one sentence each."""
    planned = max((cell.num_planned for cell in table.cells), default=0)
    seeds = f"{planned} seed{'s' if planned != 1 else ''}"
    over = "students" if table.is_mixed else "students; one teacher"
    text = [f"Mean ± sample standard deviation over {seeds} ({over})."]
    columns = [field_label(name).lower() for name in table.item.columns if name != "metric"]
    text += [f"Columns: {', '.join(columns)}."] if columns else []
    short = any(0 < len(cell.scores) < cell.num_planned for cell in table.cells)
    text += ["n is given where seeds are missing."] if short else []
    steps = sorted({cell.step for cell in table.cells})
    if "step" not in table.item.spanning and steps:
        text.append(f"At step {', '.join(f'{step:,}' for step in steps)}.")
    if table.is_mixed:
        text.append(f"{MIXED} More than one teacher snapshot (weight digest) stands behind it.")
    return text


def markdown(table: Table) -> str:
    """Heading, blocks and notes."""
    parts = [f"### {_escape_markdown(table.title)}"]
    for grid in grids(table):
        parts += [grid.caption] if grid.caption else []
        parts.append(_markdown_grid(grid))
    parts.append(" ".join(notes(table)))
    return "\n\n".join(parts) + "\n"


def _markdown_grid(grid: Grid) -> str:
    align = ["---"] * grid.num_keys + ["---:"] * (len(grid.header) - grid.num_keys)
    lines = [[_escape_markdown(text) for text in line] for line in (grid.header, *grid.body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], align, *lines[1:]))


def _escape_markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def latex(table: Table) -> str:
    """A booktabs `tabular` a block, in one `table` environment; needs \\usepackage{booktabs}."""
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_escape_latex(table.title)}}}"]
    for grid in grids(table):
        lines += [rf"\par\medskip {_escape_latex(grid.caption)}\par"] if grid.caption else []
        lines += [_latex_grid(grid)]
    lines += [rf"\par\smallskip {{\footnotesize {_escape_latex(' '.join(notes(table)))}}}"]
    return "\n".join([*lines, r"\end{table}", ""])


def _latex_grid(grid: Grid) -> str:
    align = "l" * grid.num_keys + "r" * (len(grid.header) - grid.num_keys)
    header, *body = (
        " & ".join(_escape_latex(text) for text in line) + r" \\"
        for line in (grid.header, *grid.body)
    )
    inner = [r"\toprule", header, r"\midrule", *body, r"\bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{{align}}}", *inner, r"\end{tabular}"])


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "†": r"$^{\dagger}$", "—": "---",
    "φ": r"$\varphi$", "λ": r"$\lambda$", "[": "{[}", "]": "{]}",
}  # fmt: skip
_LATEX_SPECIAL = re.compile("|".join(re.escape(character) for character in _LATEX))


def _escape_latex(text: str) -> str:
    # brackets are braced because `\\ [` would be read as the row's extra space
    return _LATEX_SPECIAL.sub(lambda match: _LATEX[match.group()], text)


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


def _ratio_texts(ratios: Ratios) -> dict[Coordinates, str]:
    return {
        pair.at: "" if np.isnan(value) else f"{value:.2f}" + MIXED * pair.is_mixed
        for pair, value in zip(ratios.pairs, ratios.ratio, strict=True)
    }


def _difference_texts(differences: Differences) -> dict[Coordinates, str]:
    return {
        pair.at: _difference_text(pair, differences, index)
        for index, pair in enumerate(differences.pairs)
    }


def _difference_text(pair: Pair, differences: Differences, index: int) -> str:
    s = differences.summary
    if s.n[index] == 0:
        return ""
    mean, low, high = (
        _signed(float(values[index]), pair.of.column) for values in (s.mean, s.ci_low, s.ci_high)
    )
    text = f"{mean} [{low}, {high}]" if s.n[index] > 1 else mean
    if s.n[index] != min(pair.of.num_planned, pair.to.num_planned):
        text += f" (n={s.n[index]})"
    return text + MIXED * pair.is_mixed


def _signed(value: float, column: str) -> str:
    text = format_score(abs(value), column)
    sign = "" if float(text) == 0 else "−" if value < 0 else "+"
    return sign + text


def _grid(table: Table, texts: dict[Coordinates, str], caption: str) -> Grid:
    """Lines and columns in the plan's order; a contrast's line follows those it compares."""
    split = len(table.item.rows)
    row_ranks, column_ranks = table.ranks[:split], table.ranks[split:]
    rows = _sorted({at[:split] for at in texts}, row_ranks)
    columns = _sorted({at[split:] for at in texts}, column_ranks)
    header = [field_label(name) for name in table.item.rows]
    header += [_heading(table.item.columns, column) or _only_heading(table) for column in columns]
    body = [
        [_heading((name,), (value,)) for name, value in zip(table.item.rows, row, strict=True)]
        + [texts.get(row + column, "") for column in columns]
        for row in rows
    ]
    return Grid(caption=caption, header=header, body=body, num_keys=split)


def _sorted(keys: set[Coordinates], ranks: Sequence[dict[Key, int]]) -> list[Coordinates]:
    def order(key: Coordinates) -> tuple[int, ...]:
        return tuple(rank.get(value, len(rank)) for rank, value in zip(ranks, key, strict=True))

    return sorted(keys, key=order)


def _heading(fields: Sequence[str], values: Coordinates) -> str:
    return ", ".join(value_label(f, v) for f, v in zip(fields, values, strict=True))


def _only_heading(table: Table) -> str:
    """Heading of the numbers of a table without column fields."""
    return "Value" if table.item.metrics else axis_label(table.item.metric)


def long_columns(table: Table) -> list[str]:
    """Names of the long form, in order."""
    fields = dict.fromkeys((*table.item.spanning, "step", "metric", "column"))
    return ["kind", "contrast", *fields, *_NUM_STATISTICS, "teacher_digests"]


def long_form(table: Table) -> list[dict[str, Any]]:
    """One record a number: `kind` (cell, ratio, difference), the spanning fields (null for the one
    that `contrast` replaces), step, metric, statistics, `n_planned`, `teacher_digests`."""
    return [*_cell_records(table), *_ratio_records(table), *_difference_records(table)]


def _cell_records(table: Table) -> Iterator[dict[str, Any]]:
    s = table.summary
    for index, cell in enumerate(table.cells):
        numbers = {
            "mean": s.mean[index],
            "std": s.std[index],
            "n": int(s.n[index]),
            "n_planned": cell.num_planned,
            "ci_low": s.ci_low[index],
            "ci_high": s.ci_high[index],
        }
        yield _record(table, "cell", cell.coordinates, "", cell, cell.digests, numbers)


def _ratio_records(table: Table) -> Iterator[dict[str, Any]]:
    if table.ratios is None:
        return
    for pair, ratio in zip(table.ratios.pairs, table.ratios.ratio, strict=True):
        numbers = {
            "mean": ratio,
            "n": min(len(pair.of.scores), len(pair.to.scores)),
            "n_planned": min(pair.of.num_planned, pair.to.num_planned),
        }
        digests = pair.of.digests | pair.to.digests
        yield _record(table, "ratio", pair.at, table.ratios.label, pair.of, digests, numbers)


def _difference_records(table: Table) -> Iterator[dict[str, Any]]:
    if table.differences is None:
        return
    s = table.differences.summary
    for index, pair in enumerate(table.differences.pairs):
        numbers = {
            "mean": s.mean[index],
            "std": s.std[index],
            "n": int(s.n[index]),
            "n_planned": min(pair.of.num_planned, pair.to.num_planned),
            "ci_low": s.ci_low[index],
            "ci_high": s.ci_high[index],
            "p_value": s.p_value[index],
        }
        label, digests = table.differences.label, pair.of.digests | pair.to.digests
        yield _record(table, "difference", pair.at, label, pair.of, digests, numbers)


def _record(
    table: Table,
    kind: str,
    at: Coordinates,
    contrast: str,
    cell: Cell,
    digests: set[str],
    numbers: dict[str, Any],
) -> dict[str, Any]:
    fields = {
        name: None if contrast and value == contrast else value
        for name, value in zip(table.item.spanning, at, strict=True)
    }
    fields |= {"step": cell.step, "metric": cell.metric}
    statistics = {name: _finite(numbers.get(name)) for name in _NUM_STATISTICS}
    return (
        {"kind": kind, "contrast": contrast or None}
        | fields
        | {"column": cell.column}
        | statistics
        | {"teacher_digests": len(digests)}
    )


def _finite(value: Any) -> Any:
    return None if value is None or np.isnan(value) else value


def csv_text(records: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Records as CSV; None is empty, floats have ten significant digits, lines end in \\n."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_csv_value(record.get(name)) for name in names] for record in records)
    return out.getvalue()


def _csv_value(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def parquet_bytes(records: Sequence[dict[str, Any]], names: Sequence[str]) -> bytes:
    """Records as Parquet. Statistics are float64, counts and steps int64; a field is float64 when
    all its values are numbers, else string."""
    arrays = [_column(name, [record.get(name) for record in records]) for name in names]
    out = io.BytesIO()
    pq.write_table(pa.table(arrays, names=list(names)), out, compression="zstd", store_schema=False)
    return out.getvalue()


def _column(name: str, values: list[Any]) -> pa.Array:
    if name in _INTEGERS:
        return pa.array(values, pa.int64())
    known = [value for value in values if value is not None]
    if name in _NUM_STATISTICS or (known and all(isinstance(value, float) for value in known)):
        return pa.array(values, pa.float64())
    texts = [None if value is None else _csv_value(value) for value in values]
    return pa.array(texts, pa.string())
