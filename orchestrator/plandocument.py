"""plan.json: all a report needs to know of a sweep (docs/architecture.md)."""

from __future__ import annotations

from typing import Any

from orchestrator.fieldtypes import plain
from orchestrator.merge import PlannedPoint
from orchestrator.plan import Plan
from orchestrator.settings import FIELDS, INDEX, NUM_REPORTED
from orchestrator.spec import Sweep
from orchestrator.units import provider
from trainers.schedule import evaluation_steps, steps_per_epoch
from trainers.spec import SEMANTICS, ProbeSpec, StudentSpec

__all__ = ["plan_document"]


def plan_document(sweep: Sweep, plan: Plan) -> dict[str, Any]:
    """No path, date or host in it, and nothing of the store (but where a pilot's teachers were
    measured): equal sweeps give equal documents."""
    if sweep.include:
        return _head(sweep) | {"include": list(sweep.include), **_body({}, [], [], sweep)}
    planned = plan.points[sweep.name]
    values = {name: {point.point[INDEX[name]] for point in planned} for name in _REPORTED}
    # A field that was left alone is no fact about the sweep, but a setting all the same.
    fixed = {name: plain(*found) for name, found in values.items() if len(found) == 1}
    fields = [name for name in (*sweep.axes, *_REPORTED) if name in values and name not in fixed]
    snapshots, scores, schedules = _snapshots(plan), _scores(plan), _Schedules(plan)
    points = {
        (point.run, point.horizon, point.point[:NUM_REPORTED]): {
            "run": point.run,
            "settings": {name: plain(point.point[INDEX[name]]) for name in dict.fromkeys(fields)},
            "snapshot": snapshots[point.run] if point.run else None,
            "horizon": point.horizon,
            **schedules.of(point),
            **({"weights": point.weights} if point.weights else {}),
            **({"scores": scores[point.run]} if point.run in scores else {}),
            **({"actual": _actual(point)} if sweep.scaling else {}),
        }
        for point in planned
    }
    body = _body(fixed, list(dict.fromkeys(fields)), list(points.values()), sweep)
    return _head(sweep) | body | {"schedules": schedules.found}


_REPORTED = list(FIELDS)[:NUM_REPORTED]


class _Schedules:
    """When this sweep has its points evaluated; their runs may be at more steps, for others. Points
    share a few schedules, and name theirs by its place in `found`."""

    def __init__(self, plan: Plan) -> None:
        self.found: list[list[int]] = []
        self._places: dict[Any, int] = {}
        self._specs = {unit.name: unit.spec for unit in plan.units}
        self._infos = plan.infos

    def of(self, planned: PlannedPoint) -> dict[str, int]:
        """`schedule`, where it is known: not of a point without a run, nor of unknown data."""
        spec = self._specs.get(planned.run or "")
        if not isinstance(spec, StudentSpec | ProbeSpec):
            return {}
        info = self._infos.get(spec.dataset.name)
        if info is None:
            return {}
        epoch = steps_per_epoch(info.num_train, spec.batch_size)
        about = (planned.trained or planned.horizon, epoch, planned.evaluate_at)
        if about not in self._places:
            self._places[about] = len(self.found)
            self.found.append(list(evaluation_steps(*about)))
        return {"schedule": self._places[about]}


def _head(sweep: Sweep) -> dict[str, Any]:
    return {
        "sweep": sweep.name,
        "title": sweep.title,
        "description": sweep.description,
        "semantics": SEMANTICS,
    }


def _body(
    settings: dict[str, Any], fields: list[str], points: list[dict[str, Any]], sweep: Sweep
) -> dict[str, Any]:
    return {
        "scale": _scale(sweep),
        **({"overrides": list(sweep.overrides)} if sweep.overrides else {}),
        "settings": settings,
        "fields": fields,
        "points": points,
        "report": [item.model_dump(mode="json") for item in sweep.report],
    }


def _scale(sweep: Sweep) -> dict[str, Any] | None:
    """A group's sweeps say their steps themselves."""
    if sweep.scale is None:
        return None
    scaling = sweep.scaling
    if scaling is None:
        return {"name": sweep.scale.name, "notes": [], "steps": {}}
    claimed = {
        step
        for item in sweep.claims
        for test in item.tests
        if test.sweep == sweep.name
        for step in test.named_steps
    }
    steps = {step: scaling.step(step) for step in sorted({*scaling.steps, *claimed})}
    return {
        "name": sweep.scale.name,
        "notes": list(scaling.notes),
        "steps": {str(step): its for step, its in steps.items()},
    }


def _actual(planned: PlannedPoint) -> dict[str, Any]:
    """What the run has other than the layout; without a run, how far it would go."""
    changed = {
        name: plain(its)
        for name, own, its in zip(_REPORTED, planned.point, planned.actual or (), strict=False)
        if own != its
    }
    return changed | ({"horizon": planned.trained} if planned.trained != planned.horizon else {})


def _scores(plan: Plan) -> dict[str, str]:
    """What runs select by, where they do."""
    behind = {unit.name for unit in plan.of_kind("scores")}
    return {
        unit.name: token for unit in plan.of_kind("student") for token in unit.needs
        if token in behind
    }  # fmt: skip


def _snapshots(plan: Plan) -> dict[str, str | None]:
    """The teacher snapshot behind each student or probe, by its token; strategy C's, behind
    targets, and a probe's, behind its student."""
    behind: dict[str, str | None] = {}
    for unit in plan.units:  # every need comes before what needs it
        if unit.kind == "teacher":
            continue
        before = provider(unit.needs[0]) if unit.needs else ""
        behind[unit.name] = behind[before] if before in behind else next(iter(unit.needs), None)
    return behind
