"""A plan sweep by sweep: what each would take by itself, and what it has in common with others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.estimate import Estimate, Pace
from orchestrator.merge import PlannedPoint
from orchestrator.plan import Plan
from orchestrator.units import ARTEFACTS, Unit, provider

__all__ = ["SweepRow", "Total", "sweep_rows", "total_of"]


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """What one sweep asks, as if it were alone. unmapped: points that no run answers (a pilot's
    teacher does not get there). runs: teachers, students and probes. shared: those that other
    sweeps ask too; sharers: with how many of them, most first. steps: of students and probes.
    time: all of it, also what the store holds already."""

    name: str
    cells: int
    points: int
    unmapped: int
    runs: int
    shared: int
    sharers: Mapping[str, int]
    steps: int
    snapshots: int
    time: Estimate

    def to_json(self) -> dict[str, Any]:
        return {
            "sweep": self.name,
            "cells": self.cells,
            "points": self.points,
            "points_without_run": self.unmapped,
            "runs": self.runs,
            "shared": self.shared,
            "shared_with": dict(self.sharers),
            "steps": self.steps,
            "snapshots": self.snapshots,
            **_hours(self.time),
        }


@dataclass(frozen=True, kw_only=True)
class Total:
    """The plan as a whole, everything once, and the sum of its sweeps."""

    runs: int
    runs_before: int
    steps: int
    steps_before: int
    snapshots: int
    snapshots_before: int
    time: Estimate
    time_before: Estimate

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "steps": self.steps,
            "snapshots": self.snapshots,
            **_hours(self.time),
            "before_sharing": {
                "runs": self.runs_before,
                "steps": self.steps_before,
                "snapshots": self.snapshots_before,
                **_hours(self.time_before),
            },
        }


def _hours(time: Estimate) -> dict[str, Any]:
    return {"gpu_hours": round(time.seconds / 3600, 3), "runs_of_unknown_pace": time.unknown}


def sweep_rows(plan: Plan, pace: Pace) -> list[SweepRow]:
    """One row a sweep, in the order of the plan."""
    units = {unit.name: unit for unit in plan.units}
    return [_row(name, points, plan, units, pace) for name, points in plan.points.items()]


def _row(
    name: str,
    points: Sequence[PlannedPoint],
    plan: Plan,
    units: Mapping[str, Unit],
    pace: Pace,
) -> SweepRow:
    horizons = _horizons(points)
    tokens = set(_snapshots(horizons, units))
    runs = [units[run] for run in (*horizons, *dict.fromkeys(map(provider, sorted(tokens))))]
    sharers = Counter(other for unit in runs for other in unit.sweeps if other != name)
    return SweepRow(
        name=name,
        cells=plan.cells_by[name],
        points=len(points),
        unmapped=sum(point.run is None for point in points),
        runs=len(runs),
        shared=sum(len(unit.sweeps) > 1 for unit in runs),
        sharers=dict(sharers.most_common()),
        steps=sum(horizons.values()),
        snapshots=len(tokens),
        time=pace.total((unit, horizons.get(unit.name, unit.request.horizon)) for unit in runs),
    )


def _horizons(points: Iterable[PlannedPoint]) -> dict[str, int]:
    """The students and probes of a sweep, and how far it wants each."""
    found: dict[str, int] = {}
    for point in points:
        if point.run is None:
            continue
        found[point.run] = max(found.get(point.run, 0), point.trained or point.horizon)
        if point.weights is not None:
            student, _, step = point.weights.partition("/step-")
            found[student] = max(found.get(student, 0), int(step))
    return found


def _snapshots(runs: Iterable[str], units: Mapping[str, Unit]) -> Iterator[str]:
    """Teacher snapshots behind runs, by token; strategy C's stand behind its targets."""
    for run in runs:
        for token in units[run].needs:
            unit = units[provider(token)]
            if unit.kind == "teacher":
                yield token
            elif unit.kind == "targets":
                yield from unit.needs


def total_of(plan: Plan, rows: Sequence[SweepRow], pace: Pace) -> Total:
    runs = [unit for unit in plan.units if unit.kind not in ARTEFACTS]
    return Total(
        runs=len(runs),
        runs_before=sum(row.runs for row in rows),
        steps=plan.student_steps,
        steps_before=sum(row.steps for row in rows),
        snapshots=plan.num_snapshots,
        snapshots_before=sum(row.snapshots for row in rows),
        time=pace.total((unit, unit.request.horizon) for unit in runs),
        time_before=Estimate(
            sum(row.time.seconds for row in rows), sum(row.time.unknown for row in rows)
        ),
    )
