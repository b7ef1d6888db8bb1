"""`--set field=value` and `--limit field=value,value`: a sweep changed from the command line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from dashboards.layout import ClaimItem
from orchestrator.checks import check_grids
from orchestrator.errors import Problem, SpecError, nearest
from orchestrator.fieldtypes import Value, plain
from orchestrator.grid import Condition, Grid, Place, with_implied
from orchestrator.reportpoints import item_points
from orchestrator.settings import (
    FIELDS,
    INDEX,
    NUM_REPORTED,
    BadValueError,
    canonical_name,
    nearest_name,
)
from orchestrator.spec import Sweep
from trainers.data.catalogue import OFFICIAL
from trainers.data.info import DatasetInfo

__all__ = ["apply_overrides", "limit_sweeps", "parse_limit"]

_SET = "--set"
_LIMIT = "--limit"

_EXECUTION = ("training.precision", "teacher.screen")
"""Fields of a report that the paper leaves open: how its experiment is computed, not which one."""


def apply_overrides(
    sweep: Sweep, options: Sequence[str], infos: Mapping[str, DatasetInfo] | None = None
) -> Sweep:
    """The sweep with fields set, in every grid; a scale comes after them, and a group has none.
    Evaluations and report steps beyond a horizon made shorter are dropped. Raises SpecError with
    every problem of every option."""
    problems: list[Problem] = []
    values: dict[str, Value] = {}
    for option in options:
        try:
            name, text = _split(option, _SET)
            if name in sweep.axes:
                raise _error(
                    _SET,
                    name,
                    f"is an axis of {sweep.file}",
                    text,
                    remedy=(f"choose among its values with `{_LIMIT} '{name}={text}'`"),
                )
            values[name] = _checked(_SET, name, _parsed(_SET, name, text))
        except SpecError as error:
            problems += error.problems
    if sweep.include and not problems:
        return sweep
    grids = tuple(_with(grid, values) for grid in sweep.grids)
    infos = sweep.layout_infos(OFFICIAL if infos is None else infos)
    known = {*infos, *sweep.data}
    if values.get("dataset") not in {*known, None}:
        message = "no such data set is known to this sweep"
        like = nearest(values["dataset"], known)
        problems.append(_problem(_SET, "dataset", message, values["dataset"], like))
    if not problems:
        problems = check_grids(grids, infos, shortened=True)
    if problems:
        raise SpecError(problems)
    changed = dataclasses.replace(sweep, grids=grids, overrides=_departures(sweep, values))
    if problems := list(_emptied(sweep, changed, values)):
        raise SpecError(problems)
    return changed


def _emptied(sweep: Sweep, changed: Sweep, values: Mapping[str, Value]) -> Iterator[Problem]:
    """Tables and figures that ask for a value which an option replaced: they would stay empty."""
    for item in sweep.report:
        if isinstance(item, ClaimItem) or not (names := values.keys() & item.where.keys()):
            continue
        if item_points(item, sweep.points) and not item_points(item, changed.points):
            wanted = ", ".join(f"{name} {item.where[name]}" for name in sorted(names))
            yield _problem(
                _SET,
                ", ".join(sorted(names)),
                f"leaves {item.name} of {sweep.file} empty, which asks for {wanted}",
                remedy=f"choose among the file's points with `{_LIMIT}`, or change a copy of it",
            )


def _departures(sweep: Sweep, values: Mapping[str, Value]) -> tuple[str, ...]:
    """Those of `values` that make another experiment of the sweep than its file describes; in the
    settings' order, `field=value` each."""
    experiment = {*list(FIELDS)[:NUM_REPORTED], "probe_steps"} - {*_EXECUTION}
    return tuple(
        f"{name}={json.dumps(plain(values[name]))}"
        for name, slot in INDEX.items()
        if name in values
        and name in experiment
        and any(grid.base[slot] != values[name] for grid in sweep.grids)
    )


def _with(grid: Grid, values: Mapping[str, Value]) -> Grid:
    base = list(grid.base)
    for name, value in values.items():
        base[INDEX[name]] = value
    places = {**grid.places, **{name: Place(_SET, name) for name in values}}
    return dataclasses.replace(grid, base=with_implied(tuple(base), places), places=places)


def parse_limit(options: Iterable[str]) -> Condition:
    """`["strategy=C,B", "teacher.accuracy=60"]` as a condition; all of them must hold."""
    condition: dict[str, tuple[Value, ...]] = {}
    problems: list[Problem] = []
    for option in options:
        try:
            name, text = _split(option, _LIMIT)
            values = _limit_values(name, text)
            condition[name] = (*condition.get(name, ()), *values)
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    return condition


def _limit_values(name: str, text: str) -> tuple[Value, ...]:
    whole = _parsed(_LIMIT, name, text)
    # A mapping or a bracketed list holds commas of its own.
    parts = (
        [whole]
        if isinstance(whole, Mapping)
        else whole
        if isinstance(whole, list)
        else [_parsed(_LIMIT, name, part.strip()) for part in text.split(",")]
    )
    return tuple(None if part is None else _checked(_LIMIT, name, part) for part in parts)


def limit_sweeps(sweeps: Sequence[Sweep], condition: Condition) -> list[Sweep]:
    """The sweeps with only the points that fit; sweeps without any are left out. Raises SpecError
    for a value that no point of any sweep has, and when nothing is left."""
    problems = []
    for name, values in condition.items():
        slot = INDEX[name]
        present = {point[slot] for sweep in sweeps for point in sweep.points}
        shown = sorted({str(plain(value)) for value in present})
        for value in values:
            if value not in present:
                message = f"no point has {name} {plain(value)!r} (there are {', '.join(shown)})"
                problems.append(_problem(_LIMIT, name, message, value, nearest(value, shown)))
    limited = [dataclasses.replace(sweep, limit={**sweep.limit, **condition}) for sweep in sweeps]
    limited = [sweep for sweep in limited if sweep.points]
    if not limited and not problems:
        problems.append(
            _problem(_LIMIT, ", ".join(condition), "no point fits all of these at once")
        )
    if problems:
        raise SpecError(problems)
    return limited


def _split(option: str, file: str) -> tuple[str, str]:
    name, equals, text = option.partition("=")
    if not equals:
        raise _error(file, option, "has no value", None, remedy=f"write {file} {option}=value")
    known = canonical_name(name.strip())
    if known is None:
        raise _error(file, name, "unknown setting", None, like=nearest_name(name))
    return known, text.strip()


def _parsed(file: str, name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise _error(file, name, "is not a YAML value", text) from None


def _checked(file: str, name: str, raw: Any) -> Value:
    try:
        return FIELDS[name].check(raw)
    except BadValueError as error:
        raise _error(
            file, name, error.message, raw, like=error.nearest, remedy=error.remedy
        ) from None


def _error(
    file: str, key: str, message: str, value: object, *, like: str | None = None, remedy: str = ""
) -> SpecError:
    return SpecError([_problem(file, key, message, value, like, remedy)])


def _problem(
    file: str,
    key: str,
    message: str,
    value: object = None,
    like: str | None = None,
    remedy: str = "",
) -> Problem:
    return Problem(file=file, key=key, message=message, value=value, nearest=like, remedy=remedy)
