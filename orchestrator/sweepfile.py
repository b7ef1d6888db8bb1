"""The shape of a sweep file around its settings, and pydantic's errors in our words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.errors import Problem, nearest
from orchestrator.yamlsource import KeyPath, Source

__all__ = [
    "DataLocation",
    "GridFile",
    "GroupFile",
    "Section",
    "SweepFile",
    "SweepName",
    "problems_of",
    "read_sections",
]

SweepName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=80)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DataLocation(Section):
    """Where a data set lies. Never part of a key: the content's fingerprint is."""

    path: str | None = None
    """Folder of its files, relative to this one; null: what the store holds, or `digits`."""
    image_size: Annotated[int, Field(ge=1)] | None = None
    """Pixels that images are resized to when they are decoded; null: as they are."""
    encoded: bool = False
    """Keep the pictures encoded and decode them while training, whatever their sizes; so it is
    without being asked for imagenet, and where the decoded images would exceed 8 GiB."""
    shorter_side: Annotated[int, Field(ge=1)] | None = None
    """Of encoded pictures: larger ones are resized to it once, smaller ones stay as they are."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] | None = None
    """Of encoded pictures: all are encoded again as JPEG; null: only those that are resized."""
    subset: bool = False
    """These are not all pictures of imagenet, and that is meant."""
    image_column: str | None = None
    """Column of Parquet files with the images; null: `image` or `img`."""
    label_column: str | None = None
    """Column of Parquet files with the labels; null: `label` or `fine_label`."""


class GridFile(Section):
    """One grid: every combination of its axes, less the excluded ones."""

    name: str = ""
    axes: dict[str, list[Any]] = Field(default_factory=dict)
    """Lists of values by field; the last varies fastest."""
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    """Combinations left out: a value or a list of values per field."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of this grid alone."""
    priority: Annotated[int, Field(strict=True)] | None = None
    """Runs of a higher one go first; null: the sweep's. No part of a run."""


class SweepFile(Section):
    """A sweep: which runs are wanted and what is to be reported of them."""

    name: SweepName
    title: str = ""
    description: str = ""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings that hold for every grid."""
    data: dict[str, DataLocation] = Field(default_factory=dict)
    """Where data sets lie, by name."""
    priority: Annotated[int, Field(strict=True)] = 0
    """Runs of a higher one go first; a grid may have its own. No part of a run."""
    grids: list[Any] = Field(default_factory=list)
    """The sweep is the union of its grids; none: the one point that `set` describes."""
    scale: Any = None
    """Makes the sweep a pilot: a scale file, relative to this one, or its keys."""
    report: list[Any] = Field(default_factory=list)


class GroupFile(Section):
    """A group: several sweeps under one name, with one report over all of them."""

    name: SweepName
    title: str = ""
    description: str = ""
    include: Annotated[list[str], Field(min_length=1)]
    """Sweep files and groups, relative to this file; each stands for itself."""
    scale: Any = None
    """Makes every sweep of the group a pilot: a scale file, or its keys."""
    report: list[Any] = Field(default_factory=list)
    """Claims only: tables and figures belong to the sweeps."""


def read_sections(
    model: type[BaseModel], raw: object, path: KeyPath, source: Source
) -> tuple[dict[str, Any], list[Problem]]:
    """Checks each key of `raw` on its own, so that one bad section hides no problem in the next.

    Returns the valid sections (defaults for the others) and the problems.
    """
    if not isinstance(raw, Mapping):
        return read_sections(model, {}, path, source)[0], [
            source.problem(path, f"is {raw!r}, expected a mapping", value=raw)
        ]
    sections: dict[str, Any] = {}
    problems = [
        _unknown_key(source, (*path, key), model.model_fields)
        for key in raw
        if key not in model.model_fields
    ]
    for name, field in model.model_fields.items():
        sections[name] = (
            None if field.is_required() else field.get_default(call_default_factory=True)
        )
        if name not in raw:
            if field.is_required():
                problems.append(source.problem(path, f"has no key {name!r}", f"add `{name}: …`"))
            continue
        annotation: Any = Annotated[field.annotation, field]
        try:
            sections[name] = TypeAdapter(annotation).validate_python(raw[name])
        except ValidationError as error:
            problems += problems_of(
                error, raw[name], (*path, name), source, DataLocation.model_fields
            )
    return sections, problems


def problems_of(
    error: ValidationError,
    raw: object,
    path: KeyPath,
    source: Source,
    names: Iterable[str],
    *,
    tagged: bool = False,
) -> list[Problem]:
    """Each of pydantic's errors with its line. names: valid keys, for the nearest one. tagged: the
    paths start with a union's tag, which no file has."""
    problems: list[Problem] = []
    for item in _without_echoes(error, names):
        at = (*path, *_real_location(item["loc"][tagged:], raw, item["type"]))
        if item["type"] == "extra_forbidden":
            problems.append(_unknown_key(source, at, names))
            continue
        value = None if item["type"] == "missing" else item["input"]
        context = item.get("ctx", {})
        choices = re.findall(
            r"'([^']+)'", context.get("expected_tags", context.get("expected", ""))
        )
        problems.append(
            source.problem(
                at,
                _message(item["msg"], value),
                value=value,
                like=nearest(context.get("tag", value), choices),
            )
        )
    return problems


def _without_echoes(error: ValidationError, names: Iterable[str]) -> Iterator[ErrorDetails]:
    """Leaves out keys that are only missing because they were misspelt, and lists that are only too
    short because their elements were refused."""
    unknown = [item["loc"] for item in error.errors() if item["type"] == "extra_forbidden"]
    misspelt = {(*loc[:-1], nearest(loc[-1], names)) for loc in unknown}
    above = {item["loc"][:end] for item in error.errors() for end in range(len(item["loc"]))}
    for item in error.errors():
        echoes = misspelt if item["type"] == "missing" else above
        if item["type"] not in ("missing", "too_short") or item["loc"] not in echoes:
            yield item


def _message(text: str, value: object) -> str:
    text = text.removeprefix("Value error, ")
    # pydantic names its classes; a person writes YAML.
    text = re.sub(r"valid dictionary( or instance of \w+)?", "mapping", text)
    text = text[:1].lower() + text[1:]
    return text if value is None or isinstance(value, Mapping) else f"is {value!r}: {text}"


def _real_location(location: Iterable[int | str], raw: object, kind: str) -> KeyPath:
    """pydantic's path as far as the file has it; a missing key is named too."""
    path: list[str | int] = []
    for part in location:
        inside = isinstance(raw, Mapping) and part in raw
        within = isinstance(raw, list | tuple) and isinstance(part, int) and part < len(raw)
        if inside or within:
            raw = raw[part]  # type: ignore[index]
            path.append(part)
    last = list(location)[-1:]
    return (*path, *last) if kind == "missing" else tuple(path)


def _unknown_key(source: Source, path: KeyPath, names: Iterable[str]) -> Problem:
    names = list(names)
    remedy = f"valid keys: {', '.join(names)}"
    like = nearest(path[-1], names)
    return source.problem(path, "unknown key", "" if like else remedy, like=like)
