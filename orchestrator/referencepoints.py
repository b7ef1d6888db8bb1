"""Whether each of the paper's numbers has a cell of the items that read its file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dashboards.labels import Key, as_key
from dashboards.layout import FigureItem, Reference, TableItem
from dashboards.pairs import paired_coordinates
from dashboards.references import Target, fits, is_about, target
from orchestrator.errors import Problem
from orchestrator.fieldtypes import plain
from orchestrator.grid import Point
from orchestrator.referencefile import ReferenceFile
from orchestrator.reportitems import reference_file
from orchestrator.reportpoints import horizon_of, item_points
from orchestrator.settings import FIELDS, INDEX, NUM_REPORTED
from orchestrator.yamlsource import Source
from trainers.data.info import DatasetInfo

__all__ = ["check_references"]

Item = TableItem | FigureItem
_NAMES = tuple(FIELDS)[:NUM_REPORTED]


def check_references(
    report: Sequence[object],
    points: Sequence[Point],
    source: Source,
    infos: Mapping[str, DatasetInfo],
) -> list[Problem]:
    """Rows that fit no cell of any item that reads their file, or several of one item, and pairs of
    rows for one cell. Several items may share a file: a row is about those whose `where` leaves
    room for it. A figure may show a part of a table's numbers; where there is a table, it counts.
    """
    readers: dict[Path, list[Item]] = defaultdict(list)
    for item in report:
        if isinstance(item, TableItem | FigureItem) and item.references and item.reference:
            readers[Path(source.file).parent / item.reference].append(item)
    problems: list[Problem] = []
    for items in readers.values():
        tables = [item for item in items if isinstance(item, TableItem)]
        problems += _check_file(tables or items, points, source, infos)
    return problems


def _check_file(
    items: Sequence[Item],
    points: Sequence[Point],
    source: Source,
    infos: Mapping[str, DatasetInfo],
) -> list[Problem]:
    file = reference_file(items[0], source)
    if file is None or file.problems or not file.references:
        return []
    homeless = set(range(len(file.references)))
    problems: list[Problem] = []
    for item in items:
        targets = _targets(item, item_points(item, points), infos)
        for kind in ("mean", "gain"):
            indices = [i for i, one in enumerate(item.references) if _concerns(item, one, kind)]
            places = fits([_asked(item, item.references[i]) for i in indices], targets[kind])
            placed = dict(zip(indices, places, strict=True))
            homeless -= {index for index, found in placed.items() if found}
            problems += _shared_cells(file, placed) if not _is_curve(item) else []
    names = ", ".join(item.name for item in items)
    problems += [
        file.problem(f"{_shown(file.references[i])} fits no cell of {names}", i)
        for i in sorted(homeless)
    ]
    return problems


def _is_curve(item: Item) -> bool:
    return isinstance(item, FigureItem) and item.x == "step"


def _asked(item: Item, reference: Reference) -> Reference:
    """Without the step for a curve, which passes through all of them."""
    at = {name: value for name, value in reference.at.items() if name != "step"}
    return reference.model_copy(update={"at": at}) if _is_curve(item) else reference


def _concerns(item: Item, reference: Reference, kind: str) -> bool:
    return reference.kind == kind and is_about(item, reference)


def _shared_cells(file: ReferenceFile, placed: Mapping[int, list[int]]) -> list[Problem]:
    problems = []
    owner: dict[int, int] = {}
    for index, cells in placed.items():
        if len(cells) > 1:
            message = f"fits {len(cells)} cells: name the field that tells them apart"
            problems.append(file.problem(message, index))
        for cell in cells[:1]:
            first = owner.setdefault(cell, index)
            if first != index:
                message = f"is the second number for the cell of line {file.lines[first]}"
                problems.append(file.problem(message, index))
    return problems


def _targets(
    item: Item, points: Sequence[Point], infos: Mapping[str, DatasetInfo]
) -> dict[str, list[Target]]:
    """The table's cells and Gains as the report will have them, without a run."""
    cells: dict[tuple[Key, ...], tuple[Point, str, int]] = {}
    for point in points:
        for metric in item.labelled_metrics if isinstance(item, TableItem) else [item.metric]:
            for step in item.steps or (horizon_of(point, infos),):
                at = _coordinates(item, point, metric, step)
                cells.setdefault(at, (point, metric, step))
    means = [_target(item, at, *cell) for at, cell in cells.items()]
    if isinstance(item, FigureItem) or item.ratio is None:
        return {"mean": means, "gain": []}
    pairs = paired_coordinates(item.spanning, item.ratio, list(cells), "")
    without = item.ratio.field
    gains = [_target(item, at, *cells[of], without=without) for at, of, _ in pairs]
    return {"mean": means, "gain": gains}


def _coordinates(item: Item, point: Point, metric: str, step: int) -> tuple[Key, ...]:
    pseudo: dict[str, Key] = {"metric": metric, "step": float(step)}
    return tuple(
        pseudo[name] if name in pseudo else as_key(plain(point[INDEX[name]]))
        for name in item.spanning
    )


def _target(
    item: Item,
    at: tuple[Key, ...],
    point: Point,
    metric: str,
    step: int,
    without: str | None = None,
) -> Target:
    settings: dict[str, Any] = {name: plain(point[INDEX[name]]) for name in _NAMES}
    return target(settings, item.spanning, at, metric, step, without)


def _shown(reference: Reference) -> str:
    value = reference.value if reference.value is not None else reference.review_value
    where = ", ".join(f"{name} {at}" for name, at in reference.at.items() if at is not None)
    return f"{reference.kind} {value} ({where})"
