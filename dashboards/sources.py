"""Which runs stand behind each number of the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dashboards.cells import coordinates, item_points
from dashboards.claim_cells import ClaimCell, Measured
from dashboards.labels import Key, axis_label, format_score, phrase
from dashboards.layout import FigureItem, TableItem
from dashboards.results import Point, Results

__all__ = ["Source", "SourceRun", "claim_sources", "item_sources", "measured_for", "source_records"]


@dataclass(frozen=True)
class SourceRun:
    """One seed's part in a number. value: as it enters, in the metric's unit. digest: SHA-256 of
    the teacher snapshot's weights, or empty."""

    seed: int
    run: str
    value: float
    digest: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """A number and the runs behind it. step: where they are read; for a curve, its last step."""

    label: str
    step: int
    metric: str
    runs: tuple[SourceRun, ...]

    def text(self, run: SourceRun) -> str:
        """The run's value as a table prints it."""
        return format_score(run.value, self.metric)


def measured_for(results: Results) -> Measured:
    """The evaluations that the sweep's tables and figures read."""
    plan = results.plan
    named = {plan.actual_step(step) for item in plan.items for step in item.steps}
    return Measured(results.evaluations, named | {point.actual_horizon for point in plan.points})


def item_sources(
    results: Results, item: TableItem | FigureItem, measured: Measured
) -> tuple[Source, ...]:
    """One source a cell (a curve, where x is the step), in the plan's order. Cells without a run
    are left out: nothing stands behind them."""
    metrics = item.labelled_metrics if isinstance(item, TableItem) else {"": item.metric}
    is_curve = isinstance(item, FigureItem) and item.x == "step"
    names = tuple(name for name in item.spanning if not (is_curve and name == "step"))
    found: dict[tuple[Key, ...], dict[int, SourceRun]] = {}
    about: dict[tuple[Key, ...], tuple[str, int, str]] = {}
    for point in item_points(results.plan, item):
        for step in item.steps or (point.horizon,):
            actual = results.plan.actual_step(step) if item.steps else point.actual_horizon
            for label, metric in metrics.items():
                at = coordinates(names, point, label, step)
                run = _source_run(results, measured, point, actual, metric)
                if run is not None:
                    found.setdefault(at, {})[point.seed] = run
                    about[at] = (_label(names, at), actual, metric)
    return tuple(
        Source(label=about[at][0], step=about[at][1], metric=about[at][2], runs=_by_seed(runs))
        for at, runs in found.items()
    )


def _source_run(
    results: Results, measured: Measured, point: Point, step: int, metric: str
) -> SourceRun | None:
    if point.run is None or (value := measured.at(point.run, step, metric)) is None:
        return None
    return SourceRun(point.seed, point.run, value, results.record(point).teacher_digest or "")


def _by_seed(runs: dict[int, SourceRun]) -> tuple[SourceRun, ...]:
    return tuple(runs[seed] for seed in sorted(runs))


def _label(names: tuple[str, ...], at: tuple[Key, ...]) -> str:
    texts = [
        str(value) if name == "metric" else phrase(name, value)
        for name, value in zip(names, at, strict=True)
        if value is not None
    ]
    return ", ".join(texts) or "all"


def claim_sources(cells: Iterable[ClaimCell]) -> tuple[Source, ...]:
    """One source a cell that a claim needs, each once."""
    found: dict[tuple[str, str], Source] = {}
    for cell in cells:
        runs = tuple(
            SourceRun(seed, cell.runs[seed], cell.scores[seed], cell.digests.get(seed, ""))
            for seed in sorted(cell.scores)
        )
        label = (
            cell.label if cell.metric == "top1_h" else f"{cell.label}, {axis_label(cell.metric)}"
        )
        source = Source(label=label, step=cell.actual_step, metric=cell.metric, runs=runs)
        found.setdefault((cell.sweep, label), source)
    return tuple(source for source in found.values() if source.runs)


def source_records(sources: Iterable[Source], ids: dict[str, str]) -> list[dict[str, Any]]:
    """For provenance.json: a cell with its runs. ids: MLflow run by run name."""
    return [
        {
            "cell": source.label,
            "step": source.step,
            "metric": source.metric,
            "runs": [vars(run) | {"mlflow": ids.get(run.run)} for run in source.runs],
        }
        for source in sources
    ]
