"""The `report:` list: dashboards' models validate it; names and values get one spelling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from dashboards.layout import PSEUDO_FIELDS, Contrast, FigureItem, ReportItem, TableItem
from orchestrator.errors import Problem
from orchestrator.fieldtypes import plain
from orchestrator.settings import FIELDS, BadValueError, canonical_name
from orchestrator.sweepfile import problems_of
from orchestrator.yamlsource import KeyPath, Source, dotted

__all__ = ["read_report"]

_ITEM: TypeAdapter[TableItem | FigureItem] = TypeAdapter(ReportItem)
_LISTS = ("rows", "columns")
_SINGLES = ("x", "hue", "style", "panel")
_CONTRASTS = ("ratio", "paired")


def read_report(
    raw: list[Any], source: Source
) -> tuple[tuple[TableItem | FigureItem, ...], list[Problem]]:
    """The valid items and the problems of the others."""
    items: list[TableItem | FigureItem] = []
    problems: list[Problem] = []
    for index, entry in enumerate(raw):
        path: KeyPath = ("report", index)
        try:
            item = _ITEM.validate_python(_one_spelling(entry))
        except ValidationError as error:
            problems += problems_of(error, entry, path, source, _keys(entry), tagged=True)
            continue
        if any(item.name == other.name for other in items):
            message = f"{item.name!r} is the name of an earlier item"
            at = (*path, "table" if isinstance(item, TableItem) else "figure")
            remedy = "give each table and figure a name of its own"
            problems.append(_problem(source, at, message, remedy))
        items.append(item)
    return tuple(items), problems


def _keys(entry: object) -> list[str]:
    is_figure = isinstance(entry, Mapping) and "figure" in entry
    models: list[type[BaseModel]] = [FigureItem if is_figure else TableItem, Contrast]
    return [name for model in models for name in model.model_fields]


def _problem(source: Source, at: KeyPath, message: str, remedy: str) -> Problem:
    return Problem(
        file=source.file, key=dotted(at), line=source.line(at), message=message, remedy=remedy
    )


def _one_spelling(entry: object) -> object:
    """Short field names as dotted ones, values as plan.json will have them. What is wrong stays as
    it is, for the models to refuse."""
    if not isinstance(entry, Mapping):
        return entry
    item = dict(entry)
    for key in _LISTS:
        if isinstance(item.get(key), list):
            item[key] = [_full(name) for name in item[key]]
    for key in _SINGLES:
        if key in item:
            item[key] = _full(item[key])
    for key in _CONTRASTS:
        if isinstance(item.get(key), Mapping):
            item[key] = _contrast(item[key])
    if isinstance(item.get("where"), Mapping):
        item["where"] = {
            _full(name): _values(_full(name), value) for name, value in item["where"].items()
        }
    return item


def _contrast(raw: Mapping[str, Any]) -> dict[str, Any]:
    name = _full(raw.get("field"))
    sides = {key: _value(name, raw[key]) for key in ("of", "to") if key in raw}
    return {**raw, **({"field": name} if "field" in raw else {}), **sides}


def _full(name: Any) -> Any:
    if not isinstance(name, str) or name in PSEUDO_FIELDS:
        return name
    return canonical_name(name) or name


def _values(name: Any, raw: Any) -> Any:
    return [_value(name, one) for one in raw] if isinstance(raw, list) else _value(name, raw)


def _value(name: Any, raw: Any) -> Any:
    if name not in FIELDS:
        return raw
    try:
        return plain(FIELDS[name].check(raw))
    except BadValueError:
        return raw
