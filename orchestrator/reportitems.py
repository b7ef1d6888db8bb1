"""The `report:` list: dashboards' models validate it; names and values get one spelling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from dashboards.layout import (
    PSEUDO_FIELDS,
    ClaimItem,
    Contrast,
    FigureItem,
    ReportItem,
    TableItem,
)
from orchestrator.errors import Problem
from orchestrator.fieldtypes import plain
from orchestrator.referencefile import ReferenceFile, read_references
from orchestrator.settings import FIELDS, BadValueError, canonical_name
from orchestrator.sweepfile import problems_of
from orchestrator.yamlsource import KeyPath, Source

__all__ = ["read_report", "reference_file"]

Item = TableItem | FigureItem | ClaimItem

_ITEM: TypeAdapter[Item] = TypeAdapter(ReportItem)
_MODELS: dict[str, type[BaseModel]] = {
    "table": TableItem,
    "figure": FigureItem,
    "claim": ClaimItem,
}
_LISTS = ("rows", "columns", "each")
_SETTINGS = ("where", "of", "to")
_SINGLES = ("x", "y", "hue", "style", "panel")
_CONTRASTS = ("ratio", "paired")


def read_report(raw: list[Any], source: Source) -> tuple[tuple[Item, ...], list[Problem]]:
    """The valid items and the problems of the others."""
    items: list[Item] = []
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
            at = (*path, next(key for key in _MODELS if key in entry))
            remedy = "give each table, figure and claim a name of its own"
            problems.append(source.problem(at, message, remedy))
        if not isinstance(item, ClaimItem):
            item, wrong = _with_references(item, source, path)
            problems += [problem for problem in wrong if problem not in problems]
        items.append(item)
    return tuple(items), problems


def reference_file(item: TableItem | FigureItem, source: Source) -> ReferenceFile | None:
    """The file with the paper's numbers that `item` names, read; None when it names none."""
    if item.reference is None:
        return None
    path = Path(source.file).parent / item.reference
    if isinstance(item, TableItem):
        return read_references(path, item.ratio)
    return read_references(path, None).means()  # a figure draws a table's means, not its Gains


def _with_references(
    item: TableItem | FigureItem, source: Source, path: KeyPath
) -> tuple[TableItem | FigureItem, list[Problem]]:
    if item.references:
        message = "is written by the planner; name a CSV file under `reference` instead"
        return item, [source.problem((*path, "references"), message, "")]
    if item.reference is not None and not _stays_beside(source.file, item.reference):
        message = f"is {item.reference!r}, which lies outside of the sweep file's folder"
        remedy = "copy the file into the folder of the sweep file, or below it"
        return item, [source.problem((*path, "reference"), message, remedy)]
    file = reference_file(item, source)
    if file is None:
        return item, []
    if not file.path.exists():
        message = f"is {item.reference!r}: there is no file {file.path}"
        remedy = "give its path relative to the sweep file"
        return item, [source.problem((*path, "reference"), message, remedy)]
    return item.model_copy(update={"references": file.references}), file.problems


def _stays_beside(sweep_file: str, reference: str) -> bool:
    """Reports show what a reference file says, and a sweep file may be somebody else's: it names
    files of its own folder alone, wherever links lead."""
    folder = Path(sweep_file).parent.resolve()
    return (folder / reference).resolve().is_relative_to(folder)


def _keys(entry: object) -> list[str]:
    key = next((key for key in _MODELS if isinstance(entry, Mapping) and key in entry), "table")
    models: list[type[BaseModel]] = [_MODELS[key], Contrast]
    return [name for model in models for name in model.model_fields]


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
    if isinstance(item.get("heads"), Mapping):
        item["heads"] = {_full(name): text for name, text in item["heads"].items()}
    for key in _SETTINGS:
        if isinstance(item.get(key), Mapping):
            item[key] = {_full(name): _values(_full(name), v) for name, v in item[key].items()}
    if isinstance(item.get("tests"), list):  # a claim's
        item["tests"] = [_one_spelling(test) for test in item["tests"]]
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
