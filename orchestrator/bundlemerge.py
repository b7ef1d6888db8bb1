"""Two records of one run made into one, or into a conflict. Pure.

A run's rows up to a step do not depend on how far it was trained, so two records of it must agree
wherever both have a row: then the one adds to the other. Where they do not agree (another device, a
tampered file, another library), neither is right by being here first: nothing is replaced, and a
person is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.bundlesnapshots import as_copy, disagreement, joined
from orchestrator.records import differing_column
from orchestrator.runrecord import RunRecord
from orchestrator.units import ARTEFACTS

__all__ = ["Merged", "merge", "merge_plans"]


@dataclass(frozen=True, kw_only=True)
class Merged:
    """new: ours had nothing. same: theirs adds nothing. grown: record has more than ours.
    conflict: ours stays; reason says what differs."""

    action: Literal["new", "same", "grown", "conflict"]
    record: RunRecord
    reason: str = ""


def merge(
    ours: RunRecord | None, theirs: RunRecord, kin: Mapping[str, str] | None = None
) -> Merged:
    """ours: what the store has of the run that `theirs` records, if anything. kin: the original's
    digest by that of a copy, of the teachers that either knows. The merged record names in
    `weights` and `state` what the run has then: entries with a file are the bundle's."""
    if ours is None:
        return Merged(action="new", record=replace(theirs, snapshots=_snapshots(None, theirs)))
    reason = _disagreement(ours, theirs, kin or {})
    if reason:
        return Merged(action="conflict", record=ours, reason=reason)
    record = replace(
        ours,
        request=_request(ours, theirs),
        result=_result(ours, theirs),
        snapshots=_snapshots(ours, theirs),
        table=_union(ours.table, theirs.table),
        weights={**theirs.weights, **ours.weights},
        state=_state(ours, theirs),
    )
    return Merged(action="grown" if _adds(ours, record) else "same", record=record)


def _snapshots(ours: RunRecord | None, theirs: RunRecord) -> dict[str, dict[str, Any]]:
    """A snapshot that is a record alone becomes that of the weights that arrive for it; one whose
    weights are here stays, since students learn from them, and knows of the other form."""
    snapshots: dict[str, dict[str, Any]] = {}
    for preset in {**theirs.snapshots, **(ours.snapshots if ours else {})}:
        here = ours.snapshots.get(preset) if ours else None
        there = theirs.snapshots.get(preset)
        record = joined(here, there) if here and there else dict(here or there or {})
        arriving = theirs.weights.get(preset)
        if arriving and arriving["digest"] != record["digest"]:
            form = theirs.snapshots[preset]
            if form["digest"] != arriving["digest"]:
                form = as_copy(form, arriving["digest"], arriving["accuracy"])
            stays = ours is not None and preset in ours.weights
            record = joined(record, form) if stays else joined(form, record)
        snapshots[preset] = record
    return snapshots


def _state(ours: RunRecord, theirs: RunRecord) -> Mapping[str, Any] | None:
    """The later one."""
    if ours.state is None or theirs.state is None:
        return ours.state or theirs.state
    return theirs.state if theirs.state["step"] > ours.state["step"] else ours.state


def _adds(ours: RunRecord, record: RunRecord) -> bool:
    """Whether the record knows more of the run; who executed it is no knowledge of it."""
    return (
        _steps(record.table) != _steps(ours.table)
        or record.snapshots != ours.snapshots
        or record.weights.keys() != ours.weights.keys()
        or record.state != ours.state
        or _reach(record) > _reach(ours)
        or (record.result or {}).get("presets") != (ours.result or {}).get("presets")
    )


# -- do they agree ------------------------------------------------------------------------------


def _disagreement(ours: RunRecord, theirs: RunRecord, kin: Mapping[str, str]) -> str:
    """Empty when nothing speaks against the two being records of one trajectory."""
    reason = _rows_disagreement(ours.table, theirs.table) or _rule_disagreement(ours, theirs)
    if reason:
        return reason
    here, there = ((record.result or {}).get("teacher_digest") for record in (ours, theirs))
    if here and there and ours.kind in ARTEFACTS:  # of one snapshot in either form: no number
        here, there = kin.get(here, here), kin.get(there, there)
    if here and there and here != there:
        return f"it learnt from another snapshot: here {here[:16]}, there {there[:16]}"
    for preset in sorted(ours.snapshots.keys() & theirs.snapshots.keys()):
        if differs := disagreement(ours.snapshots[preset], theirs.snapshots[preset]):
            field, _, values = differs.partition(": ")
            return f"{field} of snapshot {preset}: {values}"
    return ""


def _rule_disagreement(ours: RunRecord, theirs: RunRecord) -> str:
    """A snapshot does not say which rule of validation found it, so a store keeps to one."""
    if ours.kind == "teacher" and ours.request and theirs.request:
        for field in ("validate_every", "screen"):
            here, there = ours.request.get(field), theirs.request.get(field)
            if here != there:
                return f"its teacher.{field}: here {here}, there {there}"
    return ""


def _rows_disagreement(ours: pa.Table | None, theirs: pa.Table | None) -> str:
    here, there = _by_step(ours), _by_step(theirs)
    if here and there and not here.keys() & there.keys():
        return f"no step is in both records: here {_span(here)}, there {_span(there)}"
    for step in sorted(here.keys() & there.keys()):
        if (column := differing_column(here[step], there[step])) is not None:
            values = f"here {here[step][column]}, there {there[step][column]}"
            return f"{column} at step {step:,}: {values}"
    return ""


def _by_step(table: pa.Table | None) -> dict[int, dict[str, Any]]:
    return {} if table is None else {row["step"]: row for row in table.to_pylist()}


def _span(rows: Mapping[int, Any]) -> str:
    return f"{len(rows)} from {min(rows):,} to {max(rows):,}"


# -- both in one --------------------------------------------------------------------------------


def _steps(table: pa.Table | None) -> list[int]:
    steps: list[int] = [] if table is None else table["step"].to_pylist()
    return steps


def _union(ours: pa.Table | None, theirs: pa.Table | None) -> pa.Table | None:
    """Rows of either. A row that is here stays as it is: MLflow has it, with its time stamp."""
    if ours is None or theirs is None:
        return theirs if ours is None else ours
    new = theirs.filter(
        pc.invert(pc.is_in(theirs["step"], value_set=ours["step"].combine_chunks()))
    )
    if not len(new):
        return ours
    return pa.concat_tables([ours, new], promote_options="permissive").sort_by("step")


def _reach(record: RunRecord) -> int:
    """How far the run was trained, or its presets searched for; -1 when it is not complete."""
    if record.result is None:
        return -1
    return int(record.result.get("searched_to") or record.result["horizon"])


def _result(ours: RunRecord, theirs: RunRecord) -> Mapping[str, Any] | None:
    """The one that came further. Of a teacher, with the presets of both; in vain was only what one
    of them looked for as far as that."""
    further = theirs if _reach(theirs) > _reach(ours) else ours
    other = ours if further is theirs else theirs
    if further.result is None or other.result is None or ours.kind != "teacher":
        return further.result
    presets = {**other.result.get("presets", {}), **further.result.get("presets", {})}
    missing = {*further.result.get("missing", [])}
    if _reach(other) == _reach(further):
        missing |= {*other.result.get("missing", [])}
    found = {float(preset) for preset in presets}
    return {**further.result, "presets": presets, "missing": sorted(missing - found)}


def _request(ours: RunRecord, theirs: RunRecord) -> Mapping[str, Any] | None:
    """What was asked of the run, such that the result answers it."""
    if ours.request is None or theirs.request is None:
        return ours.request or theirs.request
    further = theirs if _reach(theirs) > _reach(ours) else ours
    evaluate_at = {*ours.request["evaluate_at"], *theirs.request["evaluate_at"]}
    presets = {*ours.request["presets"], *theirs.request["presets"]}
    if (result := _result(ours, theirs)) is not None and ours.kind == "teacher":
        presets &= {*map(float, result.get("presets", {})), *result.get("missing", [])}
    joined = {"evaluate_at": sorted(evaluate_at), "presets": sorted(presets)}
    assert further.request is not None
    return {**further.request, **joined}


# -- plans --------------------------------------------------------------------------------------


def merge_plans(
    ours: Mapping[str, Any] | None, theirs: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """One plan with the points of both; None where they are not plans of one sweep: another report,
    another scale, other runs for equal settings. Ours itself when theirs adds nothing; its word on
    when points are evaluated stands."""
    if ours is None or ours == theirs:
        return theirs if ours is None else ours
    parts = ("points", "settings", "fields", "schedules")
    if _without(ours, parts) != _without(theirs, parts):
        return None
    points = [*_full_points(ours)]
    known = {_identity(point): point for point in points}
    for point in _full_points(theirs):
        there = known.get(_identity(point))
        if there is None:
            points.append(point)
        elif _without(there, ("schedule",)) != _without(point, ("schedule",)):
            return None
    if len(points) == len(known):
        return ours
    return _with_points(ours, theirs, _seeds_together(points))


def _without(plan: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in plan.items() if name not in names}


def _full_points(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """With settings and schedules of their own."""
    full = [p | {"settings": plan["settings"] | p["settings"]} for p in plan["points"]]
    for point in full:
        if "schedule" in point:
            point["schedule"] = plan["schedules"][point["schedule"]]
    return full


def _identity(point: Mapping[str, Any]) -> str:
    return repr((sorted(point["settings"].items()), point["horizon"]))


def _seeds_together(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seeds are what machines mostly share among them: each beside the others of its setting, as
    in the plan of a sweep that had all of them. Settings keep their order."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        others = {name: value for name, value in point["settings"].items() if name != "seed"}
        groups.setdefault(repr(sorted(others.items())), []).append(point)
    return [point for group in groups.values() for point in group]


def _with_points(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], points: list[dict[str, Any]]
) -> dict[str, Any]:
    """Settings that are equal in all points stand once, the others are fields, and so do schedules,
    as in the plan of a sweep that had all of them (plandocument)."""
    names = dict.fromkeys([*ours["fields"], *theirs["fields"], *ours["settings"]])
    values = {name: [point["settings"].get(name) for point in points] for name in names}
    fields = [name for name in names if any(value != values[name][0] for value in values[name])]
    settings = {name: values[name][0] for name in names if name not in fields}
    slim = [p | {"settings": {name: p["settings"].get(name) for name in fields}} for p in points]
    schedules: list[list[int]] = []
    for point in slim:
        if (steps := point.get("schedule")) is not None:
            if steps not in schedules:
                schedules.append(steps)
            point["schedule"] = schedules.index(steps)
    merged = {**ours, "settings": settings, "fields": fields, "points": slim}
    return merged | {"schedules": schedules} if schedules else merged
