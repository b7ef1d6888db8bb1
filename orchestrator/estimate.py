"""How long a plan will take: from rates that were measured, never from a guess.

Measured in this store (rows of complete runs), on the spot with `--calibrate`, or on another
device earlier (`--device NAME`). Stopwatch rates know training steps and evaluated images apart, so
evaluations and a teacher's validations are added; those of whole runs have them in.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from statistics import median

from orchestrator.errors import StoreError
from orchestrator.metricsfile import read_metrics
from orchestrator.plan import Plan
from orchestrator.rates import EVALUATION, Group, Rates
from orchestrator.store import Store
from orchestrator.units import ARTEFACTS, SEARCH_STEPS, Unit
from trainers.data.info import DatasetInfo
from trainers.schedule import evaluation_steps, steps_per_epoch
from trainers.spec import ScoresSpec, Screening, StudentSpec, TargetsSpec

__all__ = ["ADAPTIVE_IMAGES", "Estimate", "Pace", "group_of", "measured_rates"]

ADAPTIVE_IMAGES = 500
"""Evaluated at a validation under `teacher.screen: adaptive`, the whole sets among them, on the
average of simulated searches of some thousand steps. Short ones, which pass a preset every few
steps, take up to 2,000 (benchmarks/teacher_validation.py)."""

_SAMPLES = 5
"""Runs looked at for each group: their rates differ by a few per cent."""


@dataclass(frozen=True)
class Estimate:
    """seconds: of one run after the other, of those whose pace is known. unknown: runs without a
    measured pace."""

    seconds: float
    unknown: int


def group_of(unit: Unit, infos: Mapping[str, DatasetInfo] | None = None) -> Group:
    """What tells a run's pace. infos: for the image size of data sets that say none."""
    spec = unit.spec
    assert not isinstance(spec, TargetsSpec | ScoresSpec)
    kind = spec.strategy if isinstance(spec, StudentSpec) else unit.kind
    info = (infos or {}).get(spec.dataset.name)
    size = spec.dataset.image_size or (info.image_size if info else None)
    return Group(
        spec.dataset.name, spec.backbone, spec.batch_size, kind, size, precision=spec.precision
    )


def measured_rates(store: Store, plan: Plan) -> Rates:
    """Median steps/s by group, from runs of this plan that the store holds."""
    seen: dict[Group, list[float]] = defaultdict(list)
    for unit in plan.units:
        if unit.kind in ARTEFACTS or plan.work[unit.name].action != "done":
            continue
        group = group_of(unit, plan.infos)
        if len(seen[group]) < _SAMPLES and (rate := _rate(store, unit.name)):
            seen[group].append(rate)
    return Rates(runs={group: median(rates) for group, rates in seen.items() if rates})


def _rate(store: Store, name: str) -> float | None:
    try:
        table = read_metrics(store, name, ["step", "wall_time_s"])
    except StoreError:
        return None
    if table is None:
        return None
    last = max(table.to_pylist(), key=lambda row: row["step"], default=None)
    return last["step"] / last["wall_time_s"] if last and last["wall_time_s"] else None


class Pace:
    """Seconds of runs by measured rates. A group without a rate takes the mean of its siblings
    (same data set, backbone and batch), if there are any. Soft-target files and scores count
    nothing: one costs an epoch of evaluation or a few. unknown: groups that were asked and have no
    rate."""

    def __init__(self, rates: Rates, infos: Mapping[str, DatasetInfo]) -> None:
        self._rates = rates
        self._infos = infos
        self._step_s = cache(self._measured_step_s)
        self._image_s = cache(self._measured_image_s)
        self.unknown: dict[Group, None] = {}

    def total(self, work: Iterable[tuple[Unit, float]]) -> Estimate:
        """Of units and the steps that each trains, a teacher `SEARCH_STEPS` at most."""
        seconds, unknown = 0.0, 0
        for unit, steps in work:
            if unit.kind not in ARTEFACTS:
                own = self.seconds(unit, steps)
                seconds, unknown = seconds + (own or 0.0), unknown + (own is None)
        return Estimate(seconds, unknown)

    def seconds(self, unit: Unit, steps: float) -> float | None:
        """None where nothing like it was measured."""
        group = group_of(unit, self._infos)
        steps = min(steps, SEARCH_STEPS) if unit.kind == "teacher" else steps
        whole = self._rates.runs.get(group)
        if whole is not None:
            return steps / whole
        step_s = self._step_s(group)
        if step_s is None:
            self.unknown[dataclasses.replace(group, strategy="")] = None
            return None
        return steps * step_s + self._evaluated(unit, int(steps), group) * self._image_s(group)

    def _measured_step_s(self, group: Group) -> float | None:
        own = self._rates.steps.get(group)
        if own is not None:
            return 1 / own.per_s
        rates: list[float] = [
            rate.per_s
            for other, rate in self._rates.steps.items()
            if other.strategy != EVALUATION and _alike(other, group)
        ]
        rates = rates or [rate for other, rate in self._rates.runs.items() if _alike(other, group)]
        return len(rates) / sum(rates) if rates else None

    def _measured_image_s(self, group: Group) -> float:
        """Seconds of an evaluated image; 0 where only whole runs were measured, which have it."""
        for one in (group.batch_size, None):
            for other, rate in self._rates.steps.items():
                same_batch = one is None or other.batch_size == one
                its = dataclasses.replace(group, batch_size=other.batch_size)
                if other.strategy == EVALUATION and same_batch and _alike(other, its):
                    return 1 / rate.per_s
        return 0.0

    def _evaluated(self, unit: Unit, steps: int, group: Group) -> int:
        """Images that the run evaluates on its way."""
        info = self._infos.get(group.dataset)
        if info is None:
            return 0
        request = unit.request
        if unit.kind == "teacher":
            images = _images_a_validation(request.screen, info.num_test)
            return steps // request.validate_every * images
        epoch = steps_per_epoch(info.num_train, group.batch_size)
        return _evaluations(steps, epoch, request.evaluate_at) * info.num_test


def _images_a_validation(screen: Screening, num_test: int) -> int:
    """Images that a teacher's validation evaluates, without what it confirms on the whole set
    under a fixed part."""
    if screen == "adaptive":
        return min(ADAPTIVE_IMAGES, num_test)
    return num_test if screen is None else min(screen, num_test)


def _alike(one: Group, other: Group) -> bool:
    return dataclasses.replace(one, strategy=other.strategy) == other


@cache
def _evaluations(steps: int, epoch: int, requested: tuple[int, ...]) -> int:
    """Evaluations in the first `steps` of a run: of its last ones, there are about as many."""
    return len(evaluation_steps(steps, epoch, requested)) if steps else 0
