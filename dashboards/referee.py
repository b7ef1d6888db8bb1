"""What a referee asks of students under soft targets: where each stands beside its own teacher, and
whether C is above B seed by seed.

Every number is that of a point's last step, of complete runs, each run once. A student that passes
its teacher in the projection head g, which only imitates it, or spreads that are much smaller than
the paper's, are what to look at first.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dashboards.labels import as_key, field_label, value_label
from dashboards.raw import run_records
from dashboards.results import Results
from dashboards.table_text import pipe_table

__all__ = ["TEACHERS_NOTE", "TeacherTable", "teacher_rows", "teacher_table", "teachers_markdown"]

_SPLIT = ("dataset", "backbone.name", "ipc", "loss", "revision.eta", "selection.method")
"""Fields that get a column where they vary; over all others a row takes the mean."""

_OF_C = ("strategy", "target_view")
"""In what a C differs from the B of its setting."""

_TEACHER = "teacher.accuracy"
_METRICS = {"g_B": ("B", "top1_g"), "h_B": ("B", "top1_h"), "h_C": ("C", "top1_h")}


@dataclass(frozen=True, kw_only=True)
class TeacherRow:
    """Students of one kind of teacher. at: values of the columns that split, as text. preset: the
    teacher's, in percent; teachers: how many snapshots; accuracy: their mean Top-1 on the whole
    test set. runs: under B and C.

    gaps: student less its own teacher, percentage points, mean over runs: `g_B`, `h_B`, `h_C`; NaN
    where there are none. spreads: standard deviation over seeds of h, `B` and `C`, pooled over
    settings (root of the mean variance). differences: C − B of h, by setting and seed, in order."""

    at: tuple[str, ...]
    preset: float
    teachers: int
    accuracy: float
    runs: int
    gaps: dict[str, float]
    spreads: dict[str, float]
    differences: tuple[float, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """As a table shows them, under `_heads`."""
        up = sum(one > 0 for one in self.differences)
        down = sum(one < 0 for one in self.differences)
        teachers = f" ({self.teachers} teachers)" if self.teachers > 1 else ""
        return (
            *self.at,
            f"{self.preset:g}%",
            f"{self.accuracy:.2f}{teachers}",
            str(self.runs),
            *(_signed(self.gaps[name]) for name in _METRICS),
            _signed(float(np.mean(self.differences)) if self.differences else np.nan),
            f"{up} / {down}" if self.differences else "",
            *("" if np.isnan(s) else f"{s:.2f}" for s in self.spreads.values()),
        )


@dataclass(frozen=True, kw_only=True)
class TeacherTable:
    """As readers see it. num_keys: columns that name a row, the first ones."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_keys: int


def teacher_table(results: Results) -> TeacherTable | None:
    """Without the columns that have nothing to say (of C, in a sweep of B alone); None without
    rows."""
    rows = [row.cells for row in teacher_rows(results)]
    if not rows:
        return None
    said = [any(column) for column in zip(*rows, strict=True)]
    return TeacherTable(
        heads=tuple(itertools.compress(_heads(results), said)),
        rows=[tuple(itertools.compress(row, said)) for row in rows],
        num_keys=len(_splits(results)) + 1,
    )


def _heads(results: Results) -> tuple[str, ...]:
    """Heads of the columns of `TeacherRow.cells`."""
    return (
        *(field_label(name) for name in _splits(results)),
        "Teacher",
        "its Top-1",
        "Runs",
        "g − teacher, B",
        "h − teacher, B",
        "h − teacher, C",
        "C − B",
        "seeds above / below",
        "std over seeds, B",
        "std over seeds, C",
    )


def teacher_rows(results: Results) -> list[TeacherRow]:
    """A row for each teacher accuracy, in rising order; none for a sweep without students of B and
    C, or before the first of them is complete."""
    splits, frame = _splits(results), _students(results)
    if frame.empty:
        return []
    groups = frame.groupby([*splits, _TEACHER], sort=False, dropna=False)
    found = [([None if v != v else v for v in at], own) for at, own in groups]  # NaN: no value
    found.sort(key=lambda group: _order(group[0]))
    return [_row(at[:-1], float(str(at[-1])), splits, own) for at, own in found]


def teachers_markdown(shown: TeacherTable | None) -> str:
    """A heading, the table and what it shows; empty without rows."""
    if shown is None:
        return ""
    table = pipe_table(shown.heads, shown.rows, num_keys=shown.num_keys)
    return f"## Students beside their teachers\n\n{table}\n\n{TEACHERS_NOTE}"


TEACHERS_NOTE = (
    "Top-1 at the last step, percentage points; differences of each run from its own teacher's "
    "accuracy on the whole test set, then the mean, over whatever else varies. C − B: of h, the "
    "same setting and seed."
)


def _order(at: Sequence[Any]) -> list[tuple[bool, Any]]:
    """None, then numbers in rising order, then names."""
    return [(isinstance(value, str), -np.inf if value is None else value) for value in at]


def _splits(results: Results) -> tuple[str, ...]:
    return tuple(name for name in _SPLIT if name in results.plan.fields)


def _students(results: Results) -> pd.DataFrame:
    """Complete students of B and C whose teacher is known, each where it is asked to go furthest:
    the columns that split, teacher's preset, digest and accuracy, strategy, seed, `setting` (all
    fields but the seed), `alike` (equal for a C and the B it is compared with), g and h."""
    accuracy = {snapshot.digest: snapshot.accuracy for snapshot in results.snapshots}
    rows: dict[str, dict[str, Any]] = {}
    pairs = zip(results.plan.points, run_records(results), strict=True)
    for point, record in sorted(pairs, key=lambda pair: pair[0].actual_horizon):
        digest = record["teacher_digest"]
        if record["strategy"] not in ("B", "C") or digest not in accuracy:
            continue
        if point.run is None or not results.is_complete(point) or record["top1_h"] is None:
            continue
        settings = point.settings | point.actual | {"seed": None}
        alike = settings | dict.fromkeys(_OF_C)
        has_one_head = settings.get("loss") == "kd"  # h alone; its Top-1 stands in both columns
        rows[point.run] = {
            **{name: record.get(name, settings.get(name)) for name in _splits(results)},
            _TEACHER: float(str(settings[_TEACHER])),
            "digest": digest,
            "accuracy": accuracy[digest],
            "strategy": record["strategy"],
            "seed": point.seed,
            "setting": json.dumps(settings, sort_keys=True),
            "alike": json.dumps(alike, sort_keys=True),
            "top1_g": np.nan if record["top1_g"] is None or has_one_head else record["top1_g"],
            "top1_h": record["top1_h"],
        }
    return pd.DataFrame(list(rows.values()))


def _row(
    at: Sequence[Any], preset: float, splits: Sequence[str], frame: pd.DataFrame
) -> TeacherRow:
    gaps = {}
    for name, (strategy, metric) in _METRICS.items():
        own = frame[frame["strategy"] == strategy]
        gaps[name] = float((own[metric] - own["accuracy"]).mean()) if len(own) else np.nan
    b, c = (frame[frame["strategy"] == strategy] for strategy in ("B", "C"))
    pairs = c.merge(b, on=["alike", "seed"], suffixes=("_C", "_B")).sort_values(["alike", "seed"])
    known = frame.drop_duplicates("digest")
    return TeacherRow(
        at=tuple(value_label(name, as_key(v)) for name, v in zip(splits, at, strict=True)),
        preset=preset,
        teachers=len(known),
        accuracy=float(known["accuracy"].mean()),
        runs=len(frame),
        gaps=gaps,
        spreads={"B": _pooled(b), "C": _pooled(c)},
        differences=tuple((pairs["top1_h_C"] - pairs["top1_h_B"]).tolist()),
    )


def _pooled(frame: pd.DataFrame) -> float:
    """NaN where no setting has two seeds."""
    variances = frame.groupby(["setting", "digest"])["top1_h"].var(ddof=1).dropna()
    return float(np.sqrt(variances.mean())) if len(variances) else np.nan


def _signed(value: float) -> str:
    return "" if np.isnan(value) else f"{value:+.2f}".replace("-", "−")
