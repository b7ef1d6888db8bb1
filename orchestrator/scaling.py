"""A scale applied to a sweep: from a point of the layout to the point that trains.

Points stay **nominal**, the full sweep's: they carry the layout of its tables. `Scaling.actual`
turns each into the point that is resolved to specs and keys; a pilot's runs are therefore those of
a sweep that somebody wrote by hand with the smaller values. What is nominal (epochs, horizons,
report steps) is counted on the official data set, also where the store holds a stand-in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from orchestrator.askedsteps import steps_named
from orchestrator.backbones import WITH_WIDTH
from orchestrator.durations import as_steps
from orchestrator.fieldtypes import Value, as_mapping
from orchestrator.grid import Grid, Point, applicable
from orchestrator.reportpoints import horizon_of, student_horizon
from orchestrator.resolve import Resolver, scoring_steps
from orchestrator.scale import (
    Scale,
    batch_map,
    factor,
    norm_batch_for,
    pick_ends,
    step_map,
    workers_for,
)
from orchestrator.scalenotes import scale_notes
from orchestrator.settings import INDEX
from orchestrator.workers import workers_of
from trainers.data.catalogue import OFFICIAL
from trainers.data.info import DatasetInfo

if TYPE_CHECKING:
    from orchestrator.spec import Sweep

__all__ = ["Scaling", "nominal_infos", "scale_sweep"]

Infos = Mapping[str, DatasetInfo]

_DATASET = INDEX["dataset"]
_STRATEGY = INDEX["strategy"]
_IPC = INDEX["ipc"]
_IMAGE_SIZE: int | None = INDEX.get("image_size")
_BACKBONE = INDEX["backbone.name"]
_WIDTH = INDEX["backbone.width"]
_PROBE = INDEX["probe"]
_PROBE_STEPS = INDEX["probe_steps"]
_STEPS = INDEX["training.steps"]
_BATCH = INDEX["training.batch_size"]
_NORM_BATCH = INDEX["training.norm_batch"]
_EVALUATE_AT = INDEX["training.evaluate_at"]
_EVALUATE_EVERY = INDEX["training.evaluate_every"]
_SCORING = INDEX["selection.method"]
_SCORING_STEPS = INDEX["selection.steps"]
_WORKERS = INDEX["scaling.workers"]
_ACCURACY = INDEX["teacher.accuracy"]
_TEACHER_BACKBONE = INDEX["teacher.backbone"]
_TEACHER_BATCH = INDEX["teacher.batch_size"]
_TEACHER_STEPS = INDEX["teacher.max_steps"]
_TEACHER_WORKERS = INDEX["scaling.teacher_workers"]


def nominal_infos(infos: Infos) -> Infos:
    """What a pilot's layout is counted on: the official data sets where there are such."""
    return {**infos, **OFFICIAL}


@dataclass(frozen=True)
class Scaling:
    """infos: of the data that trains. axes: fields that are an axis of the sweep; `set` leaves them
    alone. steps, batches: actual by nominal value. notes: for people. presets: reached teacher
    preset by nominal one, by the teacher's key, where they were measured; None takes each as it is
    asked, and a preset without a place has no run."""

    scale: Scale
    infos: Infos = field(repr=False)
    axes: frozenset[str]
    share: Fraction
    steps: Mapping[int, int]
    batches: Mapping[int, int]
    notes: tuple[str, ...] = ()
    presets: Mapping[str, Mapping[float, float]] | None = None
    resolver: Resolver = field(default_factory=lambda: Resolver({}), repr=False, compare=False)

    @property
    def nominal(self) -> Infos:
        return nominal_infos(self.infos)

    def keeps(self, point: Point) -> bool:
        """Whether the data has the images per class that a point asks."""
        info, ipc = self.infos.get(point[_DATASET]), point[_IPC]
        return info is None or ipc == "full" or bool(ipc <= info.smallest_class)

    def step(self, step: int) -> int:
        """The actual step of a nominal one. One that the sweep does not name itself (a claim of a
        group does) goes in proportion, between its neighbours."""
        if step in self.steps:
            return self.steps[step]
        below = max((its for own, its in self.steps.items() if own < step), default=1)
        above = min((its for own, its in self.steps.items() if own > step), default=below)
        return min(max(round(step * self.share), below), above)

    def actual(self, point: Point) -> Point | None:
        """The point that trains; None where its teacher's preset has no place."""
        base = self.base(point)
        if self.presets is None or base[_STRATEGY] == "A":
            return base
        preset = self.presets.get(self.teacher_key(base), {}).get(point[_ACCURACY])
        return None if preset is None else _with(base, _ACCURACY, preset)

    def teacher_key(self, base: Point) -> str:
        """The key of the teacher run behind an actual point, which no preset is part of."""
        teacher = self.resolver.teacher(base)
        assert teacher is not None, "strategy A has no teacher"
        return teacher.ref.key

    def base(self, point: Point) -> Point:
        """The point that trains, its teacher still at the nominal preset."""
        values = list(point)
        for name, value in self.scale.settings.items():
            if name not in self.axes:
                values[INDEX[name]] = value
        self._set_models(values, self.infos.get(point[_DATASET]))
        self._set_batches(values)
        self._set_steps(values, point)
        return applicable(values)

    def _set_models(self, values: list[Value], info: DatasetInfo | None) -> None:
        name, width = _replaced(self.scale, values[_BACKBONE], values[_WIDTH])
        values[_BACKBONE], values[_WIDTH] = name, width
        if values[_TEACHER_BACKBONE] is not None:
            own = as_mapping(values[_TEACHER_BACKBONE])
            name, width = _replaced(self.scale, own["name"], own.get("width"))
            own |= {"name": name, "width": width}
            named = {key: own[key] for key in ("name", "width", "stem") if own.get(key) is not None}
            values[_TEACHER_BACKBONE] = tuple(named.items())
        largest = self.scale.max_image_size
        if _IMAGE_SIZE is None:
            return
        size = values[_IMAGE_SIZE] or (info.image_size if info else None)
        if size is not None and largest is not None and size > largest:
            values[_IMAGE_SIZE] = largest

    def _set_batches(self, values: list[Value]) -> None:
        scale, nominal = self.scale, values[_BATCH]
        batch = values[_BATCH] = self.batches[nominal]
        dataset = values[_DATASET]
        asked = workers_of(values[_WORKERS], dataset).number
        workers = values[_WORKERS] = workers_for(asked, batch, scale.max_workers)
        of_teacher = values[_TEACHER_BATCH]
        if of_teacher is not None:
            values[_TEACHER_BATCH] = of_teacher = self.batches[of_teacher]
        of_its = values[_TEACHER_WORKERS] or (workers if of_teacher is not None else None)
        if of_its is not None:
            asked = workers_of(of_its, dataset).number
            its = workers_for(asked, of_teacher or batch, scale.max_workers)
            values[_TEACHER_WORKERS] = None if its == workers else its
        norm = values[_NORM_BATCH]
        if norm == nominal:
            values[_NORM_BATCH] = batch
        elif norm is not None:
            values[_NORM_BATCH] = norm_batch_for(norm, batch // workers, scale.divide_batch)

    def _set_steps(self, values: list[Value], point: Point) -> None:
        """From the nominal point: epochs are those of its data and its batch."""
        info, batch = self.nominal.get(point[_DATASET]), point[_BATCH]
        values[_STEPS] = self.step(student_horizon(point, self.nominal) or 1)
        if point[_PROBE] == "offline":
            values[_PROBE_STEPS] = self.step(horizon_of(point, self.nominal))
        if point[_SCORING] not in (None, "random"):
            values[_SCORING_STEPS] = self.step(scoring_steps(point, self.nominal))
        values[_EVALUATE_AT] = tuple(sorted(map(self.step, point[_EVALUATE_AT])))
        if self.share < 1:  # the standard evaluations lie dense enough for a short run's curve
            values[_EVALUATE_EVERY] = None
        if point[_TEACHER_STEPS] is not None and "teacher.max_steps" not in self.scale.settings:
            batch = point[_TEACHER_BATCH] or batch
            values[_TEACHER_STEPS] = as_steps(point[_TEACHER_STEPS], info, batch)


def _replaced(scale: Scale, name: str, width: int | None) -> tuple[str, int | None]:
    choice = scale.backbones.get(name)
    if choice is None:
        return name, width
    its = str(choice["name"])
    return its, choice.get("width", width if its == name else WITH_WIDTH.get(its))


def _with(point: Point, slot: int, value: Value) -> Point:
    return (*point[:slot], value, *point[slot + 1 :])


# -- from a sweep to its scaling -----------------------------------------------------------------


def scale_sweep(sweep: Sweep, infos: Infos) -> Sweep:
    """The pilot of a sweep whose file, group or command line gives a scale; any other as it is.
    Groups have nothing to scale. infos: of the data that trains."""
    scale = sweep.scale
    if scale is None or sweep.include:
        return sweep
    grids = tuple(_fewer(grid, scale, infos) for grid in sweep.grids)
    axes = frozenset(sweep.axes)
    nominal = nominal_infos(infos)
    fewer = dataclasses.replace(sweep, grids=grids)
    steps = _named_steps(fewer, nominal)
    scaling = Scaling(
        scale=scale,
        infos=infos,
        axes=axes,
        share=factor(steps, scale.max_steps),
        steps=step_map(steps, scale.max_steps),
        batches=batch_map(_batches(fewer.points), scale.divide_batch),
        resolver=Resolver(infos),
    )
    notes = scale_notes(sweep, fewer, scaling)
    return dataclasses.replace(fewer, scaling=dataclasses.replace(scaling, notes=notes))


def _fewer(grid: Grid, scale: Scale, infos: Infos) -> Grid:
    """The grid with the first seeds, and with some of the images per class that the data has."""
    axes = dict(grid.axes)
    if "seed" in axes and scale.seeds is not None:
        axes["seed"] = axes["seed"][: scale.seeds]
    if "ipc" in axes:
        datasets = axes.get("dataset", (grid.base[_DATASET],))
        kept: set[Any] = set()
        for dataset in datasets:
            info = infos.get(dataset)
            limit = info.smallest_class if info else float("inf")
            there = [ipc for ipc in axes["ipc"] if ipc == "full" or ipc <= limit]
            there.sort(key=lambda ipc: float("inf") if ipc == "full" else ipc)
            kept.update(pick_ends(there, scale.ipc))
        axes["ipc"] = tuple(ipc for ipc in axes["ipc"] if ipc in kept)
    return dataclasses.replace(grid, axes=axes)


def _named_steps(sweep: Sweep, nominal: Infos) -> list[int]:
    """Every nominal step that the sweep names, up to its last one."""
    ends, asked = set(), steps_named(sweep)
    for point in sweep.points:
        ends |= {student_horizon(point, nominal) or 1, horizon_of(point, nominal) or 1}
        asked.update(point[_EVALUATE_AT])
    last = max(ends, default=1)
    return sorted({*ends, *(step for step in asked if step <= last)})


def _batches(points: Sequence[Point]) -> Iterable[int]:
    for point in points:
        yield point[_BATCH]
        if point[_TEACHER_BATCH] is not None:
            yield point[_TEACHER_BATCH]
