"""Tables as data: one record a number, as CSV and Parquet.

Equal measurements give equal bytes: no time, path, host or library object reaches these files, and
floats in CSV have ten significant digits.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dashboards.cells import Cell
from dashboards.comparisons import Comparison
from dashboards.tables import Coordinates, Table

__all__ = ["csv_text", "long_columns", "long_form", "parquet_bytes"]

_STATISTICS = ("mean", "std", "n", "n_planned", "ci_low", "ci_high", "p_value")
_PAPER = ("paper", "paper_std", "paper_review", "paper_review_std", "paper_status")
_COMPARED = ("difference", "welch_low", "welch_high", "verdict")
_FLOATS = tuple({*_STATISTICS, *_PAPER, *_COMPARED} - {"paper_status", "verdict"})
_INTEGERS = ("step", "n", "n_planned", "teacher_digests")


def long_columns(table: Table) -> list[str]:
    """Names of the long form, in order; those of the paper's numbers only where it prints some, and
    `here`, the values of a pilot's own runs, only in a pilot."""
    fields = dict.fromkeys((*table.item.spanning, "step", "metric", "column"))
    paper = (*_PAPER, *_COMPARED) if table.item.references else ()
    here = ("here",) if table.scale else ()
    return ["kind", "contrast", *fields, *here, *_STATISTICS, "teacher_digests", *paper]


def long_form(table: Table) -> list[dict[str, Any]]:
    """One record a number: `kind` (cell, ratio, difference), the spanning fields (null for the one
    that `contrast` replaces), step, metric, statistics, `n_planned`, `teacher_digests`; the paper's
    number, ours less it, the Welch interval of that and the verdict."""
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
        } | _paper(table.comparisons[index])
        yield _record(table, "cell", cell.coordinates, "", cell, cell.digests, numbers)


def _ratio_records(table: Table) -> Iterator[dict[str, Any]]:
    if table.ratios is None:
        return
    ratios = table.ratios
    for pair, ratio, comparison in zip(ratios.pairs, ratios.ratio, ratios.comparisons, strict=True):
        numbers = {
            "mean": ratio,
            "n": pair.num_seeds,
            "n_planned": min(pair.of.num_planned, pair.to.num_planned),
        } | _paper(comparison)
        digests = pair.of.digests | pair.to.digests
        yield _record(table, "ratio", pair.at, ratios.label, pair.of, digests, numbers)


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


def _paper(comparison: Comparison | None) -> dict[str, Any]:
    if comparison is None:
        return {}
    reference = comparison.reference
    return {
        "paper": reference.value,
        "paper_std": reference.std,
        "paper_review": reference.review_value,
        "paper_review_std": reference.review_std,
        "paper_status": reference.status,
        "difference": comparison.difference if comparison.verdict else None,
        "welch_low": comparison.low,
        "welch_high": comparison.high,
        "verdict": comparison.verdict,
    }


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
    return (
        {"kind": kind, "contrast": contrast or None}
        | fields
        | {"column": cell.column, "here": _here(table, cell)}
        | {name: _finite(value) for name, value in numbers.items()}
        | {"teacher_digests": len(digests)}
    )


def _here(table: Table, cell: Cell) -> str | None:
    """Canonical JSON of the values that the cell's runs have instead of its coordinates."""
    coordinates = dict(zip(table.item.spanning, cell.coordinates, strict=True))
    coordinates["step"] = float(cell.step)
    actual = {
        name: list(table.here[name][value])
        for name, value in coordinates.items()
        if value in table.here.get(name, {})
    }
    return json.dumps(actual, sort_keys=True, separators=(",", ":")) if actual else None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value


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
    if name in _FLOATS or (known and all(isinstance(value, float) for value in known)):
        return pa.array(values, pa.float64())
    texts = [None if value is None else _csv_value(value) for value in values]
    return pa.array(texts, pa.string())
