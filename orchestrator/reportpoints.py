"""Which points a report item is about, and whether it can be made from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dashboards.layout import PSEUDO_FIELDS, ClaimItem, FigureItem, TableItem, unknown_fields
from orchestrator.durations import as_steps
from orchestrator.errors import Problem, nearest
from orchestrator.fieldtypes import plain
from orchestrator.grid import Condition, Point, matches, projection
from orchestrator.settings import FIELDS, INDEX, NUM_REPORTED, UNREPORTED
from orchestrator.yamlsource import KeyPath, Source
from trainers.data.info import DatasetInfo

__all__ = ["REPORTED", "check_report", "horizon_of", "item_points", "student_horizon"]

REPORTED: frozenset[str] = frozenset(FIELDS) - frozenset(UNREPORTED)
"""Fields that a report may name."""

Item = TableItem | FigureItem
_SEED = INDEX["seed"]
_STEPS = INDEX["training.steps"]
_PROBE = INDEX["probe"]
_PROBE_STEPS = INDEX["probe_steps"]
_PROBE_EPOCHS = "10 epochs"
_DATASET = INDEX["dataset"]
_BATCH_SIZE = INDEX["training.batch_size"]


def item_points(item: Item, points: Sequence[Point]) -> list[Point]:
    """Points that `item.where` accepts, in order."""
    condition: Condition = {
        name: tuple(value for value in _values(name, points) if plain(value) in _listed(wanted))
        for name, wanted in item.where.items()
    }
    return list(filter(matches(condition), points))


def horizon_of(point: Point, infos: Mapping[str, DatasetInfo]) -> int:
    """The last step of the run that answers the point, its student's or its probe's; 0 while its
    epochs cannot be counted."""
    if point[_PROBE] == "joint":
        return student_horizon(point, infos)
    steps = _PROBE_EPOCHS if point[_PROBE_STEPS] is None else point[_PROBE_STEPS]
    return as_steps(steps, infos.get(point[_DATASET]), point[_BATCH_SIZE]) or 0


def student_horizon(point: Point, infos: Mapping[str, DatasetInfo]) -> int:
    """The last step that the point asks of its student."""
    return as_steps(point[_STEPS], infos.get(point[_DATASET]), point[_BATCH_SIZE]) or 0


def _values(name: str, points: Iterable[Point]) -> list[Any]:
    slot = INDEX[name]
    return list(dict.fromkeys(point[slot] for point in points))


def _listed(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def check_report(
    report: Sequence[Item | ClaimItem],
    points: Sequence[Point],
    source: Source,
    infos: Mapping[str, DatasetInfo],
) -> list[Problem]:
    """Items about fields, values or steps that no point has, and cells that would mix points.
    Claims have no cells of their own: what they lack, they say themselves."""
    problems: list[Problem] = []
    for index, item in enumerate(report):
        if isinstance(item, ClaimItem):
            continue
        check = _ItemCheck(item, points, ("report", index), source, infos)
        problems += list(check.problems())
    return problems


class _ItemCheck:
    def __init__(
        self,
        item: Item,
        points: Sequence[Point],
        path: KeyPath,
        source: Source,
        infos: Mapping[str, DatasetInfo],
    ) -> None:
        self.item = item
        self.points = points
        self.path = path
        self.source = source
        self.infos = infos

    def problems(self) -> Iterator[Problem]:
        unknown = unknown_fields(self.item, REPORTED)
        for name in unknown:
            yield self._problem(
                self._key_of(name), f"no point has a field {name!r}", name, REPORTED
            )
        if unknown:
            return
        absent = list(self._absent_values())
        yield from absent
        points = item_points(self.item, self.points)
        if not points and not absent:
            yield self._problem(("where",), "no point fits all of these at once")
        if points:
            yield from self._absent_sides(points)
            yield from self._late_steps(points)
            yield from self._mixtures(points)

    def _key_of(self, name: str) -> KeyPath:
        """Where the item names a field."""
        if name in self.item.where:
            return ("where", name)
        for key in ("rows", "columns", "x", "y", "hue", "style", "panel"):
            value = getattr(self.item, key, None)
            if value == name or (isinstance(value, tuple) and name in value):
                return (key,)
        return ()

    def _absent_values(self) -> Iterator[Problem]:
        for name, wanted in self.item.where.items():
            yield from self._absent(("where", name), name, _listed(wanted), self.points)

    def _absent_sides(self, points: Sequence[Point]) -> Iterator[Problem]:
        for key in ("ratio", "paired"):
            contrast = getattr(self.item, key, None)
            if contrast is not None and contrast.field not in PSEUDO_FIELDS:
                for side in ("of", "to"):
                    wanted = [getattr(contrast, side)]
                    yield from self._absent((key, side), contrast.field, wanted, points)

    def _absent(
        self, at: KeyPath, name: str, wanted: list[Any], points: Sequence[Point]
    ) -> Iterator[Problem]:
        present = [plain(value) for value in _values(name, points)]
        for value in wanted:
            if value not in present:
                message = f"no point has {name} {value!r} (there are {_shown(present)})"
                yield self._problem(at, message, value, map(str, present))

    def _late_steps(self, points: Sequence[Point]) -> Iterator[Problem]:
        last = max(horizon_of(point, self.infos) for point in points)
        for step in self.item.steps:
            if step > last > 0:
                yield self._problem(("steps",), f"step {step} is after the last step, {last}", step)

    def _mixtures(self, points: Sequence[Point]) -> Iterator[Problem]:
        """Two points of one seed in one cell would be averaged: refused before anything runs."""
        spanning = [name for name in self.item.spanning if name not in PSEUDO_FIELDS]
        cell_of = projection(spanning)
        first: dict[tuple[Any, ...], Point] = {}
        for point in points:
            reported = point[:NUM_REPORTED]
            other = first.setdefault((*cell_of(point), point[_SEED]), reported)
            if other != reported:
                hidden = [name for name in REPORTED if other[INDEX[name]] != point[INDEX[name]]]
                names = ", ".join(sorted(hidden, key=INDEX.__getitem__))
                message = f"one cell would mix points that differ in {names}"
                remedy = "name the field among the item's fields, or fix its value in `where`"
                yield self._problem((), message, remedy=remedy)
                return

    def _problem(
        self,
        at: KeyPath,
        message: str,
        value: object = None,
        names: Iterable[str] = (),
        remedy: str = "",
    ) -> Problem:
        like = nearest(value, sorted(names)) if value is not None else None
        return self.source.problem((*self.path, *at), message, remedy, value=value, like=like)


def _shown(values: list[Any]) -> str:
    text = ", ".join(map(repr, values[:8]))
    return f"{text}, …" if len(values) > 8 else text
