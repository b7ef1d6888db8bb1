"""Settings, axes and conditions as a file writes them: names resolved, every value checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import Problem
from orchestrator.fieldtypes import Value
from orchestrator.grid import Condition, Place
from orchestrator.settings import (
    FIELDS,
    GROUPS,
    BadValueError,
    canonical_name,
    nearest_name,
)
from orchestrator.yamlsource import KeyPath, Source, dotted

__all__ = ["SettingsReader", "Written"]


@dataclass
class Written:
    """Checked values by field, and where each stands."""

    values: dict[str, Value] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    value_places: dict[tuple[str, Value], Place] = field(default_factory=dict)


class SettingsReader:
    """Collects the problems of one file's settings in `problems`."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[Problem] = []

    def read(self, raw: Mapping[str, Any], path: KeyPath) -> tuple[Written, list[Problem]]:
        """A `set:` mapping: nested, dotted, or with short names."""
        written = Written()
        for name, value, at in self._leaves(raw, "", path):
            if name in written.places:
                first = written.places[name]
                message = f"sets {name}, which {first.key} (line {first.line}) sets too"
                self._add(at, message, value, remedy="keep one of the two")
                continue
            written.places[name] = self._place(at)
            self._check_into(written.values, name, value, at)
        return written, self.problems

    def read_axes(self, raw: Mapping[str, list[Any]], path: KeyPath) -> Written:
        """`axes:`: a list of values per field; a wrong value is a problem and left out."""
        written = Written()
        for key, values in raw.items():
            at = (*path, key)
            name = self._field(key, at)
            if name is None:
                continue
            if name in written.values:
                self._add(at, f"is a second axis of {name}", remedy="keep one of the two")
                continue
            written.places[name] = self._place(at)
            checked = self._axis(name, values, at, written)
            if (
                checked
            ):  # an axis that lost all its values would empty the grid: one problem is enough
                written.values[name] = checked
        return written

    def _axis(self, name: str, raw: list[Any], at: KeyPath, written: Written) -> tuple[Value, ...]:
        if not raw:
            self._add(at, "is an axis without values", remedy="give values, or leave the axis out")
        checked: dict[str, Value] = {}
        for index, value in enumerate(raw):
            spot = (*at, index)
            if not self._check_into(checked, name, value, spot):
                continue
            if (name, checked[name]) in written.value_places:
                self._add(spot, f"repeats the value {value!r}", value, remedy="leave it out")
            written.value_places.setdefault((name, checked[name]), self._place(spot))
        return tuple(value for _, value in written.value_places if _ == name)

    def read_conditions(
        self, raw: Sequence[Mapping[str, Any]], path: KeyPath
    ) -> tuple[Condition, ...]:
        """`exclude:`: fields with a value or a list of values each."""
        conditions = []
        for index, item in enumerate(raw):
            condition = self._condition(item, (*path, index))
            if condition:
                conditions.append(condition)
        return tuple(conditions)

    def _condition(self, raw: Mapping[str, Any], path: KeyPath) -> Condition:
        condition: dict[str, tuple[Value, ...]] = {}
        for key, values in raw.items():
            at = (*path, key)
            name = self._field(key, at)
            if name is None:
                return {}
            checked: list[Value] = []
            for value in values if isinstance(values, list) else [values]:
                one: dict[str, Value] = {}
                if not self._check_into(one, name, value, at):
                    return {}
                checked.append(one[name])
            condition[name] = tuple(checked)
        return condition

    def _leaves(
        self, raw: Mapping[str, Any], prefix: str, path: KeyPath
    ) -> Iterator[tuple[str, Any, KeyPath]]:
        for key, value in raw.items():
            at = (*path, key)
            name = f"{prefix}{key}"
            if name in GROUPS and isinstance(value, Mapping):
                yield from self._leaves(value, f"{name}.", at)
            elif (field_name := self._field(name, at)) is not None:
                yield field_name, value, at

    def _field(self, name: str, at: KeyPath) -> str | None:
        known = canonical_name(name)
        if known is not None:
            return known
        if name in GROUPS:
            fields = ", ".join(key for key in FIELDS if key.startswith(f"{name}."))
            self._add(at, "is a group of settings, expected one of its fields", remedy=fields)
        else:
            self._add(at, "unknown setting", like=nearest_name(name), remedy=_where_to_look(name))
        return None

    def _check_into(self, values: dict[str, Value], name: str, raw: Any, at: KeyPath) -> bool:
        try:
            values[name] = FIELDS[name].check(raw)
        except BadValueError as error:
            self._add(at, error.message, raw, like=error.nearest, remedy=error.remedy)
            return False
        return True

    def _place(self, at: KeyPath) -> Place:
        return Place(self.source.file, dotted(at), self.source.line(at))

    def _add(
        self,
        at: KeyPath,
        message: str,
        value: object = None,
        *,
        like: str | None = None,
        remedy: str = "",
    ) -> None:
        self.problems.append(self.source.problem(at, message, remedy, value=value, like=like))


def _where_to_look(name: str) -> str:
    return "" if nearest_name(name) else f"settings are: {', '.join(FIELDS)}"
