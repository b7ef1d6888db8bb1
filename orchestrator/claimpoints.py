"""Whether claims can be tested on the points of the sweeps they name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dashboards.layout import ClaimItem
from dashboards.layout_types import PSEUDO_FIELDS
from orchestrator.errors import Problem, nearest
from orchestrator.fieldtypes import plain
from orchestrator.grid import Point
from orchestrator.reportpoints import REPORTED, horizon_of
from orchestrator.settings import INDEX
from orchestrator.yamlsource import KeyPath, Source
from trainers.data.info import DatasetInfo

__all__ = ["check_claim_points"]


def check_claim_points(
    report: Iterable[Any],
    sweeps: Mapping[str, Sequence[Point]],
    source: Source,
    infos: Mapping[str, DatasetInfo],
    default: str = "",
) -> Iterator[Problem]:
    """Tests that name a field or a value that no point of their sweep has, or a step after its
    last one. sweeps: points by the name that tests use; a test of another sweep is left alone.
    default: the sweep of tests that name none."""
    known = {name: _Known(points, infos) for name, points in sweeps.items()}
    for index, item in enumerate(report):
        for number, test in enumerate(item.tests if isinstance(item, ClaimItem) else ()):
            points = known.get(test.sweep or default)
            if points is None:
                continue
            path: KeyPath = ("report", index, "tests", number)
            for key, name, value in _named(test):
                fault = points.fault(name, value)
                if fault is not None:
                    yield _problem(source, (*path, *key), value, *fault)
            late = [step for step in test.named_steps if step > points.last > 0]
            if late:
                message = f"step {late[-1]} is after the last step, {points.last}"
                yield _problem(source, (*path, "steps"), late[-1], message, ())


class _Known:
    """What the points of a sweep have. last: their last step."""

    def __init__(self, points: Sequence[Point], infos: Mapping[str, DatasetInfo]) -> None:
        self._points = points
        self._values: dict[str, list[Any]] = {}
        self.last = max((horizon_of(point, infos) for point in points), default=0)

    def fault(self, name: str, value: Any) -> tuple[str, Iterable[str]] | None:
        """What is wrong with a field and its value (`...` for any), and what there is instead."""
        if name not in REPORTED:
            return f"no point has a field {name!r}", sorted(REPORTED)
        if value is ... or value in self._of(name):
            return None
        there = list(map(str, self._of(name)))
        return f"no point has {name} {value!r} (there are {', '.join(there)})", there

    def _of(self, name: str) -> list[Any]:
        if name not in self._values:
            slot = INDEX[name]
            found = dict.fromkeys(point[slot] for point in self._points)
            self._values[name] = [plain(value) for value in found]
        return self._values[name]


def _named(test: Any) -> Iterator[tuple[KeyPath, str, Any]]:
    """(where in the test, field, value) of all that a test names; `...` for a field alone."""
    for key in ("where", "of", "to"):
        for name, wanted in (getattr(test, key, None) or {}).items():
            for value in wanted if isinstance(wanted, list) else [wanted]:
                if name not in PSEUDO_FIELDS:
                    yield (key, name), name, value
    for name in test.each:
        if name not in PSEUDO_FIELDS:
            yield ("each",), name, ...
    if test.position and test.position not in PSEUDO_FIELDS:
        yield ("x",), test.position, ...


def _problem(
    source: Source, path: KeyPath, value: object, message: str, names: Iterable[str]
) -> Problem:
    return source.problem(
        path,
        message,
        value=None if value is ... else value,
        like=nearest(value, names) if isinstance(value, str) else None,
    )
