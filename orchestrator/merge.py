"""Many points, few runs: requests for one run become one request.

There is no learning-rate schedule, so a shorter run is the first part of a longer one: runs that
differ in their length alone merge into the longest, which is looked at wherever anybody asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from dashboards.layout import FigureItem, TableItem
from orchestrator.durations import as_steps
from orchestrator.errors import UserError
from orchestrator.fieldtypes import Value, plain
from orchestrator.grid import Point, projection
from orchestrator.identity import run_key
from orchestrator.labels import differences, student_label, targets_label, teacher_label
from orchestrator.paths import run_name
from orchestrator.reportpoints import horizon_of
from orchestrator.resolve import Resolver, Teacher
from orchestrator.settings import INDEX
from orchestrator.spec import Sweep
from orchestrator.units import Kind, Unit, snapshot_token
from trainers.data.info import DatasetInfo
from trainers.spec import Request, RunSpec, StudentSpec, TeacherRef

__all__ = ["Merger", "PlannedPoint"]


class PlannedPoint(NamedTuple):
    """A point of a sweep and the student run that answers it."""

    point: Point
    run: str
    horizon: int


@dataclass(slots=True)
class _Draft:
    """A unit while requests still arrive."""

    kind: Kind
    key: str
    spec: RunSpec
    label: str
    needs: tuple[str, ...] = ()
    horizon: int = 0
    evaluate_at: frozenset[int] = frozenset()
    presets: set[float] = field(default_factory=set)
    rule: tuple[int, int | None] = (1, None)
    workers: int = 1
    keep: str | int = "none"
    sweeps: tuple[str, ...] = ()

    def unit(self, differences: str) -> Unit:
        """differences: what its label needs beside other units of the plan."""
        return Unit(
            kind=self.kind,
            key=self.key,
            spec=self.spec,
            request=Request(
                horizon=self.horizon,
                evaluate_at=_sorted(self.evaluate_at),
                presets=tuple(sorted(self.presets)),
                validate_every=self.rule[0],
                screen=self.rule[1],
            ),
            needs=self.needs,
            workers=self.workers,
            keep_checkpoint=self.keep,
            label=self.label + differences,
            sweeps=self.sweeps,
        )


class Merger:
    """Takes sweeps one by one; `units` gives what they need together."""

    def __init__(self, infos: Mapping[str, DatasetInfo]) -> None:
        self.infos = infos
        self.resolver = Resolver(infos)
        self.asked_steps = 0
        self._drafts: dict[str, _Draft] = {}
        self._targets_known: dict[tuple[TeacherRef, float], tuple[RunSpec, str]] = {}

    def units(self) -> tuple[Unit, ...]:
        """Teachers, then targets, then students, each in order of first appearance."""
        apart = differences({draft.key: draft.spec for draft in self._drafts.values()})
        return tuple(
            draft.unit(apart.get(draft.key, ""))
            for kind in ("teacher", "targets", "student")
            for draft in self._drafts.values()
            if draft.kind == kind
        )

    def add(self, sweep: Sweep) -> tuple[PlannedPoint, ...]:
        report_steps = _report_steps(sweep.report)
        return tuple(self._add(point, sweep.name, report_steps(point)) for point in sweep.points)

    def _add(self, point: Point, sweep: str, report_steps: frozenset[int]) -> PlannedPoint:
        spec = self.resolver.student(point)
        draft = self._draft("student", run_key(spec), spec, sweep, lambda: student_label(spec))
        horizon = horizon_of(point, self.infos)
        draft.horizon = max(draft.horizon, horizon)
        draft.evaluate_at = _union(draft.evaluate_at, self._requested(point, horizon, report_steps))
        draft.workers = max(draft.workers, point[_WORKERS])
        draft.keep = _longer(draft.keep, point[_KEEP])
        self.asked_steps += horizon
        teacher = self.resolver.teacher(point)
        if teacher is not None:
            draft.needs = (self._need(point, teacher, spec, sweep),)
        return PlannedPoint(point, run_name("student", draft.key), horizon)

    def _requested(
        self, point: Point, horizon: int, report_steps: frozenset[int]
    ) -> frozenset[int]:
        info = self.infos.get(point[_DATASET])
        every = as_steps(point[_EVALUATE_EVERY], info, point[_BATCH_SIZE])
        return _evaluations(horizon, point[_EVALUATE_AT], every, report_steps)

    def _need(self, point: Point, teacher: Teacher, spec: StudentSpec, sweep: str) -> str:
        """Registers the teacher, and strategy C's targets; gives the token to wait for."""
        draft = self._teacher(point, teacher, sweep)
        snapshot = snapshot_token(run_name("teacher", draft.key), teacher.ref.accuracy)
        if spec.strategy != "C":
            return snapshot
        temperature = spec.temperature or 1.0
        targets_spec, key = self._targets(teacher, temperature)
        targets = self._draft(
            "targets", key, targets_spec, sweep, lambda: targets_label(teacher.ref, temperature)
        )
        targets.needs = (snapshot,)
        return run_name("targets", key)

    def _teacher(self, point: Point, teacher: Teacher, sweep: str) -> _Draft:
        rule = (teacher.ref.validate_every, teacher.ref.screen)
        draft = self._draft(
            "teacher", teacher.ref.key, teacher.spec, sweep, lambda: teacher_label(teacher.spec)
        )
        if draft.presets and draft.rule != rule:
            raise UserError(
                f"one teacher ({draft.label}) is asked with two validation rules: validate_every "
                f"and screen are {draft.rule} and {rule}",
                "set teacher.validate_every and teacher.screen to one value, or plan the sweeps "
                "with stores of their own",
            )
        draft.rule = rule
        draft.presets.add(teacher.ref.accuracy)
        draft.horizon = max(draft.horizon, teacher.max_steps)
        draft.workers = max(draft.workers, point[_TEACHER_WORKERS] or point[_WORKERS])
        draft.keep = _longer(draft.keep, point[_KEEP])
        return draft

    def _targets(self, teacher: Teacher, temperature: float) -> tuple[RunSpec, str]:
        known = self._targets_known.get((teacher.ref, temperature))
        if known is None:
            spec = self.resolver.targets(teacher, temperature)
            known = self._targets_known[teacher.ref, temperature] = (spec, run_key(spec))
        return known

    def _draft(
        self, kind: Kind, key: str, spec: RunSpec, sweep: str, label: Callable[[], str]
    ) -> _Draft:
        name = run_name(kind, key)
        draft = self._drafts.get(name)
        if draft is None:
            draft = self._drafts[name] = _Draft(kind, key, spec, label())
        if draft.key != key:
            raise UserError(
                f"two runs would share the folder {name}: keys {draft.key} and {key}",
                "plan the sweeps with stores of their own",
            )
        if sweep not in draft.sweeps:
            draft.sweeps = (*draft.sweeps, sweep)
        return draft


_DATASET = INDEX["dataset"]
_BATCH_SIZE = INDEX["training.batch_size"]
_EVALUATE_AT = INDEX["training.evaluate_at"]
_EVALUATE_EVERY = INDEX["training.evaluate_every"]
_WORKERS = INDEX["scaling.workers"]
_TEACHER_WORKERS = INDEX["scaling.teacher_workers"]
_KEEP = INDEX["keep_checkpoint"]


def _longer(one: str | int, other: str | int) -> str | int:
    """Of two wishes, the one that keeps a checkpoint longer."""
    return max(
        one, other, key=lambda wish: {"none": -1.0, "final": float("inf")}.get(str(wish), wish)
    )


@cache
def _evaluations(
    horizon: int, evaluate_at: tuple[int, ...], every: int | None, report: frozenset[int]
) -> frozenset[int]:
    """Steps asked of one point, beyond the standard ones. Shared: thousands ask the same."""
    multiples = range(every, horizon + 1, every) if every else ()
    steps = {*evaluate_at, *multiples, *report, horizon}
    return frozenset(step for step in steps if step <= horizon)


@cache
def _union(one: frozenset[int], other: frozenset[int]) -> frozenset[int]:
    return one | other


@cache
def _sorted(steps: frozenset[int]) -> tuple[int, ...]:
    return tuple(sorted(steps))


def _report_steps(
    report: Sequence[TableItem | FigureItem],
) -> Callable[[Point], frozenset[int]]:
    """The steps at which report items want to see a point."""
    items = [item for item in report if item.steps]
    names = tuple(dict.fromkeys(name for item in items for name in item.where))
    pick = projection(names)
    known: dict[tuple[Value, ...], frozenset[int]] = {}

    def steps(point: Point) -> frozenset[int]:
        values = pick(point)
        if values not in known:
            settings: dict[str, Any] = {
                name: plain(value) for name, value in zip(names, values, strict=True)
            }
            known[values] = frozenset(
                step for item in items if item.accepts(settings) for step in item.steps
            )
        return known[values]

    return steps
