"""The numbers of a figure: one tidy frame of means over seeds, by series and position on x."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dashboards.cells import coordinates, item_points, refuse_ambiguous, value_order
from dashboards.labels import Key, axis_label, value_label
from dashboards.layout import FigureItem
from dashboards.results import Results
from dashboards.statistics import summarise

__all__ = ["Axis", "FigureData", "Series", "figure_data"]


@dataclass(frozen=True)
class Series:
    """One line of a figure, by the values of the item's fields (None too where it names none)."""

    panel: Key
    hue: Key
    style: Key


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Where values of the x field stand. positions: by value; NaN for None, which has no place on
    the axis. Names among numbers (`ipc: full`) stand at the right end; names alone are 0, 1, …
    categorical: whether there are only names."""

    label: str
    positions: dict[Key, float]
    ticks: tuple[tuple[float, str], ...]
    categorical: bool


@dataclass(frozen=True, kw_only=True)
class FigureData:
    """A figure's numbers.

    means: one row a (series, x) with a score: `series` (index into `series`), `x` (axis position,
        NaN where the field does not apply), `mean`, `std`, `n`, `ci_low`, `ci_high`; sorted.
    ranks: order of the values of panel, hue and style. planned: (series, x) pairs that the plan
        asks when x is a field, series when x is the step.
    """

    item: FigureItem
    series: tuple[Series, ...]
    means: pd.DataFrame
    axis: Axis
    ranks: dict[str, dict[Key, int]]
    planned: int

    @property
    def filled(self) -> int:
        """How many of `planned` have a value."""
        columns = ["series"] if self.item.x == "step" else ["series", "x"]
        return len(self.means[columns].drop_duplicates())

    @property
    def panels(self) -> list[Key]:
        """Panel values in order. None is no panel of its own when there are others: what has no
        value of the panel's field (strategy A has no teacher) stands in every panel."""
        values = sorted({s.panel for s in self.series}, key=self.rank("panel"))
        return [value for value in values if value is not None] or [None]

    def of_panel(self, panel: Key) -> list[int]:
        """Indices of the series shown in a panel."""
        return [i for i, series in enumerate(self.series) if series.panel in (panel, None)]

    def rank(self, role: str) -> Callable[[Key], int]:
        """Sort key for values of `panel`, `hue` or `style`."""
        ranks = self.ranks[role]
        return lambda value: ranks.get(value, len(ranks))


def figure_data(results: Results, item: FigureItem) -> FigureData:
    """Raises ReportError when a position would mix settings that the item does not show."""
    refuse_ambiguous(item, item_points(results.plan, item))
    ranks: dict[str, dict[Key, int]] = {
        role: value_order(results.plan, item, name) if (name := getattr(item, role)) else {None: 0}
        for role in ("panel", "hue", "style")
    }
    asked = _asked(results, item)
    order = sorted(
        dict.fromkeys(asked["series"]),
        key=lambda s: tuple(ranks[role].get(getattr(s, role), 0) for role in ranks),
    )
    axis = _axis(results, item, asked)
    code = {series: index for index, series in enumerate(order)}
    asked = asked.assign(
        series=asked["series"].map(code).astype("int64"),
        x=asked["x"].map(axis.positions).astype("float64") if item.x != "step" else np.nan,
    )
    columns = ["series"] if item.x == "step" else ["series", "x"]
    return FigureData(
        item=item,
        series=tuple(order),
        means=_means(_scores(results, item, asked)),
        axis=axis,
        ranks=ranks,
        planned=len(asked[columns].drop_duplicates()),
    )


def _asked(results: Results, item: FigureItem) -> pd.DataFrame:
    """What the plan asks: `series`, `x` (value), `run`, `seed`, `step` (a curve's last)."""
    rows = []
    for point in item_points(results.plan, item):
        for step in item.steps or (point.horizon,):
            roles = {
                role: coordinates((name,), point, "", step)[0] if name else None
                for role, name in (("panel", item.panel), ("hue", item.hue), ("style", item.style))
            }
            x = None if item.x == "step" else coordinates((item.x,), point, "", step)[0]
            rows.append((Series(**roles), x, point.run, point.seed, step))
    frame = pd.DataFrame(rows, columns=["series", "x", "run", "seed", "step"], dtype=object)
    return frame.astype({"seed": "int64", "step": "int64"})


def _axis(results: Results, item: FigureItem, asked: pd.DataFrame) -> Axis:
    label = axis_label(item.x)
    if item.x == "step":
        return Axis(label=label, positions={}, ticks=(), categorical=False)
    rank = value_order(results.plan, item, item.x)
    values = sorted(set(asked["x"]), key=lambda value: rank[value])
    numbers = [value for value in values if isinstance(value, float)]
    names = [value for value in values if value is not None and not isinstance(value, float)]
    positions: dict[Key, float] = {number: number for number in numbers}
    positions |= dict(zip(names, _right_end(numbers, len(names), item.scale), strict=True))
    ticks = tuple((position, value_label(item.x, value)) for value, position in positions.items())
    return Axis(
        label=label, positions=positions | {None: np.nan}, ticks=ticks, categorical=not numbers
    )


def _right_end(numbers: list[float], num_names: int, scale: str) -> list[float]:
    """Positions for names after ascending `numbers`, one mean spacing of the scale apart."""
    if not numbers:
        return [float(i) for i in range(num_names)]
    gaps = max(len(numbers) - 1, 1)
    if scale == "log" and numbers[0] > 0:
        factor = max((numbers[-1] / numbers[0]) ** (1 / gaps), 2.0)
        return [numbers[-1] * factor ** (i + 1) for i in range(num_names)]
    step = (numbers[-1] - numbers[0]) / gaps or max(abs(numbers[-1]), 1.0)
    return [numbers[-1] + step * (i + 1) for i in range(num_names)]


def _scores(results: Results, item: FigureItem, asked: pd.DataFrame) -> pd.DataFrame:
    """One row a score: `series`, `x`, `seed`, `value`."""
    runs = results.evaluations["run"].dtype
    asked = asked.assign(run=asked["run"].astype(runs)).dropna(subset="run")
    measured = results.evaluations[["run", "step", item.metric]].rename(
        columns={item.metric: "value"}
    )
    if item.x == "step":
        joined = asked.rename(columns={"step": "horizon"}).merge(measured, on="run")
        joined = joined[joined["step"] <= joined["horizon"]]
        joined = joined.assign(x=joined["step"].astype("float64"))
    else:
        joined = asked.merge(measured, on=["run", "step"])
    scores = joined[["series", "x", "seed", "value"]].dropna(subset="value")
    # two points that one run answers give the same score twice
    return scores.drop_duplicates(["series", "x", "seed"])


def _means(scores: pd.DataFrame) -> pd.DataFrame:
    # pandas drops NaN from pivots' keys, and NaN is where "no teacher" stands: infinity, and back
    keyed = scores.assign(x=scores["x"].fillna(np.inf))
    wide = keyed.pivot(index="seed", columns=["series", "x"], values="value").sort_index(axis=1)
    summary = summarise(wide.to_numpy(dtype=np.float64))
    frame = wide.columns.to_frame(index=False).astype({"series": "int64", "x": "float64"})
    frame = frame.assign(x=frame["x"].replace(np.inf, np.nan))
    return frame.assign(**vars(summary))
