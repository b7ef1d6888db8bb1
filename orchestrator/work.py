"""Subtraction: what a plan asks, less what the store holds.

Walked from the far end: a unit that others wait for is only wanted by those that are not done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orchestrator.errors import UserError
from orchestrator.units import ARTEFACTS, RANKS, Held, Unit, Work, provider

__all__ = ["chain_steps", "work_left"]

_NOTHING = Held()


def work_left(
    units: Iterable[Unit], held: Mapping[str, Held], asked: Iterable[str] = ()
) -> dict[str, Work]:
    """What is left of each unit, by name. Teachers, targets and the weights that students keep are
    only wanted by units that are not done: a finished sweep whose snapshots were deleted makes none
    again. asked: tokens that somebody wants besides (the presets at which pilots are measured)."""
    units = list(units)
    work: dict[str, Work] = {}
    wanted: set[str] = set(asked)
    for rank in reversed(RANKS):
        these = [unit for unit in units if unit.rank == rank]
        for unit in these:
            work[unit.name] = _work_of(unit, held, wanted)
        wanted |= _wanted(these, work)
    _block(units, work)
    return {unit.name: work[unit.name] for unit in units}


def _work_of(unit: Unit, held: Mapping[str, Held], wanted: set[str]) -> Work:
    if unit.kind in ARTEFACTS:
        return _artefact(unit, held, wanted)
    if unit.kind == "teacher":
        return _teacher(unit, held.get(unit.name, _NOTHING), wanted)
    return _to_horizon(unit, held.get(unit.name), wanted)


def _block(units: Iterable[Unit], work: dict[str, Work]) -> None:
    """Marks what waits for presets that are known to fail."""
    lost = {
        unit.snapshot_token(preset)
        for unit in units
        if unit.kind == "teacher"
        for preset in work[unit.name].unreachable
    }
    for rank in RANKS[1:]:
        for unit in units:
            left = work[unit.name]
            if unit.rank == rank and left.is_left and lost.intersection(unit.needs):
                work[unit.name] = Work(action="blocked")
                kept = unit.kind == "student"  # what it kept before is there all the same
                lost.update(
                    map(unit.weights_token, left.missing_weights) if kept else unit.provides
                )


def _wanted(units: Iterable[Unit], work: Mapping[str, Work]) -> set[str]:
    return {token for unit in units if work[unit.name].is_left for token in unit.needs}


def _to_horizon(unit: Unit, held: Held | None, wanted: set[str]) -> Work:
    """Of a student or a probe."""
    horizon = unit.request.horizon
    weights = _missing_weights(unit, held, wanted)
    if not unit.answers and not weights:
        if held is not None and not held.complete:  # all it gives is there, but for its result
            return _resumed(held, horizon, weights)
        is_there = held is not None and held.horizon >= horizon
        return Work(action="done" if is_there else "unneeded")
    if held is None:
        return Work(action="new", steps=horizon, missing_weights=weights)
    if not held.complete:
        return _resumed(held, horizon, weights)
    missing = tuple(
        step
        for step in unit.request.evaluate_at
        if step <= held.horizon and step not in held.evaluated
    )
    unseen = (*missing, *(step for step in weights if step <= held.horizon))
    if held.horizon < horizon:
        action, end = "extend", horizon
        start = held.checkpoint_before(min((*unseen, horizon)))  # an extension may be under way
    elif unseen:
        action, end = "replay", max(unseen)
        start = held.checkpoint_before(min(unseen))
    else:
        return Work(action="done")
    return Work(
        action=action,  # type: ignore[arg-type]
        from_step=start,
        steps=end - start,
        missing_steps=missing,
        missing_weights=weights,
    )


def _missing_weights(unit: Unit, held: Held | None, wanted: set[str]) -> tuple[int, ...]:
    kept = held.kept if held is not None else frozenset()
    return tuple(
        step
        for step in unit.request.keep_weights_at
        if step not in kept and unit.weights_token(step) in wanted
    )


def _resumed(held: Held, horizon: int, weights: tuple[int, ...]) -> Work:
    start = held.checkpoint_before(min((*weights, horizon)))
    return Work(
        action="resume" if held.checkpoints else "new",
        from_step=start,
        steps=horizon - start,
        missing_weights=weights,
    )


def _artefact(unit: Unit, held: Mapping[str, Held], wanted: set[str]) -> Work:
    if unit.name in held and held[unit.name].complete:
        return Work(action="done")
    return Work(action="new" if unit.name in wanted else "unneeded")


def _teacher(unit: Unit, held: Held, wanted: set[str]) -> Work:
    request = unit.request
    _refuse_other_rule(unit, held)
    absent = [
        preset
        for preset in request.presets
        if preset not in held.presets or preset in held.weightless
    ]
    needed = [preset for preset in absent if unit.snapshot_token(preset) in wanted]
    if not needed and not absent and not held.complete:
        return _finish_search(held)
    if not needed:
        return Work(action="unneeded" if absent else "done")
    # Only presets that the search was for are known to fail: others were never looked for.
    searched = held.complete and held.searched_to >= request.horizon
    unreachable = tuple(preset for preset in needed if searched and preset in held.missing)
    missing = tuple(preset for preset in needed if preset not in unreachable)
    if not missing:
        return Work(action="exhausted", unreachable=unreachable)
    return _search(request.horizon, held, missing, unreachable)


def _finish_search(held: Held) -> Work:
    """Of a teacher that has all its presets and no result: a kill came before it, or it was damaged
    (with its rows, which are made again then)."""
    end = max((snapshot.step for snapshot in held.presets.values()), default=0)
    start = held.checkpoint_before(end)
    return Work(action="resume", from_step=start, steps=end - start)


def _search(
    horizon: int, held: Held, missing: tuple[float, ...], unreachable: tuple[float, ...]
) -> Work:
    passed = held.complete and min(missing) <= max(held.presets, default=0.0)
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
    for unit in sorted(units, key=lambda unit: -unit.rank):  # from the far end
        own = work[unit.name].steps + behind.get(unit.name, 0)
        steps[unit.name] = own
        for token in unit.needs:
            behind[provider(token)] = max(behind.get(provider(token), 0), own)
    return steps
