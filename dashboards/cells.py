"""From points to cells: which points belong to an item, and which numbers to a cell.

A cell's coordinates are the values of its item's spanning fields. Its scores are one a seed. Two
points of one seed in one cell would average over settings that the item does not show; that is an
error of the sweep file and is refused, never averaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dashboards.errors import ReportError
from dashboards.labels import Key, as_key
from dashboards.layout import FigureItem, TableItem
from dashboards.results import Plan, Point, Results

__all__ = [
    "Cell",
    "build_cells",
    "check_items",
    "coordinates",
    "item_points",
    "refuse_ambiguous",
    "scores_matrix",
    "value_order",
]


@dataclass
class Cell:
    """One number of a table.

    coordinates: values of the spanning fields, in their order. step: where the metric is read.
    metric: the label shown; column: its column in metrics.parquet. scores: by seed, what there is.
    planned: seeds that the plan asks. digests: of the teacher snapshots behind the scores.
    """

    coordinates: tuple[Key, ...]
    step: int
    metric: str
    column: str
    planned: set[int] = field(default_factory=set)
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
        digest = results.runs[point.run].teacher_digest
        for label, column in item.labelled_metrics.items():
            for step in item.steps or (point.horizon,):
                at = coordinates(item.spanning, point, label, step)
                cell = cells.setdefault(
                    at, Cell(coordinates=at, step=step, metric=label, column=column)
                )
                if cell.step != step:
                    raise _mixed_steps(item, cell.step, step)
                cell.planned.add(point.seed)
                score = scores.at(point.run, step, column)
                if score is not None:
                    cell.scores[point.seed] = score
                    cell.digests |= {digest} if digest else set()
    return cells


def check_items(plan: Plan) -> list[str]:
    """What is wrong with the plan's report items, before anything has run: one line an item that
    selects no point, or whose cells would mix settings."""
    problems = []
    for item in plan.report:
        points = item_points(plan, item)
        try:
            refuse_ambiguous(item, points)
        except ReportError as error:
            problems.append(str(error))
        if not points:
            problems.append(f"{item.name}: no point of the sweep fits its `where`")
    return problems


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
    """Rank of each value of field `name`: none, numbers ascending, then names as `where` or else
    the plan lists them (so that `none, color, crop, …` keeps the sweep's order)."""
    if name == "metric" and isinstance(item, TableItem):
        return {label: rank for rank, label in enumerate(item.labelled_metrics)}
    wanted = item.where.get(name)
    listed = [as_key(value) for value in wanted] if isinstance(wanted, list) else []
    if name == "step":
        listed = [float(s) for s in item.steps]
        listed += [float(p.horizon) for p in plan.points]
    else:
        listed += [as_key(point.settings.get(name)) for point in plan.points]
    values = list(dict.fromkeys(listed))
    numbers = sorted(v for v in values if isinstance(v, float))
    names = [v for v in values if v is not None and not isinstance(v, float)]
    ordered = [v for v in values if v is None] + list(numbers) + names
    return {value: rank for rank, value in enumerate(ordered)}


class _Scores:
    """The evaluations an item needs, by (run, step)."""

    def __init__(self, results: Results, points: list[Point], item: TableItem) -> None:
        steps = set(item.steps) or {point.horizon for point in points}
        rows = results.evaluations[results.evaluations["step"].isin(steps)]
        keys = zip(rows["run"].astype(str), rows["step"], strict=True)
        self._row = {key: index for index, key in enumerate(keys)}
        self._values: dict[str, NDArray[np.float64]] = {
            c: rows[c].to_numpy() for c in set(item.labelled_metrics.values())
        }

    def at(self, run: str, step: int, column: str) -> float | None:
        row = self._row.get((run, step))
        value = np.nan if row is None else self._values[column][row]
        return None if np.isnan(value) else float(value)


def _mixed_steps(item: TableItem, one: int, other: int) -> ReportError:
    return ReportError(
        f"{item.name}: one cell would mix the horizons {one} and {other}",
        "give `steps`, or put `step` or the field they differ by among rows or columns",
    )
