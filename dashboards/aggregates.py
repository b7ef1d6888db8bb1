"""Curves over seeds, one group of points a setting: what the tracking server logs as one run."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import JsonValue

from dashboards.layout import METRICS
from dashboards.results import Point, Results
from dashboards.statistics import summarise

__all__ = ["MAX_STEPS", "CellGroup", "SeriesPoint", "aggregate"]

MAX_STEPS = 200
"""Steps kept of a series: tracking servers slow down with points, not with runs."""

SeriesPoint = tuple[int, float, float, int, float, float]
"""(step, mean, std, n, ci_low, ci_high); std and interval are NaN below two seeds."""


@dataclass(frozen=True, kw_only=True)
class CellGroup:
    """The seeds of one setting.

    settings: all fields but the seed, as the runs have them. run_names: its planned runs, sorted.
    num_planned: seeds asked. digests: teacher snapshots behind the scores, sorted; more than one is
    to be shown. series: by metric, ascending steps, the last among them; metrics without a value
    are left out.
    """

    settings: dict[str, JsonValue]
    run_names: tuple[str, ...]
    num_planned: int
    digests: tuple[str, ...] = ()
    series: dict[str, list[SeriesPoint]] = field(default_factory=dict)


def aggregate(results: Results) -> list[CellGroup]:
    """Groups in the plan's order. A step counts the seeds that have it within their horizon."""
    groups: dict[str, list[Point]] = defaultdict(list)
    for point in results.plan.points:
        if point.run is None:
            continue
        groups[json.dumps(_settings(point), sort_keys=True)].append(point)
    measured = _Measured(results.evaluations)
    return [_group(results, points, measured) for points in groups.values()]


def _settings(point: Point) -> dict[str, JsonValue]:
    actual = point.settings | point.actual
    return {name: value for name, value in actual.items() if name not in ("seed", "horizon")}


def _group(results: Results, points: list[Point], measured: _Measured) -> CellGroup:
    names = sorted({point.run for point in points if point.run is not None})
    digests = {results.runs[name].teacher_digest for name in names} - {None}
    return CellGroup(
        settings=_settings(points[0]),
        run_names=tuple(names),
        num_planned=len({point.seed for point in points}),
        digests=tuple(sorted(str(digest) for digest in digests)),
        series=_series(points, measured),
    )


class _Measured:
    """Evaluations as arrays: steps (num_rows,), values (num_rows, num_metrics); thousands of
    groups are picked out of them, and a data frame a group would cost ten times as much."""

    def __init__(self, evaluations: pd.DataFrame) -> None:
        self.steps = evaluations["step"].to_numpy()
        self.values = evaluations[list(METRICS)].to_numpy()
        self._rows = _rows_by_run(evaluations)

    def rows(self, point: Point) -> NDArray[np.intp]:
        """Positions of the point's evaluations, up to its horizon."""
        rows = self._rows.get(point.run or "", np.empty(0, dtype=np.intp))
        return rows[self.steps[rows] <= point.actual_horizon]


def _series(points: list[Point], measured: _Measured) -> dict[str, list[SeriesPoint]]:
    picked = [measured.rows(point) for point in points]
    rows = np.concatenate(picked)
    seeds = np.repeat([point.seed for point in points], [len(r) for r in picked])
    steps = _thinned(np.unique(measured.steps[rows]))
    kept = np.isin(measured.steps[rows], steps)
    rows, seeds = rows[kept], seeds[kept]
    names, seed_index = np.unique(seeds, return_inverse=True)
    step_index = np.searchsorted(steps, measured.steps[rows])
    scores = np.full((len(names), len(steps), len(METRICS)), np.nan)
    scores[seed_index, step_index] = measured.values[rows]
    return _summaries(steps, scores)


def _summaries(
    steps: NDArray[np.int64], scores: NDArray[np.float64]
) -> dict[str, list[SeriesPoint]]:
    """scores (num_seeds, num_steps, num_metrics), NaN where a seed has no such step."""
    shape = scores.shape[1:]
    s = summarise(scores.reshape(len(scores), shape[0] * shape[1]))
    columns = [a.reshape(shape) for a in (s.mean, s.std, s.n, s.ci_low, s.ci_high)]
    series = {}
    for index, metric in enumerate(METRICS):
        lists = [steps.tolist(), *(column[:, index].tolist() for column in columns)]
        points: list[SeriesPoint] = [row for row in zip(*lists, strict=True) if row[3]]
        series[str(metric)] = points
    return {metric: points for metric, points in series.items() if points}


def _rows_by_run(evaluations: pd.DataFrame) -> dict[str, NDArray[np.intp]]:
    """Row positions of each run, by its name."""
    codes = evaluations["run"].cat.codes.to_numpy()
    names = evaluations["run"].cat.categories
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(1, len(names)))
    return dict(zip(names, np.split(order, bounds), strict=True)) if len(names) else {}


def _thinned(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most MAX_STEPS of sorted `steps`, evenly spread, first and last kept."""
    if len(steps) <= MAX_STEPS:
        return steps
    kept = np.linspace(0, len(steps) - 1, MAX_STEPS).round().astype(np.intp)
    return np.asarray(steps[kept], dtype=np.int64)
