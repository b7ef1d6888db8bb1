"""plan.json: all a report needs to know of a sweep (docs/architecture.md)."""

from __future__ import annotations

from typing import Any

from orchestrator.fieldtypes import plain
from orchestrator.plan import Plan
from orchestrator.settings import FIELDS, INDEX, NUM_REPORTED
from orchestrator.spec import Sweep
from trainers.spec import SEMANTICS

__all__ = ["plan_document"]


def plan_document(sweep: Sweep, plan: Plan) -> dict[str, Any]:
    """No path, date or host in it, and nothing of the store: equal sweeps give equal documents."""
    planned = plan.points[sweep.name]
    reported = list(FIELDS)[:NUM_REPORTED]
    values = {name: {point.point[INDEX[name]] for point in planned} for name in reported}
    # A field that was left alone is no fact about the sweep, but a setting all the same.
    fixed = {name: found for name, found in values.items() if len(found) == 1}
    fields = [name for name in (*sweep.axes, *reported) if name in values and name not in fixed]
    fields = list(dict.fromkeys(fields))
    snapshots = _snapshots(plan)
    points = {
        (point.run, point.horizon, point.point[:NUM_REPORTED]): {
            "run": point.run,
            "settings": {name: plain(point.point[INDEX[name]]) for name in fields},
            "snapshot": snapshots[point.run],
            "horizon": point.horizon,
        }
        for point in planned
    }
    return {
        "sweep": sweep.name,
        "title": sweep.title,
        "description": sweep.description,
        "semantics": SEMANTICS,
        "settings": {name: plain(found.pop()) for name, found in fixed.items()},
        "fields": fields,
        "points": list(points.values()),
        "report": [item.model_dump(mode="json") for item in sweep.report],
    }


def _snapshots(plan: Plan) -> dict[str, str | None]:
    """The teacher snapshot behind each student, by its token; strategy C's, behind targets."""
    behind: dict[str, str] = {}
    for unit in plan.units:  # every need comes before what needs it
        if unit.kind != "teacher" and unit.needs:
            behind[unit.name] = behind.get(unit.needs[0], unit.needs[0])
    return {unit.name: behind.get(unit.name) for unit in plan.of_kind("student")}
