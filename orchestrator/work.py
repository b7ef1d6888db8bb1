"""Subtraction: what a plan asks, less what the store holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orchestrator.errors import UserError
from orchestrator.units import Held, Unit, Work, provider

__all__ = ["chain_steps", "work_left"]

_NOTHING = Held()


def work_left(units: Iterable[Unit], held: Mapping[str, Held]) -> dict[str, Work]:
    """What is left of each unit, by name. Teachers and targets are only wanted by students that are
    not done: a finished sweep whose snapshots were deleted makes none again."""
    units = list(units)
    work = {unit.name: _student(unit, held) for unit in units if unit.kind == "student"}
    wanted = _wanted(units, work, "student")
    for unit in units:
        if unit.kind == "targets":
            work[unit.name] = _targets(unit, held, wanted)
    wanted |= _wanted(units, work, "targets")
    for unit in units:
        if unit.kind == "teacher":
            work[unit.name] = _teacher(unit, held.get(unit.name, _NOTHING), wanted)
    _block(units, work)
    return {unit.name: work[unit.name] for unit in units}


def _block(units: Iterable[Unit], work: dict[str, Work]) -> None:
    """Marks what waits for presets that are known to fail."""
    lost = {
        unit.snapshot_token(preset)
        for unit in units
        if unit.kind == "teacher"
        for preset in work[unit.name].unreachable
    }
    for kind in ("targets", "student"):  # targets first: students wait for them
        for unit in units:
            if unit.kind == kind and work[unit.name].is_left and lost.intersection(unit.needs):
                work[unit.name] = Work(action="blocked")
                lost.update(unit.provides)


def _wanted(units: Iterable[Unit], work: Mapping[str, Work], kind: str) -> set[str]:
    return {
        token
        for unit in units
        if unit.kind == kind and work[unit.name].is_left
        for token in unit.needs
    }


def _student(unit: Unit, held_by: Mapping[str, Held]) -> Work:
    horizon = unit.request.horizon
    held = held_by.get(unit.name)
    if held is None:
        return Work(action="new", steps=horizon)
    if not held.complete:
        start = held.checkpoint_before(horizon)
        action = "resume" if held.checkpoints else "new"
        return Work(action=action, from_step=start, steps=horizon - start)  # type: ignore[arg-type]
    missing = tuple(
        step
        for step in unit.request.evaluate_at
        if step <= held.horizon and step not in held.evaluated
    )
    if held.horizon < horizon:
        start = held.checkpoint_before(min((*missing, held.horizon)))
        return Work(action="extend", from_step=start, steps=horizon - start, missing_steps=missing)
    if missing:
        start = held.checkpoint_before(min(missing))
        steps = max(missing) - start
        return Work(action="replay", from_step=start, steps=steps, missing_steps=missing)
    return Work(action="done")


def _targets(unit: Unit, held: Mapping[str, Held], wanted: set[str]) -> Work:
    if unit.name in held and held[unit.name].complete:
        return Work(action="done")
    return Work(action="new" if unit.name in wanted else "unneeded")


def _teacher(unit: Unit, held: Held, wanted: set[str]) -> Work:
    request = unit.request
    _refuse_other_rule(unit, held)
    absent = [preset for preset in request.presets if preset not in held.presets]
    needed = [preset for preset in absent if unit.snapshot_token(preset) in wanted]
    if not needed:
        return Work(action="unneeded" if absent else "done")
    # Only presets that the search was for are known to fail: others were never looked for.
    searched = held.complete and held.searched_to >= request.horizon
    unreachable = tuple(preset for preset in needed if searched and preset in held.missing)
    missing = tuple(preset for preset in needed if preset not in unreachable)
    if not missing:
        return Work(action="exhausted", unreachable=unreachable)
    return _search(request.horizon, held, missing, unreachable)


def _search(
    horizon: int, held: Held, missing: tuple[float, ...], unreachable: tuple[float, ...]
) -> Work:
    passed = held.complete and min(missing) < max(held.presets, default=0.0)
    # A preset that was passed lies after the snapshot below it.
    below = [snapshot.step for preset, snapshot in held.presets.items() if preset < min(missing)]
    start = held.checkpoint_before(max(below, default=0) if passed else horizon)
    if held.complete:
        action = "replay" if passed else "extend"
    else:
        action = "resume" if held.checkpoints else "new"
    return Work(
        action=action,  # type: ignore[arg-type]
        from_step=start,
        steps=horizon - start,
        missing_presets=missing,
        unreachable=unreachable,
    )


def _refuse_other_rule(unit: Unit, held: Held) -> None:
    """A snapshot does not say which rule found it, so a store keeps to one rule a teacher."""
    request = unit.request
    asked = (request.validate_every, request.screen)
    if held.presets and asked != (held.validate_every, held.screen):
        raise UserError(
            f"{unit.name} was validated with validate_every {held.validate_every} and screen "
            f"{held.screen}, and is now asked with {request.validate_every} and {request.screen}",
            "keep teacher.validate_every and teacher.screen, or use another store",
        )


def chain_steps(units: Iterable[Unit], work: Mapping[str, Work]) -> dict[str, int]:
    """Steps from the start of each unit to the end of the longest chain behind it: what is worth
    starting first. A teacher counts with the limit of its search."""
    behind: dict[str, int] = {}
    steps: dict[str, int] = {}
    # Students wait for targets, targets for teachers: walked from the far end.
    order = {"student": 0, "targets": 1, "teacher": 2}
    for unit in sorted(units, key=lambda unit: order[unit.kind]):
        own = work[unit.name].steps + behind.get(unit.name, 0)
        steps[unit.name] = own
        for token in unit.needs:
            behind[provider(token)] = max(behind.get(provider(token), 0), own)
    return steps
