"""Pilots whose teachers are measured: teachers first, then the columns that they can fill.

`teacher_accuracy: measured` trains a pilot's teachers alone, as far as `teacher.max_steps`, at a
grid of presets; what a store then holds decides which preset each teacher column stands for.
Every sweep has its own map, over all of its points, whatever `--limit` leaves of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from orchestrator.grid import Point
from orchestrator.plan import Plan, make_plan
from orchestrator.scale import measuring_grid, preset_map
from orchestrator.scalenotes import MAPPED_LATER, preset_note
from orchestrator.settings import INDEX
from orchestrator.spec import Sweep
from orchestrator.units import Held, Unit
from orchestrator.work import work_left
from trainers.data.info import DatasetInfo

__all__ = ["bind_presets", "is_measured", "measured_sweeps", "measuring_plan"]

_STRATEGY = INDEX["strategy"]
_ACCURACY = INDEX["teacher.accuracy"]

_ASSUMED_CLASSES = 10
"""Of a data set that nobody has opened yet, in an estimate."""


def measured_sweeps(sweeps: Iterable[Sweep]) -> list[Sweep]:
    """Those whose teacher columns are mapped onto what their teachers reach."""
    return [sweep for sweep in sweeps if sweep.scaling is not None and sweep.scaling.scale.measured]


def measuring_plan(
    sweeps: Sequence[Sweep],
    infos: Mapping[str, DatasetInfo],
    held: Mapping[str, Held] | None = None,
    only: Sequence[Sweep] | None = None,
) -> Plan:
    """The teachers of measured pilots, each once, with the presets that they are measured at.
    held: what the store has of them. only: what a limit leaves of `sweeps`; just the teachers of
    these then, still at a grid up to the largest preset of all points of all sweeps, which the
    limit must not change."""
    left = [_as_asked(sweep) for sweep in measured_sweeps(sweeps if only is None else only)]
    asked: dict[str, set[float]] = {}
    for sweep in measured_sweeps(sweeps):
        for key, presets in _presets(sweep).items():
            asked.setdefault(key, set()).update(presets)
    units = tuple(
        _measuring(unit, asked[unit.key], infos)
        for unit in make_plan(left, infos).of_kind("teacher")
    )
    held = held or {}
    return Plan(
        units=units,
        points={},
        work=work_left(units, held, _wanted(units, held)),
        infos=infos,
        held=held,
    )


def _as_asked(sweep: Sweep) -> Sweep:
    assert sweep.scaling is not None
    return dataclasses.replace(sweep, scaling=dataclasses.replace(sweep.scaling, presets=None))


def _measuring(unit: Unit, presets: set[float], infos: Mapping[str, DatasetInfo]) -> Unit:
    grid = measuring_grid(presets, _num_classes(unit, infos))
    request = dataclasses.replace(unit.request, presets=grid)
    return dataclasses.replace(unit, request=request, measures=True)


def _num_classes(unit: Unit, infos: Mapping[str, DatasetInfo]) -> int:
    info = infos.get(unit.spec.dataset.name)
    return info.num_classes if info else _ASSUMED_CLASSES


def _wanted(units: Iterable[Unit], held: Mapping[str, Held]) -> list[str]:
    """Tokens of presets that the store has no record of; a record without weights, as a bundle
    brings it, says as much about what can be reached."""
    return [
        unit.snapshot_token(preset)
        for unit in units
        for preset in unit.request.presets
        if unit.name not in held or preset not in held[unit.name].presets
    ]


def _presets(sweep: Sweep) -> dict[str, set[float]]:
    """Nominal presets of all the sweep's points, by the key of the teacher."""
    scaling = sweep.scaling
    assert scaling is not None
    found: dict[str, set[float]] = {}
    keys: dict[Point, str] = {}
    for point in dataclasses.replace(sweep, limit={}).points:
        if point[_STRATEGY] != "A":
            base = scaling.base(point)
            key = keys.get(base) or keys.setdefault(base, scaling.teacher_key(base))
            found.setdefault(key, set()).add(point[_ACCURACY])
    return found


def is_measured(measuring: Plan, unit: Unit) -> bool:
    """Whether nothing is left to be found out about a teacher."""
    return not measuring.work[unit.name].is_left


def bind_presets(sweeps: Sequence[Sweep], measuring: Plan, *, assume: bool) -> list[Sweep]:
    """The sweeps with their teacher columns mapped. measuring: `measuring_plan` of all of them,
    less what the store holds. assume: as long as a teacher is not measured, its columns count as if
    it reached them (for an estimate); else they have no run yet."""
    teachers = {unit.key: unit for unit in measuring.units}
    chosen = {id(sweep) for sweep in measured_sweeps(sweeps)}
    return [
        _bound(sweep, measuring, teachers, assume=assume) if id(sweep) in chosen else sweep
        for sweep in sweeps
    ]


def _bound(sweep: Sweep, measuring: Plan, teachers: Mapping[str, Unit], *, assume: bool) -> Sweep:
    assert sweep.scaling is not None
    infos = measuring.infos
    places: dict[str, Mapping[float, float]] = {}
    notes: list[str] = []
    pending = False
    for key, presets in _presets(sweep).items():
        unit = teachers[key]
        if is_measured(measuring, unit):
            held = measuring.held[unit.name].presets if unit.name in measuring.held else {}
            # Of this sweep and this teacher alone: what other sweeps asked of it is left out.
            grid = measuring_grid(presets, _num_classes(unit, infos))
            places[key] = preset_map(presets, [preset for preset in grid if preset in held])
            notes.append(preset_note(unit.label, sorted(presets), places[key]))
        else:
            pending = True
            places[key] = {preset: preset for preset in presets} if assume else {}
    notes += [MAPPED_LATER] if pending else []
    scaling = dataclasses.replace(
        sweep.scaling, presets=places, notes=(*sweep.scaling.notes, *notes)
    )
    return dataclasses.replace(sweep, scaling=scaling)
