"""From sweeps to work: which runs answer all points, what they wait for, what is left to do.

plan = make_plan(sweeps, infos)                         what is asked
plan = plan.subtract(read_inventory(store, plan.units)) less what the store holds
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from orchestrator.cells import count_cells, setting_of
from orchestrator.merge import Merger, PlannedPoint
from orchestrator.resolve import PROVISIONAL
from orchestrator.spec import Sweep
from orchestrator.units import KINDS, Held, Unit, Work, cost_left
from orchestrator.work import chain_steps, work_left
from orchestrator.worth import Means
from trainers.data.info import DatasetInfo
from trainers.presets import STANDARD_PRESETS
from trainers.spec import (
    Backbone,
    ProbeSpec,
    ScoresSpec,
    StudentSpec,
    TargetsSpec,
    TeacherSpec,
)

__all__ = ["ParameterCount", "Plan", "Unit", "make_plan"]


class ParameterCount(Protocol):
    """`trainers.models.parameter_count`; passed in, because it needs torch."""

    def __call__(self, backbone: Backbone, *, image_size: int, num_classes: int) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """units: in an order in which every need comes before what needs it. points: by sweep. work:
    what is left of each unit, by name. held: what the store has. cells_by: numbers that each
    sweep's report asks. asked_steps: of all points, as if nothing were shared. provisional: data
    sets that nobody has opened yet; keys of their runs are not final: they must be prepared before
    anything runs. priorities: of runs that sweeps ask, by name, where any has another one than 0.
    """

    units: tuple[Unit, ...]
    points: Mapping[str, tuple[PlannedPoint, ...]]
    work: Mapping[str, Work] = field(repr=False)
    infos: Mapping[str, DatasetInfo] = field(repr=False)
    held: Mapping[str, Held] = field(default_factory=dict, repr=False)
    cells_by: Mapping[str, int] = field(default_factory=dict)
    asked_steps: int = 0
    provisional: tuple[str, ...] = ()
    priorities: Mapping[str, int] = field(default_factory=dict, repr=False)

    def subtract(self, held: Mapping[str, Held]) -> Plan:
        """The same plan, less what the store holds."""
        return replace(self, work=work_left(self.units, held), held=held)

    @property
    def held_tokens(self) -> frozenset[str]:
        """What units wait for and the store has: snapshots of teachers, soft targets, weights that
        students kept."""
        return frozenset(_held_tokens(self.units, self.held))

    def of_kind(self, kind: str) -> list[Unit]:
        return [unit for unit in self.units if unit.kind == kind]

    @property
    def left(self) -> list[Unit]:
        """Units with something left to do."""
        return [unit for unit in self.units if self.work[unit.name].is_left]

    @property
    def costs_left(self) -> dict[str, float]:
        """An estimate of the steps left of each of those, by name (`units.cost_left`)."""
        return {unit.name: cost_left(unit, self.work[unit.name]) for unit in self.left}

    @property
    def cells(self) -> int:
        return sum(self.cells_by.values())

    @property
    def num_points(self) -> int:
        return sum(len(points) for points in self.points.values())

    @property
    def done_names(self) -> frozenset[str]:
        """Units that the store has whole."""
        return frozenset(name for name, work in self.work.items() if work.action == "done")

    @cached_property
    def means(self) -> Means:
        """Runs of each setting of a sweep over its seeds, which a report averages."""
        found: dict[Hashable, set[str]] = {}
        for sweep, points in self.points.items():
            for point in points:
                if point.run is not None:
                    found.setdefault((sweep, setting_of(point.point)), set()).add(point.run)
        return found

    @property
    def num_shared(self) -> int:
        """Units that more than one sweep asks."""
        return sum(len(unit.sweeps) > 1 for unit in self.units)

    @property
    def num_snapshots(self) -> int:
        return sum(len(unit.request.presets) for unit in self.of_kind("teacher"))

    @property
    def student_steps(self) -> int:
        """Steps of all students and probes, held ones included; sharing saves the rest of
        `asked_steps`."""
        return sum(unit.request.horizon for unit in self._to_horizon)

    @property
    def student_steps_left(self) -> int:
        """Of students and probes."""
        return sum(self.work[unit.name].steps for unit in self._to_horizon)

    @property
    def _to_horizon(self) -> list[Unit]:
        return [unit for unit in self.units if unit.kind in ("student", "probe")]

    @property
    def teacher_steps_left_at_most(self) -> int:
        """Searches end when their presets are reached, mostly long before their limit."""
        return sum(self.work[unit.name].steps for unit in self.of_kind("teacher"))

    def chains(self) -> dict[str, int]:
        """Steps from each unit to the end of the longest chain behind it."""
        return chain_steps(self.units, self.work)

    def store_bytes(self, parameter_count: ParameterCount) -> int:
        """What the plan's checkpoints, snapshots and targets take once all of it is done. Images
        of unknown data sets are not counted."""
        size = _Sizes(self.infos, parameter_count)
        return sum(size.unit(unit) for unit in self.units)

    def to_json(self) -> dict[str, Any]:
        """Totals and units, for `plan --json`."""
        chains = self.chains()
        return {
            "cells": self.cells,
            "points": self.num_points,
            "runs": {kind: len(self.of_kind(kind)) for kind in KINDS},
            "runs_left": len(self.left),
            "shared_across_sweeps": self.num_shared,
            "snapshots": self.num_snapshots,
            "steps": {
                "asked": self.asked_steps,
                "planned": self.student_steps,
                "saved_by_sharing": self.asked_steps - self.student_steps,
                "students_left": self.student_steps_left,
                "teachers_left_at_most": self.teacher_steps_left_at_most,
            },
            "longest_chain": max(chains.values(), default=0),
            "provisional": list(self.provisional),
            "units": [
                _unit_json(unit, self.work[unit.name], chains[unit.name]) for unit in self.units
            ],
        }


def make_plan(
    sweeps: Sequence[Sweep],
    infos: Mapping[str, DatasetInfo],
    held: Mapping[str, Held] | None = None,
) -> Plan:
    """The runs that answer all points of all sweeps, each once. held: what the store has
    (`read_inventory`); none: an empty store. Groups add nothing to their members.

    Raises UserError when one teacher is asked with two validation rules.
    """
    merger = Merger(infos)
    sweeps = [sweep for sweep in sweeps if not sweep.include]
    points = {sweep.name: merger.add(sweep) for sweep in sweeps}
    units = merger.units()
    cells = {sweep.name: count_cells(sweep, points[sweep.name], infos) for sweep in sweeps}
    return Plan(
        units=units,
        points=points,
        work=work_left(units, held or {}),
        infos=infos,
        held=held or {},
        cells_by=cells,
        asked_steps=merger.asked_steps,
        provisional=_provisional(units),
        priorities=_priorities(sweeps, points),
    )


def _priorities(
    sweeps: Sequence[Sweep], points: Mapping[str, Sequence[PlannedPoint]]
) -> dict[str, int]:
    """By run, the highest that a point asks of it; nothing where all are 0."""
    found: dict[str, int] = {}
    for sweep in sweeps:
        for planned in points[sweep.name]:
            priority = sweep.priorities.get(planned.point, 0)
            if planned.run is not None:
                found[planned.run] = max(priority, found.get(planned.run, priority))
    return found if any(found.values()) else {}


def _held_tokens(units: Sequence[Unit], held: Mapping[str, Held]) -> Iterator[str]:
    for unit in units:
        there = held.get(unit.name)
        if there is not None and unit.kind == "teacher":
            presets = there.presets.keys() - there.weightless
            yield from map(unit.snapshot_token, sorted(presets))
        elif there is not None and unit.kind == "student":
            yield from map(unit.weights_token, there.kept)
        elif there is not None and there.complete:
            yield from unit.provides


def _provisional(units: Sequence[Unit]) -> tuple[str, ...]:
    datasets = dict.fromkeys(unit.spec.dataset for unit in units)
    names = (dataset.name for dataset in datasets if dataset.fingerprint == PROVISIONAL)
    return tuple(dict.fromkeys(names))


class _Sizes:
    """Bytes by unit; float32 weights, AdamW's two moments beside them in a checkpoint."""

    def __init__(self, infos: Mapping[str, DatasetInfo], parameter_count: ParameterCount) -> None:
        self.infos = infos
        self.parameter_count = parameter_count
        self.weights: dict[tuple[Backbone, str, int], int] = {}

    def unit(self, unit: Unit) -> int:
        info = self.infos.get(unit.spec.dataset.name)
        if info is None:
            return 0
        if isinstance(unit.spec, TargetsSpec):
            width = 4 if unit.spec.dtype == "float32" else 2
            return info.num_train * info.num_classes * width
        if isinstance(unit.spec, ScoresSpec):
            return info.num_train * 4
        if isinstance(unit.spec, ProbeSpec):
            return 0  # one linear layer
        weights = self._weights(unit.spec, info)
        if isinstance(unit.spec, StudentSpec):
            kept = 1 if unit.request.keep_weights_at else 0  # of a probe each; mostly one
            return weights * (kept + (0 if unit.keep_checkpoint == "none" else 3))
        highest = max(unit.request.presets)
        passed = {preset for preset in STANDARD_PRESETS if preset <= highest}
        checkpoints = int(highest // 10) + 1  # one each ten points, and the last
        return weights * (len(passed.union(unit.request.presets)) + 3 * checkpoints)

    def _weights(self, spec: StudentSpec | TeacherSpec, info: DatasetInfo) -> int:
        image_size = spec.dataset.image_size or info.image_size
        at = (spec.backbone, info.name, image_size)
        if at not in self.weights:
            self.weights[at] = 4 * self.parameter_count(
                spec.backbone, image_size=image_size, num_classes=info.num_classes
            )
        return self.weights[at]


def _unit_json(unit: Unit, work: Work, chain: int) -> dict[str, Any]:
    return {
        "name": unit.name,
        "label": unit.label,
        "action": work.action,
        "horizon": unit.request.horizon,
        "from_step": work.from_step,
        "steps": work.steps,
        "chain": chain,
        "presets": list(unit.request.presets),
        "missing_steps": list(work.missing_steps),
        "missing_presets": list(work.missing_presets),
        "missing_weights": list(work.missing_weights),
        "unreachable": list(work.unreachable),
        "needs": list(unit.needs),
        "workers": unit.workers,
        "workers_auto": unit.workers_auto,
        "gpus_per_worker": unit.gpus_per_worker,
        "gpus_auto": unit.gpus_auto,
        "sweeps": list(unit.sweeps),
    }
