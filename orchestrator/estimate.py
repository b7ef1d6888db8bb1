"""How long a plan will take: from rates that were measured, never from a guess.

Measured in this store (rows of complete runs), on the spot with `--calibrate`, or on another
device earlier (`--device NAME`). Stopwatch rates know training steps and evaluated images apart, so
evaluations and a teacher's validations are added; those of whole runs have them in.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from statistics import median

from orchestrator import paths
from orchestrator.admission import Shape
from orchestrator.errors import StoreError
from orchestrator.hardware import cpu_hardware
from orchestrator.metricsfile import read_metrics
from orchestrator.plan import Plan
from orchestrator.rates import EVALUATION, Group, Rates
from orchestrator.sharing import gpu_model
from orchestrator.store import Store
from orchestrator.units import ARTEFACTS, SEARCH_STEPS, Unit
from trainers.data.info import DatasetInfo
from trainers.schedule import evaluation_steps, steps_per_epoch
from trainers.spec import Backbone, ScoresSpec, Screening, StudentSpec, TargetsSpec

__all__ = ["ADAPTIVE_IMAGES", "Estimate", "Pace", "group_of", "measured_rates"]

ADAPTIVE_IMAGES = 500
"""Evaluated at a validation under `teacher.screen: adaptive`, the whole sets among them, on the
average of simulated searches of some thousand steps. Short ones, which pass a preset every few
steps, take up to 2,000 (benchmarks/teacher_validation.py)."""

_SAMPLES = 5
"""Runs measured for each group: their rates differ by a few per cent."""

_LOOKED_AT = 20
"""Results read of each kind of run, to find them."""


@dataclass(frozen=True)
class Estimate:
    """seconds: of devices, of the runs whose pace is known. unknown: runs without a measured
    pace."""

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


def measured_rates(
    store: Store, plan: Plan, gpus: Collection[str], *, only_left: bool = False
) -> Rates:
    """Median steps/s by group, from runs of this plan that the store holds. gpus: names of those
    that train here, none: this CPU does. A store may hold runs that a bundle brought from
    elsewhere. only_left: of data sets and backbones that units have which are left. Results that
    name no share of a GPU, from before it was recorded, count as of a whole one."""
    families = {_family(group_of(unit, plan.infos)) for unit in plan.left if _trains(unit)}
    done: dict[Group, list[str]] = defaultdict(list)
    for unit in plan.units:
        if _trains(unit) and plan.work[unit.name].action == "done":
            group = group_of(unit, plan.infos)
            if not only_left or _family(group) in families:
                done[group].append(unit.name)
    here = {gpu_model(one) for one in gpus or {cpu_hardware()}}
    seen: dict[Group, list[float]] = defaultdict(list)
    for kind, names in done.items():
        for name in names[:: math.ceil(len(names) / _LOOKED_AT)]:  # others' lie beside each other
            group = _executed(store, name, kind, here)
            if len(seen[group]) < _SAMPLES and (rate := _rate(store, name)):
                seen[group].append(rate)
    return Rates(runs={group: median(rates) for group, rates in seen.items() if rates})


def _trains(unit: Unit) -> bool:
    return unit.kind not in ARTEFACTS


def _family(group: Group) -> tuple[str, Backbone]:
    return group.dataset, group.backbone


def _executed(store: Store, name: str, kind: Group, here: Collection[str]) -> Group:
    """The group of a run, by what its result says of its execution. here: models (`gpu_model`)."""
    try:
        found = (store.read_json(paths.result(name)) or {}).get("environment") or {}
        hardware = str(found.get("hardware") or "not recorded")
        return dataclasses.replace(
            kind,
            workers=int(found.get("workers") or 1),
            share=float(found.get("share") or 1.0),
            hardware="" if gpu_model(hardware) in here else hardware,
        )
    except (StoreError, AttributeError, TypeError, ValueError):
        return dataclasses.replace(kind, hardware="not recorded")


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
    """Seconds of runs by measured rates. First those of whole runs here, if there are any on as
    many workers with the same share of a device; then of single steps. A group without a rate takes
    the mean of its siblings (same data set, backbone and batch), and at last what was measured
    elsewhere. Several devices count as so many times as fast as one. Soft-target files and scores
    count nothing: one costs an epoch of evaluation or a few.

    shape_of: devices of a unit; by default what its sweep asks. unknown: groups that were asked and
    have no rate. borrowed: runs of other hardware, or on another number of workers, that lent their
    rates, by the group that was asked."""

    def __init__(
        self,
        rates: Rates,
        infos: Mapping[str, DatasetInfo],
        shape_of: Callable[[Unit], Shape] | None = None,
    ) -> None:
        self._rates = rates
        self._infos = infos
        self._shape_of = shape_of or _asked_shape
        self._runs: dict[Group, list[Group]] = defaultdict(list)
        for group in rates.runs:
            self._runs[group.kind].append(group)
        self._groups: dict[str, Group] = {}
        self._step_s = cache(self._measured_step_s)
        self._run_s = cache(self._measured_run_s)
        self._image_s = cache(self._measured_image_s)
        self.unknown: dict[Group, None] = {}
        self.borrowed: dict[Group, Group] = {}

    def total(self, work: Iterable[tuple[Unit, float]]) -> Estimate:
        """Device time of units and the steps that each trains, a teacher `SEARCH_STEPS` at most:
        seconds of each times its devices."""
        seconds, unknown = 0.0, 0
        for unit, steps in work:
            if unit.kind not in ARTEFACTS:
                own = self._device_s(unit, steps)
                seconds, unknown = seconds + (own or 0.0), unknown + (own is None)
        return Estimate(seconds, unknown)

    def seconds(self, unit: Unit, steps: float) -> float | None:
        """On its devices; None where nothing like it was measured."""
        own = self._device_s(unit, steps)
        return None if own is None else own / self._group(unit).devices

    def _device_s(self, unit: Unit, steps: float) -> float | None:
        group = self._group(unit)
        steps = min(steps, SEARCH_STEPS) if unit.kind == "teacher" else steps
        whole = self._run_s(group, False)
        if whole is not None:
            return steps * whole
        step_s = self._step_s(group.kind)
        if step_s is not None:
            evaluated = self._evaluated(unit, int(steps), group)
            return steps * step_s + evaluated * self._image_s(group.kind)
        for other in (group, *self._siblings(group)):
            if (elsewhere := self._run_s(other, True)) is not None:
                return steps * elsewhere
        self.unknown[dataclasses.replace(group.kind, strategy="")] = None
        return None

    def _group(self, unit: Unit) -> Group:
        """With its workers and their share."""
        if unit.name not in self._groups:
            shape = self._shape_of(unit)
            self._groups[unit.name] = dataclasses.replace(
                group_of(unit, self._infos),
                workers=shape.workers,
                share=shape.devices / shape.workers,
            )
        return self._groups[unit.name]

    def _siblings(self, group: Group) -> list[Group]:
        """Of other strategies, as it is asked."""
        return [
            dataclasses.replace(group, strategy=other.strategy)
            for other in self._runs
            if other != group.kind and _alike(other, group.kind)
        ]

    def _measured_run_s(self, group: Group, elsewhere: bool) -> float | None:
        """Device seconds of a step of whole runs, the mean of those that were most alike."""
        runs = [one for one in self._runs.get(group.kind, ()) if bool(one.hardware) == elsewhere]
        if not runs:
            return None

        def distance(one: Group) -> tuple[bool, float]:
            return one.workers != group.workers, abs(one.share - group.share)

        nearest = min(map(distance, runs))
        lent = [one for one in runs if distance(one) == nearest]
        if elsewhere or nearest[0]:
            self.borrowed[group] = lent[0]
        return sum(one.devices / self._rates.runs[one] for one in lent) / len(lent)

    def _measured_step_s(self, group: Group) -> float | None:
        """Seconds of a step on one device here."""
        own = self._rates.steps.get(group)
        if own is not None:
            return 1 / own.per_s
        rates = [
            rate.per_s
            for other, rate in self._rates.steps.items()
            if other.strategy != EVALUATION and _alike(other, group)
        ]
        rates = rates or [
            rate / other.devices
            for other, rate in self._rates.runs.items()
            if not other.hardware and _alike(other.kind, group)
        ]
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


def _asked_shape(unit: Unit) -> Shape:
    """What the sweep asks, as far as it does without knowing the machine."""
    share = min(unit.gpus_per_worker, 1.0) if unit.workers == 1 else 1.0
    return Shape(workers=unit.workers, devices_per_worker=share)


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
