"""How many numbers a sweep's report asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from dashboards.layout import ClaimItem, FigureItem, TableItem
from orchestrator.grid import Point
from orchestrator.merge import PlannedPoint
from orchestrator.reportpoints import item_points
from orchestrator.settings import INDEX, NUM_REPORTED
from orchestrator.spec import Sweep
from trainers.data.info import DatasetInfo
from trainers.schedule import evaluation_steps, steps_per_epoch

__all__ = ["count_cells", "setting_of"]

_SEED = INDEX["seed"]
_DATASET = INDEX["dataset"]
_BATCH_SIZE = INDEX["training.batch_size"]


def count_cells(
    sweep: Sweep, planned: Sequence[PlannedPoint], infos: Mapping[str, DatasetInfo]
) -> int:
    """Different (setting without the seed, metric, step) over the report's items; without a report,
    settings without the seed. A pilot has those of its layout, with and without a run."""
    items = [item for item in sweep.report if not isinstance(item, ClaimItem)]
    if not items:
        return len({setting_of(point.point) for point in planned})
    answers = {point.point: point for point in planned}
    asked: dict[tuple[Point, str], frozenset[int]] = {}
    for item in items:
        metrics = _metrics(item)
        for point in item_points(item, sweep.points):
            cell = setting_of(point)
            steps = _steps(item, answers[point], infos)
            for metric in metrics:
                asked[cell, metric] = _union(asked.get((cell, metric), frozenset()), steps)
    return sum(map(len, asked.values()))


def setting_of(point: Point) -> Point:
    """The point without its seed: what a mean is over."""
    return point[:_SEED] + point[_SEED + 1 : NUM_REPORTED]


def _metrics(item: TableItem | FigureItem) -> list[str]:
    if isinstance(item, FigureItem):
        return [item.metric]
    return list(dict.fromkeys(item.labelled_metrics.values()))


def _steps(
    item: TableItem | FigureItem, planned: PlannedPoint, infos: Mapping[str, DatasetInfo]
) -> frozenset[int]:
    """Of a curve, those at which its run is looked at, which in a pilot are not the layout's."""
    if isinstance(item, FigureItem) and item.x == "step" and item.kind == "line":
        point, horizon = planned.actual or planned.point, planned.trained or planned.horizon
        info = infos.get(point[_DATASET])
        epoch = steps_per_epoch(info.num_train, point[_BATCH_SIZE]) if info else horizon
        return _curve(horizon, epoch)
    return frozenset(item.steps or (planned.horizon,))


@cache
def _curve(horizon: int, epoch: int) -> frozenset[int]:
    return frozenset(evaluation_steps(horizon, epoch))


@cache
def _union(one: frozenset[int], other: frozenset[int]) -> frozenset[int]:
    return one | other
