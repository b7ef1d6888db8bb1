"""From axes to points: every combination once, without those that differ in nothing that matters.

A **point** is a tuple of checked values in the order of `settings.FIELDS`. A field that does not
apply to a point is None in it, so that points which differ only there are one point: strategy A has
no teacher, and a grid over A, B, C and three teachers holds A once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from orchestrator.backbones import WITH_WIDTH
from orchestrator.fieldtypes import Value
from orchestrator.settings import FIELDS, IMPLIED, INDEX

__all__ = [
    "Condition",
    "Grid",
    "Place",
    "Point",
    "applicable",
    "expand",
    "expand_grid",
    "matches",
    "projection",
    "with_implied",
]

Point = tuple[Value, ...]
Condition = Mapping[str, tuple[Value, ...]]
"""Fields and the values each may have: true where all of them hold."""


@dataclass(frozen=True)
class Place:
    """Where a value was written."""

    file: str
    key: str
    line: int | None = None


@dataclass(frozen=True)
class Grid:
    """base: a whole point (`set` of the sweep and of the grid). axes: values by field, in order.
    excluded: combinations left out. places: where each field that was set stands; value_places: the
    same for the values of an axis. priority: its runs go before those of a lower one."""

    name: str
    place: Place
    base: Point
    axes: Condition = field(default_factory=dict)
    exclude: Sequence[Condition] = ()
    places: Mapping[str, Place] = field(default_factory=dict)
    value_places: Mapping[tuple[str, Value], Place] = field(default_factory=dict)
    priority: int = 0

    def place_of(self, name: str, value: Value = None) -> Place:
        """Where field `name` got `value`; the grid itself when it is a default."""
        place = self.value_places.get((name, value)) or self.places.get(name)
        return place or Place(self.place.file, name, self.place.line)


def expand(grids: Iterable[Grid]) -> tuple[Point, ...]:
    """The union of the grids' points, in order of first appearance; the last axis is fastest."""
    return tuple(dict.fromkeys(itertools.chain.from_iterable(map(expand_grid, grids))))


def expand_grid(grid: Grid) -> Iterator[Point]:
    """Points of one grid; may repeat where a field does not apply."""
    values = list(grid.base)
    slots = [INDEX[name] for name in grid.axes]
    # Excluded are combinations as they are written, before fields that do not apply fall away:
    # {strategy: A, teacher.accuracy: 60} leaves A's point standing while 30 still leads to it.
    excluded = [matches(condition) for condition in grid.exclude]
    for combination in itertools.product(*grid.axes.values()):
        for slot, value in zip(slots, combination, strict=True):
            values[slot] = value
        if not any(test(values) for test in excluded):
            yield applicable(values)


def matches(condition: Condition) -> Callable[[Sequence[Value]], bool]:
    """A test of points (or of lists of values in their order)."""
    wanted = [(INDEX[name], frozenset(values)) for name, values in condition.items()]
    return lambda point: all(point[slot] in values for slot, values in wanted)


def projection(names: Sequence[str]) -> Callable[[Sequence[Value]], tuple[Any, ...]]:
    """Picks fields out of a point, always as a tuple."""
    if not names:
        return lambda point: ()
    if len(names) == 1:
        slot = INDEX[names[0]]
        return lambda point: (point[slot],)
    return itemgetter(*(INDEX[name] for name in names))


_STRATEGY = INDEX["strategy"]
_IPC = INDEX["ipc"]
_SUBSET_SEED = INDEX["subset_seed"]
_LOSS = INDEX["loss"]
_CE_WEIGHT = INDEX["ce_weight"]
_PROBE = INDEX["probe"]
_PROBE_STEPS = INDEX["probe_steps"]
_BACKBONE = INDEX["backbone.name"]
_WIDTH = INDEX["backbone.width"]
_TARGET_VIEW = INDEX["target_view"]
_STUDENT_TEMPERATURE = INDEX["student_temperature"]
_KD = [INDEX["kd.alpha"], INDEX["kd.revised_weight"]]
_REVISED_WEIGHT = INDEX["kd.revised_weight"]
_ETA = INDEX["revision.eta"]
_ONLY_WRONG = INDEX["revision.only_wrong"]
_METHOD = INDEX["selection.method"]
_SELECTION = [INDEX[name] for name in FIELDS if name.startswith("selection.")]
_CHECKPOINTS = INDEX["selection.checkpoints"]
_DAMPING = INDEX["selection.damping"]
_SCORING_STEPS = INDEX["selection.steps"]
_LABEL_NOISE = INDEX["label_noise"]
_TEACHER_NOISE = INDEX["teacher.label_noise"]
_NOISE_SEED = INDEX["noise_seed"]
_GROUPS_WITH_TEACHER = ("teacher.", "kd.", "revision.", "selection.")
_WITH_TEACHER = [INDEX[name] for name in FIELDS if name.startswith(_GROUPS_WITH_TEACHER)] + [
    INDEX["temperature"],
    INDEX["scaling.teacher_workers"],
]


def applicable(values: Sequence[Value]) -> Point:
    """The point with None for every field that does not apply to it."""
    point = list(values)
    if point[_STRATEGY] == "A":
        for slot in _WITH_TEACHER:
            point[slot] = None
    if point[_STRATEGY] != "C":
        point[_TARGET_VIEW] = None
    if point[_IPC] == "full":
        point[_SUBSET_SEED] = None
    if point[_LOSS] != "joint":
        point[_CE_WEIGHT] = None
    if point[_LOSS] == "kd":
        point[_STUDENT_TEMPERATURE] = None
    _of_second_study(point)
    if point[_PROBE] == "joint":
        point[_PROBE_STEPS] = None
    if point[_BACKBONE] not in WITH_WIDTH:
        point[_WIDTH] = None
    return tuple(point)


def _of_second_study(point: list[Value]) -> None:
    """The settings of revision, selection and noise that apply to nothing."""
    if point[_LOSS] != "kd":
        for slot in _KD:
            point[slot] = None
    if point[_ETA] is None:
        point[_ONLY_WRONG] = point[_REVISED_WEIGHT] = None
    method = point[_METHOD]
    if method is None:
        for slot in _SELECTION:
            point[slot] = None
    if method in (None, "random"):
        point[_SCORING_STEPS] = None
    if method != "tracin":
        point[_CHECKPOINTS] = None
    if method != "influence":
        point[_DAMPING] = None
    if not point[_LABEL_NOISE] and not point[_TEACHER_NOISE]:
        point[_NOISE_SEED] = None


def with_implied(base: Point, places: Collection[str]) -> Point:
    """`revision: {only_wrong: false}` revises: a group that is written is switched on."""
    values = list(base)
    for switch, value in IMPLIED.items():
        group = switch.partition(".")[0] + "."
        if switch not in places and any(name.startswith(group) for name in places):
            values[INDEX[switch]] = value
    return tuple(values)
