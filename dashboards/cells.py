"""From points to cells: which points belong to an item, and which numbers to a cell.

A cell's coordinates are the values of its item's spanning fields. Its scores are one a seed. Two
points of one seed in one cell would average over settings that the item does not show; that is an
error of the sweep file and is refused, never averaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from dashboards.errors import ReportError
from dashboards.labels import Key, as_key
from dashboards.layout import PSEUDO_FIELDS, FigureItem, TableItem
from dashboards.results import Plan, Point, Results

__all__ = [
    "Cell",
    "build_cells",
    "coordinates",
    "item_points",
    "refuse_ambiguous",
    "scores_matrix",
    "value_order",
    "values_here",
]


@dataclass
class Cell:
    """One number of a table.

    coordinates: values of the spanning fields, in their order. step: where the metric is read (in a
    pilot the step of the full sweep that the runs' own stands for). metric: the label shown;
    column: its column in metrics.parquet. settings: of one of its points. scores: by seed, what
    there is; runs: the runs behind them. planned: seeds that the plan asks. digests: of the teacher
    snapshots behind the scores.
    """

    coordinates: tuple[Key, ...]
    step: int
    metric: str
    column: str
    settings: Mapping[str, JsonValue] = field(default_factory=dict)
    planned: set[int] = field(default_factory=set)
    runs: dict[int, str] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    digests: set[str] = field(default_factory=set)

    @property
    def num_planned(self) -> int:
        """How many seeds the plan asks."""
        return len(self.planned)


def item_points(plan: Plan, item: TableItem | FigureItem) -> list[Point]:
    """Points that `item` is about, in the plan's order."""
    return [point for point in plan.points if item.accepts(point.settings)]


def build_cells(results: Results, item: TableItem) -> dict[tuple[Key, ...], Cell]:
    """Cells by coordinates, in no particular order; planned cells without a score are among them.

    Raises ReportError when a cell mixes settings or steps that the item does not show.
    """
    points = item_points(results.plan, item)
    refuse_ambiguous(item, points)
    scores = _Scores(results, points, item)
    cells: dict[tuple[Key, ...], Cell] = {}
    for point in points:
        digest = results.record(point).teacher_digest
        for label, column in item.labelled_metrics.items():
            for step in item.steps or (point.horizon,):
                at = coordinates(item.spanning, point, label, step)
                if at not in cells:
                    cells[at] = Cell(
                        coordinates=at,
                        step=step,
                        metric=label,
                        column=column,
                        settings=point.settings,
                    )
                cell = cells[at]
                if cell.step != step:
                    raise _mixed_steps(item, cell.step, step)
                actual = results.plan.actual_step(step) if item.steps else point.actual_horizon
                score = scores.at(point.run, actual, column)
                if point.run is not None:
                    cell.planned.add(point.seed)
                if score is not None and point.run is not None:
                    cell.scores[point.seed] = score
                    cell.runs[point.seed] = point.run
                    cell.digests |= {digest} if digest else set()
    return cells


def coordinates(fields: Sequence[str], point: Point, metric: str, step: int) -> tuple[Key, ...]:
    """Values of `fields` for a point, the pseudo-fields included."""
    pseudo: dict[str, Key] = {"metric": metric, "step": float(step)}
    return tuple(pseudo[f] if f in pseudo else as_key(point.settings.get(f)) for f in fields)


def refuse_ambiguous(item: TableItem | FigureItem, points: Iterable[Point]) -> None:
    """Raises ReportError when two points of one seed differ in a field `item` does not show. Two
    points that one run answers (they differ in how far they go) are no such pair."""
    seen: dict[tuple[object, ...], Point] = {}
    for point in points:
        # the horizon tells points apart only where it is the step shown
        step = 0 if item.steps or getattr(item, "x", None) == "step" else point.horizon
        at = (*coordinates(item.spanning, point, "", step), point.seed)
        first = seen.setdefault(at, point)
        names = sorted(first.settings.keys() | point.settings.keys())
        hidden = [f for f in names if first.settings.get(f) != point.settings.get(f)]
        if first.run != point.run:
            raise ReportError(
                f"{item.name}: one cell would mix points that differ in {', '.join(hidden) or '—'}",
                "name the field among the item's fields, or fix its value in `where`",
            )


def scores_matrix(cells: Sequence[Cell]) -> NDArray[np.float64]:
    """(num_seeds, num_cells), seeds ascending, NaN where a seed is missing."""
    seeds = sorted({seed for cell in cells for seed in cell.scores})
    rows = [[cell.scores.get(seed, np.nan) for cell in cells] for seed in seeds]
    return np.array(rows, dtype=np.float64).reshape(len(seeds), len(cells))


def value_order(plan: Plan, item: TableItem | FigureItem, name: str) -> dict[Key, int]:
    """Rank of each value of field `name`: those that `where` lists in its order, so that a table
    may have the paper's; then none, numbers ascending, names as the plan lists them."""
    if name == "metric" and isinstance(item, TableItem):
        return {label: rank for rank, label in enumerate(item.labelled_metrics)}
    wanted = item.where.get(name)
    first = [as_key(value) for value in wanted] if isinstance(wanted, list) else []
    if name == "step":
        present: list[Key] = [float(step) for step in item.steps]
        present += [float(point.horizon) for point in plan.points]
    else:
        present = [as_key(point.settings.get(name)) for point in plan.points]
    values = dict.fromkeys(present)
    none = [value for value in values if value is None]
    numbers = sorted(value for value in values if isinstance(value, float))
    names = [value for value in values if value is not None and not isinstance(value, float)]
    ordered = dict.fromkeys([*first, *none, *numbers, *names])
    return {value: rank for rank, value in enumerate(ordered)}


def values_here(plan: Plan, item: TableItem | FigureItem) -> dict[str, dict[Key, tuple[Key, ...]]]:
    """What a pilot's runs have in place of the values that its layout keeps: by field and value
    the actual values, none where no run stands for it. Values that are what they say, and sweeps at
    full scale, have no entry."""
    if plan.scale is None:
        return {}
    found: dict[str, dict[Key, tuple[Key, ...]]] = {}
    points = item_points(plan, item)
    for name in item.spanning:
        if name in PSEUDO_FIELDS:
            continue
        by_value: dict[Key, dict[Key, None]] = {}
        for point in points:
            actual = by_value.setdefault(as_key(point.settings.get(name)), {})
            if point.run is not None:
                value = point.actual.get(name, point.settings.get(name))
                actual[as_key(value)] = None
        found[name] = {value: tuple(actual) for value, actual in by_value.items()}
    found["step"] = {float(step): (float(plan.actual_step(step)),) for step in item.steps}
    for point in points if not item.steps else ():
        known = found["step"].get(float(point.horizon), ())
        if point.actual_horizon not in known:
            found["step"][float(point.horizon)] = (*known, float(point.actual_horizon))
    return {
        name: {value: actual for value, actual in values.items() if actual != (value,)}
        for name, values in found.items()
    }


class _Scores:
    """The evaluations an item needs, by (run, step)."""

    def __init__(self, results: Results, points: list[Point], item: TableItem) -> None:
        steps = {results.plan.actual_step(step) for step in item.steps}
        steps = steps or {point.actual_horizon for point in points}
        rows = results.evaluations[results.evaluations["step"].isin(steps)]
        keys = zip(rows["run"].astype(str), rows["step"], strict=True)
        self._row = {key: index for index, key in enumerate(keys)}
        self._values: dict[str, NDArray[np.float64]] = {
            c: rows[c].to_numpy() for c in set(item.labelled_metrics.values())
        }

    def at(self, run: str | None, step: int, column: str) -> float | None:
        row = self._row.get((run or "", step))
        value = np.nan if row is None else self._values[column][row]
        return None if np.isnan(value) else float(value)


def _mixed_steps(item: TableItem, one: int, other: int) -> ReportError:
    return ReportError(
        f"{item.name}: one cell would mix the horizons {one} and {other}",
        "give `steps`, or put `step` or the field they differ by among rows or columns",
    )
