"""The paper's numbers beside a table: CSV files that a report item's `reference` names.

A row is one printed number. Its columns: settings by their dotted (or short) names and the
pseudo-fields `metric` and `step`, which are the coordinates of its cell; `kind` (mean or gain),
`value`, `std`, `review_value`, `review_std`, `status` (printed or partial) and `note`. An empty
coordinate means that the field does not apply (a teacher under strategy A); in a row of kind gain
the compared field is left empty.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dashboards.layout import PSEUDO_FIELDS, Contrast, Reference
from orchestrator.errors import Problem, nearest
from orchestrator.fieldtypes import plain
from orchestrator.settings import ALIASES, FIELDS, UNREPORTED, BadValueError, canonical_name

__all__ = ["ReferenceFile", "read_references"]

_NUMBERS = ("value", "std", "review_value", "review_std")
_OWN = ("kind", *_NUMBERS, "status", "note")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True)
class ReferenceFile:
    """lines: of each reference in the file. problems: of the rows that are left out."""

    path: Path
    references: tuple[Reference, ...] = ()
    lines: tuple[int, ...] = ()
    problems: list[Problem] = field(default_factory=list)

    def problem(self, message: str, index: int) -> Problem:
        """Something wrong with the reference at `index`."""
        return Problem(file=str(self.path), key="(row)", line=self.lines[index], message=message)

    def means(self) -> ReferenceFile:
        """Without the Gains."""
        kept = [index for index, one in enumerate(self.references) if one.kind == "mean"]
        return ReferenceFile(
            self.path,
            tuple(self.references[index] for index in kept),
            tuple(self.lines[index] for index in kept),
            self.problems,
        )


def read_references(path: Path, contrast: Contrast | None) -> ReferenceFile:
    """Nothing is raised: what is wrong stands in `problems`.

    contrast: of the item's Gain, whose field rows of kind gain leave empty; None: not known, and
    such rows may leave any field empty.
    """
    try:
        # Excel writes a byte-order mark
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        return _unreadable(path, f"cannot be read: {error.strerror or error}")
    except UnicodeDecodeError as error:
        return _unreadable(path, f"is not UTF-8 (byte {error.start})")
    try:
        rows = list(_rows(text))
    except csv.Error as error:
        return _unreadable(path, f"is not CSV: {error}")
    if not rows:
        return _unreadable(path, "is empty; its first line names the columns")
    return _Reader(path, contrast).read(rows)


def _unreadable(path: Path, message: str) -> ReferenceFile:
    return ReferenceFile(path, problems=[Problem(file=str(path), key="(file)", message=message)])


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every line that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    for row in reader:
        if row:
            yield reader.line_num, [cell.strip() for cell in row]


class _BadCellError(Exception):
    """column, message: what is wrong with one cell of a row."""

    def __init__(self, column: str, message: str, like: str | None = None) -> None:
        super().__init__(column, message, like)
        self.column = column
        self.message = message
        self.like = like


class _Reader:
    def __init__(self, path: Path, contrast: Contrast | None) -> None:
        self.path = path
        self.contrast = contrast
        self.problems: list[Problem] = []
        self.columns: list[str] = []

    def read(self, rows: Sequence[tuple[int, list[str]]]) -> ReferenceFile:
        (line, header), *body = rows
        self.columns = self._header(line, header)
        read: list[tuple[int, Reference]] = []
        for line, cells in body if not self.problems else []:
            try:
                read.append((line, self._reference(cells)))
            except _BadCellError as error:
                self._add(line, error.column, error.message, error.like)
        references, lines = tuple(r for _, r in read), tuple(n for n, _ in read)
        return ReferenceFile(self.path, references, lines, self.problems)

    def _header(self, line: int, header: list[str]) -> list[str]:
        names = [self._column(line, name) for name in header]
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            self._add(line, name, "two columns mean this field")
        if not {"value", "review_value"} & set(names):
            self._add(line, "(file)", "has no column `value`")
        return names

    def _column(self, line: int, name: str) -> str:
        full = name if name in (*_OWN, *PSEUDO_FIELDS) else canonical_name(name)
        if full is None:
            known = [*_OWN, *PSEUDO_FIELDS, *FIELDS, *ALIASES]
            self._add(line, name or "(column)", "unknown column", nearest(name, known))
        elif full == "seed" or full in UNREPORTED:
            self._add(line, name, "cannot tell cells apart: leave the column out")
        return full or name

    def _reference(self, cells: list[str]) -> Reference:
        if len(cells) != len(self.columns):
            message = f"has {len(cells)} cells, the first line names {len(self.columns)} columns"
            raise _BadCellError("(row)", message)
        row = dict(zip(self.columns, cells, strict=True))
        numbers = {name: _number(name, row.get(name, "")) for name in _NUMBERS}
        texts = {name: row[name] for name in ("kind", "status") if row.get(name)}
        coordinates = {name: text for name, text in row.items() if name not in _OWN}
        if texts.get("kind") == "gain":
            self._leave_out_the_contrast(coordinates)
        raw = {"at": {name: _coordinate(name, text) for name, text in coordinates.items()}}
        try:
            return Reference.model_validate(raw | numbers | texts | {"note": row.get("note", "")})
        except ValidationError as error:
            first = error.errors()[0]
            column = str(first["loc"][0]) if first["loc"] else "(row)"
            raise _BadCellError(column, _said(first["msg"], row.get(column))) from None

    def _leave_out_the_contrast(self, coordinates: dict[str, str]) -> None:
        if self.contrast is None:
            return
        text = coordinates.pop(self.contrast.field, "")
        if text:
            message = f"is {text!r}; a gain compares two values of it: leave it empty"
            raise _BadCellError(self.contrast.field, message)

    def _add(self, line: int, key: str, message: str, like: str | None = None) -> None:
        self.problems.append(
            Problem(file=str(self.path), key=key, line=line, message=message, nearest=like)
        )


def _number(name: str, text: str) -> float | None:
    if text and not _NUMBER.fullmatch(text):
        raise _BadCellError(name, f"is {text!r}, expected a number as printed, or nothing")
    return float(text) if text else None


def _coordinate(name: str, text: str) -> Any:
    if not text:
        return None
    if name == "metric":
        return text
    if name == "step":
        if not text.isdecimal() or int(text) < 1:
            raise _BadCellError(name, f"is {text!r}, expected a whole number of at least 1")
        return int(text)
    try:
        return plain(FIELDS[name].check(yaml.safe_load(text)))
    except BadValueError as error:
        raise _BadCellError(name, error.message, error.nearest) from None
    except yaml.YAMLError:
        raise _BadCellError(name, f"is {text!r}, which is not a YAML value") from None


def _said(message: str, text: str | None) -> str:
    message = message.removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"is {text!r}: {message}" if text else message
