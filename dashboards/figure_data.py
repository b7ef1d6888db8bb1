"""The numbers of a figure of lines: one tidy frame of means over seeds, by series and position on
x, with the paper's numbers and fitted power laws beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dashboards.cells import coordinates, item_points, refuse_ambiguous, value_order, values_here
from dashboards.labels import Key, axis_label, here_label
from dashboards.layout import FigureItem, Reference
from dashboards.power_law import PowerLaw, fit_power_law
from dashboards.references import Target, fits, target
from dashboards.results import Plan, Point, Results, Scale
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


MIN_SMOOTHED = 30  # a tenth of fewer points is a line through two of them


@dataclass(frozen=True, kw_only=True)
class FigureData:
    """A figure's numbers.

    means: one row a (series, x) with a score: `series` (index into `series`), `x` (axis position,
        NaN where the field does not apply), `mean`, `std`, `n`, `ci_low`, `ci_high`; sorted.
    paper: one row a printed number: `series`, `x`, `value`, `std` (NaN without a ±), `partial`
        (read off a drawing); sorted.
    fits: power laws by series, of those that have enough means.
    ranks: order of the values of panel, hue and style. planned: (series, x) pairs that the plan
        asks when x is a field, series when x is the step. scale, here: of a pilot, as in `Table`.
    overrides, restriction: as in `Table`. num_mixed: series with a mean over several teacher
        snapshots.
    """

    item: FigureItem
    series: tuple[Series, ...]
    means: pd.DataFrame
    paper: pd.DataFrame
    fits: dict[int, PowerLaw]
    axis: Axis
    ranks: dict[str, dict[Key, int]]
    planned: int
    scale: Scale | None
    overrides: tuple[str, ...]
    restriction: str
    num_mixed: int
    here: dict[str, dict[Key, tuple[Key, ...]]]

    @property
    def title(self) -> str:
        """Heading; the name when the item has none. A pilot says that it is one."""
        title = self.item.title or self.item.name
        return f"{title} ({self.scale.label})" if self.scale else title

    @property
    def filled(self) -> int:
        """How many of `planned` have a value."""
        columns = ["series"] if self.item.x == "step" else ["series", "x"]
        return len(self.means[columns].drop_duplicates())

    @property
    def smoothed(self) -> set[int]:
        """Series that are drawn with a smooth line: curves over steps of points enough."""
        if self.item.smooth is None or self.item.x != "step":
            return set()
        counts = self.means["series"].value_counts()
        return {int(series) for series in counts[counts >= MIN_SMOOTHED].index}

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
    means = _means(_scores(results, item, asked))
    return FigureData(
        item=item,
        series=tuple(order),
        means=means,
        paper=_paper(results, item, code, axis),
        fits=_fits(means, axis) if item.fit else {},
        axis=axis,
        ranks=ranks,
        planned=len(asked[columns].drop_duplicates()),
        scale=results.plan.scale,
        overrides=results.plan.overrides,
        restriction=results.restriction,
        num_mixed=_num_mixed(results, asked),
        here=values_here(results.plan, item),
    )


def _asked(results: Results, item: FigureItem) -> pd.DataFrame:
    """What the plan asks: `series`, `x` (value), `run`, `seed`, `step` (a curve's last; the run's
    own in a pilot), `schedule` (place in the plan's; -1 where it does not say). Points that no run
    answers are left out."""
    plan, rows = results.plan, []
    for point in item_points(plan, item):
        for step in item.steps or (point.horizon,) if point.run else ():
            x = None if item.x == "step" else coordinates((item.x,), point, "", step)[0]
            last = point.actual_horizon if step == point.horizon else plan.actual_step(step)
            schedule = -1 if point.schedule is None else point.schedule
            rows.append((_series(item, point, step), x, point.run, point.seed, last, schedule))
    columns = ["series", "x", "run", "seed", "step", "schedule"]
    frame = pd.DataFrame(rows, columns=columns, dtype=object)
    return frame.astype({"seed": "int64", "step": "int64", "schedule": "int64"})


def _series(item: FigureItem, point: Point, step: int) -> Series:
    roles = {
        role: coordinates((name,), point, "", step)[0] if name else None
        for role, name in (("panel", item.panel), ("hue", item.hue), ("style", item.style))
    }
    return Series(**roles)


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
    here = values_here(results.plan, item).get(item.x, {})
    ticks = tuple(
        (position, here_label(item.x, value, here.get(value)))
        for value, position in positions.items()
    )
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
        joined = joined[_is_scheduled(joined, results.plan)]
        joined = joined.assign(x=joined["step"].astype("float64"))
    else:
        joined = asked.merge(measured, on=["run", "step"])
    scores = joined[["series", "x", "seed", "value"]].dropna(subset="value")
    # two points that one run answers give the same score twice
    return scores.drop_duplicates(["series", "x", "seed"])


def _is_scheduled(joined: pd.DataFrame, plan: Plan) -> NDArray[np.bool_]:
    """Which rows this sweep asked for: those that another one had its runs evaluated at besides
    would make a curve denser, and the tenth of its points that LOWESS looks at narrower."""
    asked = pd.MultiIndex.from_tuples(
        [(place, step) for place, steps in enumerate(plan.schedules) for step in steps],
        names=["schedule", "step"],
    )
    is_asked = pd.MultiIndex.from_frame(joined[["schedule", "step"]]).isin(asked)
    found: NDArray[np.bool_] = is_asked | (joined["schedule"] < 0).to_numpy()
    return found


def _num_mixed(results: Results, asked: pd.DataFrame) -> int:
    """Series of which some mean rests on more than one teacher snapshot."""
    behind: dict[tuple[int, float | None], set[str]] = {}
    for series, x, run in zip(asked["series"], asked["x"], asked["run"], strict=True):
        if (digest := results.runs[run].teacher_digest) is not None:
            behind.setdefault((series, None if np.isnan(x) else x), set()).add(digest)
    return len({series for (series, _), digests in behind.items() if len(digests) > 1})


def _means(scores: pd.DataFrame) -> pd.DataFrame:
    # pandas drops NaN from pivots' keys, and NaN is where "no teacher" stands: infinity, and back
    keyed = scores.assign(x=scores["x"].fillna(np.inf))
    wide = keyed.pivot(index="seed", columns=["series", "x"], values="value").sort_index(axis=1)
    summary = summarise(wide.to_numpy(dtype=np.float64))
    frame = wide.columns.to_frame(index=False).astype({"series": "int64", "x": "float64"})
    frame = frame.assign(x=frame["x"].replace(np.inf, np.nan))
    return frame.assign(**vars(summary))


def _paper(results: Results, item: FigureItem, code: dict[Series, int], axis: Axis) -> pd.DataFrame:
    """The paper's numbers that stand on this figure; those of other cells are left out."""
    references = [reference for reference in item.references if reference.kind == "mean"]
    places, targets = _targets(results, item) if references else ([], [])
    rows: dict[tuple[int, float], tuple[float, float, bool]] = {}
    # every step is a place on a curve: it is looked up, not matched
    matched = [_without_step(one) if item.x == "step" else one for one in references]
    for reference, found in zip(references, fits(matched, targets), strict=True):
        for series, value, horizon in (places[index] for index in found):
            x = _step_here(results, reference, horizon) if item.x == "step" else None
            x = axis.positions.get(value) if x is None and item.x != "step" else x
            if series in code and x is not None:
                rows.setdefault((code[series], x), _number(reference))
    columns = ["series", "x", "value", "std", "partial"]
    frame = pd.DataFrame([(*place, *number) for place, number in rows.items()], columns=columns)
    return frame.sort_values(["series", "x"], ignore_index=True)


def _targets(
    results: Results, item: FigureItem
) -> tuple[list[tuple[Series, Key, int]], list[Target]]:
    """(series, value of x, horizon) of every place, and what the paper's numbers match there."""
    found: dict[tuple[Series, Key, int], Target] = {}
    for point in item_points(results.plan, item):
        for step in item.steps or (point.horizon,):
            x = None if item.x == "step" else coordinates((item.x,), point, "", step)[0]
            place = (_series(item, point, step), x, point.horizon)
            if place not in found:
                found[place] = target(point.settings, (), (), item.metric, step)
    return list(found), list(found.values())


def _without_step(reference: Reference) -> Reference:
    at = {name: value for name, value in reference.at.items() if name != "step"}
    return reference.model_copy(update={"at": at})


def _step_here(results: Results, reference: Reference, horizon: int) -> float | None:
    """Where on a curve the number stands; None beyond the curve's end."""
    step = reference.at.get("step")
    if not isinstance(step, int) or step > horizon:
        return None
    return float(results.plan.actual_step(step))


def _number(reference: Reference) -> tuple[float, float, bool]:
    """(value, std, partial) of the arXiv copy, else of the review copy."""
    value, std = reference.value, reference.std
    if value is None:
        value, std = reference.review_value, reference.review_std
    return float(value or 0.0), np.nan if std is None else std, reference.status == "partial"


def _fits(means: pd.DataFrame, axis: Axis) -> dict[int, PowerLaw]:
    """Over values of x that are numbers: `full` is a name, its place on the axis no number."""
    numbers = [position for value, position in axis.positions.items() if isinstance(value, float)]
    found = {}
    for series, rows in means[means["x"].isin(numbers)].groupby("series", sort=True):
        law = fit_power_law(
            rows["x"].to_numpy(dtype=np.float64), rows["mean"].to_numpy(dtype=np.float64)
        )
        if law is not None:
            found[int(str(series))] = law
    return found
