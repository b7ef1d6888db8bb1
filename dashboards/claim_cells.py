"""Which cells a claim's test needs, and the scores that stand in them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import JsonValue

from dashboards.claim_layout import ClaimTest, Side
from dashboards.labels import Key, as_key, phrase
from dashboards.layout_types import METRICS, PSEUDO_FIELDS
from dashboards.results import Point, Results

__all__ = ["MIN_SEEDS", "CellError", "ClaimCell", "Measured", "TestCells", "all_steps"]

MIN_SEEDS = 3
"""Seeds below which a cell takes no part in a verdict."""


class CellError(Exception):
    """A test's cells cannot be told apart, or no point of the sweep fits; the text says which."""


@dataclass(kw_only=True)
class ClaimCell:
    """One number of a claim: a setting, a metric and a step, over seeds.

    settings: the fields that single it out. step: as the claim has it; actual_step: where a pilot's
    runs are read. planned: seeds that the plan asks. scores, runs: by seed, what there is.
    digests: the teacher snapshot behind each score.
    """

    sweep: str
    settings: dict[str, Key]
    step: int
    actual_step: int
    metric: str
    planned: set[int] = field(default_factory=set)
    scores: dict[int, float] = field(default_factory=dict)
    runs: dict[int, str] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        """Whether there are seeds enough for a verdict."""
        return len(self.scores) >= MIN_SEEDS

    @property
    def label(self) -> str:
        """`Strategy C, teacher 30%, step 39,000`."""
        texts = [phrase(name, value) for name, value in self.settings.items() if value is not None]
        return ", ".join([*texts, phrase("step", float(self.step))])


class Measured:
    """The evaluations of a sweep at given steps, by (run, step)."""

    def __init__(self, evaluations: pd.DataFrame, steps: Iterable[int]) -> None:
        rows = evaluations[evaluations["step"].isin(set(steps))]
        keys = zip(rows["run"].astype(str), rows["step"], strict=True)
        self._row = {key: index for index, key in enumerate(keys)}
        self._values: dict[str, NDArray[np.float64]] = {m: rows[m].to_numpy() for m in METRICS}

    def at(self, run: str, step: int, metric: str) -> float | None:
        """The metric as it stands at the step; None where it was not measured."""
        row = self._row.get((run, step))
        value = np.nan if row is None else self._values[metric][row]
        return None if np.isnan(value) else float(value)


def all_steps(results: Results, tests: Iterable[ClaimTest]) -> set[int]:
    """Every step that `tests` read in a sweep."""
    named = {step for test in tests for step in test.named_steps}
    actual = {results.plan.actual_step(step) for step in named}
    return actual | {point.actual_horizon for point in results.plan.points}


class TestCells:
    """The cells of one test in its sweep."""

    __test__ = False  # for pytest: no test case, in spite of its name

    def __init__(self, test: ClaimTest, results: Results, measured: Measured) -> None:
        self.test = test
        self._results = results
        self._measured = measured
        self._fields = test.spanning
        self._groups: dict[tuple[Key, ...], list[Point]] = defaultdict(list)
        fixed = {name: wanted for name, wanted in test.where.items() if name not in self._fields}
        for point in results.plan.points:
            if _accepts(point, fixed):
                at = tuple(as_key(point.settings.get(name)) for name in self._fields)
                self._groups[at].append(point)

    def combinations(self) -> Iterator[Side]:
        """One side's settings for each contrast: the product of the values of `each`."""
        values = [self.values(name) for name in self.test.each]
        for combination in itertools.product(*values):
            yield dict(zip(self.test.each, combination, strict=True))

    def values(self, name: str) -> list[JsonValue]:
        """Values of a field: those that `where` lists, else all that apply to some point, numbers
        ascending, then names in the plan's order. Raises CellError when there is none."""
        if name == "step":
            return list(self.test.steps)
        wanted = self.test.where.get(name)
        if name in self.test.where:
            return list(wanted) if isinstance(wanted, list) else [wanted]
        found: dict[Key, JsonValue] = {}
        for points in self._groups.values():
            for point in points:
                value = point.settings.get(name)
                if value is not None:
                    found.setdefault(as_key(value), value)
        if not found:
            raise CellError(f"no point of {self._results.plan.sweep} has a {name}")
        numbers = sorted(key for key in found if isinstance(key, float))
        return [found[key] for key in (*numbers, *(k for k in found if not isinstance(k, float)))]

    def cell(self, combination: Side, side: Side) -> ClaimCell:
        """Raises CellError when no point fits, or the points differ in something unnamed."""
        wanted = {name: self.test.where[name] for name in self._fields if name in self.test.where}
        wanted |= combination | side
        step = wanted.get("step", self.test.steps[0] if self.test.steps else None)
        metric = str(wanted.get("metric", self.test.metric))
        settings = {n: v for n, v in wanted.items() if n not in PSEUDO_FIELDS}
        points = [
            point
            for at, points in self._groups.items()
            if self._fits(at, settings)
            for point in points
        ]
        keys = {name: as_key(value) for name, value in settings.items()}
        if not points:
            texts = ", ".join(phrase(name, key) for name, key in keys.items())
            raise CellError(f"no point of {self._results.plan.sweep} has {texts}")
        return self._filled(points, keys, int(step) if isinstance(step, int) else None, metric)

    def _fits(self, at: tuple[Key, ...], wanted: Side) -> bool:
        return all(
            value in _keys(wanted[name])
            for name, value in zip(self._fields, at, strict=True)
            if name in wanted
        )

    def _filled(
        self, points: list[Point], settings: dict[str, Key], step: int | None, metric: str
    ) -> ClaimCell:
        plan = self._results.plan
        nominal = max(point.horizon for point in points) if step is None else step
        actual = None if step is None else plan.actual_step(step)
        cell = ClaimCell(
            sweep=plan.sweep,
            settings=settings,
            step=nominal,
            actual_step=actual or max(point.actual_horizon for point in points),
            metric=metric,
        )
        seen: dict[int, Point] = {}
        for point in points:
            first = seen.setdefault(point.seed, point)
            if first.run != point.run:
                raise CellError(
                    f"{cell.label} would mix points that differ in {_hidden(first, point)}"
                )
            self._put(cell, point)
        return cell

    def _put(self, cell: ClaimCell, point: Point) -> None:
        cell.planned.add(point.seed)
        if point.run is None:
            return
        score = self._measured.at(point.run, cell.actual_step, cell.metric)
        if score is not None:
            cell.scores[point.seed] = score
            cell.runs[point.seed] = point.run
            digest = self._results.record(point).teacher_digest
            cell.digests |= {point.seed: digest} if digest else {}


def _accepts(point: Point, wanted: Mapping[str, JsonValue]) -> bool:
    return all(as_key(point.settings.get(name)) in _keys(value) for name, value in wanted.items())


def _keys(wanted: JsonValue) -> list[Key]:
    return [as_key(value) for value in (wanted if isinstance(wanted, list) else [wanted])]


def _hidden(one: Point, other: Point) -> str:
    names = sorted(one.settings.keys() | other.settings.keys())
    return ", ".join(n for n in names if one.settings.get(n) != other.settings.get(n)) or "nothing"
