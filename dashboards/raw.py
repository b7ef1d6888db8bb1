"""Raw numbers behind a report: a record a point at its horizon, and the teachers' snapshots."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from dashboards.labels import as_key
from dashboards.layout import METRICS
from dashboards.results import Results

__all__ = ["TEACHER_COLUMNS", "run_columns", "run_records", "teacher_records"]

_OWN = ("seed", "horizon")
TEACHER_COLUMNS = ("teacher", "preset", "step", "accuracy", "alpha", "digest", "copy_of", "runs")


def run_columns(results: Results) -> list[str]:
    """Settings that vary, run, seed, horizon, metrics that some run has, teacher's digest."""
    scaled = (name for point in results.plan.points for name in point.actual)
    fields = [n for n in dict.fromkeys((*results.plan.fields, *scaled)) if n not in _OWN]
    metrics = [name for name in METRICS if results.evaluations[name].notna().any()]
    return [*fields, "run", "seed", "horizon", *metrics, "teacher_digest"]


def run_records(results: Results) -> list[dict[str, Any]]:
    """One record a point, in the plan's order, metrics as they stand at its horizon; None where a
    run or the step is missing. Settings and horizon are those of the run, also in a pilot."""
    horizons = {point.actual_horizon for point in results.plan.points}
    rows = results.evaluations[results.evaluations["step"].isin(horizons)]
    keys = zip(rows["run"].astype(str), rows["step"], strict=True)
    index = {key: position for position, key in enumerate(keys)}
    values = rows[list(METRICS)].to_numpy()
    records = []
    for point in results.plan.points:
        row = index.get((point.run or "", point.actual_horizon))
        measured = np.full(len(METRICS), np.nan) if row is None else values[row]
        scores = {
            m: None if np.isnan(v) else float(v) for m, v in zip(METRICS, measured, strict=True)
        }
        actual = point.settings | {n: v for n, v in point.actual.items() if n != "horizon"}
        settings = {name: as_key(value) for name, value in actual.items()}
        digest = results.record(point).teacher_digest if row is not None else None
        own = {"run": point.run, "seed": point.seed, "horizon": point.actual_horizon}
        records.append(settings | own | scores | {"teacher_digest": digest})
    return records


def teacher_records(results: Results) -> list[dict[str, Any]]:
    """One record a snapshot, by teacher and preset; `runs` counts the sweep's runs that used it. A
    digest that runs recorded and no snapshot in the store has comes last, with its count alone."""
    users = Counter(
        digest
        for name in results.plan.run_names
        if (digest := results.runs[name].teacher_digest) is not None
    )
    records = [
        {
            "teacher": s.run,
            "preset": s.preset,
            "step": s.step,
            "accuracy": s.accuracy,
            "alpha": s.alpha,
            "digest": s.digest,
            "copy_of": s.copy_of or None,
            "runs": users.pop(s.digest, 0),
        }
        for s in sorted(results.snapshots)
    ]
    return records + [{"digest": digest, "runs": users[digest]} for digest in sorted(users)]
