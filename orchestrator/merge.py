"""Many points, few runs: requests for one run become one request.

There is no learning-rate schedule, so a shorter run is the first part of a longer one: runs that
differ in their length alone merge into the longest, which is looked at wherever anybody asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from orchestrator.askedsteps import asked_steps
from orchestrator.durations import as_steps
from orchestrator.errors import UserError
from orchestrator.fieldtypes import Value
from orchestrator.grid import Point
from orchestrator.identity import run_key
from orchestrator.labels import (
    differences,
    probe_label,
    scores_label,
    student_label,
    targets_label,
    teacher_label,
)
from orchestrator.paths import run_name
from orchestrator.reportpoints import horizon_of, student_horizon
from orchestrator.resolve import Resolver, Scorer, Teacher
from orchestrator.scaling import Scaling
from orchestrator.settings import INDEX
from orchestrator.spec import Sweep
from orchestrator.units import (
    RANKS,
    Kind,
    Unit,
    rank_of,
    snapshot_token,
    weights_token,
)
from orchestrator.workers import ONE, Share, Workers, share_of, workers_of
from trainers.data.info import DatasetInfo
from trainers.spec import Request, RunSpec, Screening, StudentSpec, TeacherRef

__all__ = ["Merger", "PlannedPoint"]


class PlannedPoint(NamedTuple):
    """A point of a sweep and the run that answers it, a student or a probe, up to `horizon`.
    weights: the token that a probe waits for. evaluate_at: steps that it asks of the run beyond the
    standard ones; another point may ask more.

    In a pilot, point and horizon are the layout's; actual: the point that trains, and trained: how
    far. run is None where a teacher's preset has no place there."""

    point: Point
    run: str | None
    horizon: int
    weights: str | None = None
    actual: Point | None = None
    trained: int = 0
    evaluate_at: frozenset[int] = frozenset()


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
    keep_weights_at: frozenset[int] = frozenset()
    answers: bool = False
    rule: tuple[int, Screening] = (1, None)
    workers: Workers = ONE
    share: Share | None = None
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
                keep_weights_at=_sorted(self.keep_weights_at),
            ),
            needs=self.needs,
            workers=self.workers.number,
            workers_auto=self.workers.is_auto,
            gpus_per_worker=self.share.number if self.share else 1.0,
            gpus_auto=self.share is not None and self.share.is_auto,
            keep_checkpoint=self.keep,
            label=self.label + differences,
            sweeps=self.sweeps,
            answers=self.answers or self.kind != "student",
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
        """Rank by rank in the order of their needs, each in order of first appearance."""
        apart = differences({draft.key: draft.spec for draft in self._drafts.values()})
        return tuple(
            draft.unit(apart.get(draft.key, ""))
            for rank in RANKS
            for draft in self._drafts.values()
            if rank_of(draft.kind, draft.spec) == rank
        )

    def add(self, sweep: Sweep) -> tuple[PlannedPoint, ...]:
        assert (sweep.scale is None) == (sweep.scaling is None), "scale_sweep comes before planning"
        report_steps = asked_steps(sweep)
        if sweep.scaling is None:
            return tuple(
                self._add(point, sweep.name, report_steps(point)) for point in sweep.points
            )
        return tuple(
            self._add_scaled(point, sweep.name, report_steps(point), sweep.scaling)
            for point in sweep.points
        )

    def _add_scaled(
        self, point: Point, sweep: str, report_steps: frozenset[int], scaling: Scaling
    ) -> PlannedPoint:
        """The layout's point, answered by the run of the point that trains."""
        horizon = horizon_of(point, scaling.nominal)
        actual = scaling.actual(point)
        if actual is None:
            return PlannedPoint(point, None, horizon, trained=scaling.step(horizon))
        steps = frozenset(scaling.step(step) for step in report_steps if step <= horizon)
        planned = self._add(actual, sweep, steps)
        return planned._replace(
            point=point, horizon=horizon, actual=actual, trained=planned.horizon
        )

    def _add(self, point: Point, sweep: str, report_steps: frozenset[int]) -> PlannedPoint:
        if point[_PROBE] == "offline":
            return self._add_probe(point, sweep, report_steps)
        horizon = horizon_of(point, self.infos)
        asked = self._requested(point, horizon, report_steps)
        draft, _ = self._student(point, sweep, horizon, asked)
        draft.answers = True
        return PlannedPoint(point, run_name("student", draft.key), horizon, evaluate_at=asked)

    def _add_probe(self, point: Point, sweep: str, report_steps: frozenset[int]) -> PlannedPoint:
        """The point's probe, and its student, which keeps its last weights for it."""
        step = student_horizon(point, self.infos)
        asked = self._requested(point, step, frozenset())
        student, student_spec = self._student(point, sweep, step, asked)
        student.keep_weights_at = _union(student.keep_weights_at, frozenset({step}))
        spec = self.resolver.probe(student_spec, student.key, step)
        draft = self._draft(
            "probe", run_key(spec), spec, sweep, lambda: probe_label(student_spec, step)
        )
        horizon = horizon_of(point, self.infos)
        asked = _evaluations(horizon, (), None, report_steps)
        self._asks(draft, point, horizon, asked)
        token = weights_token(run_name("student", student.key), step)
        draft.needs = (token,)
        return PlannedPoint(point, run_name("probe", draft.key), horizon, token, evaluate_at=asked)

    def _student(
        self, point: Point, sweep: str, horizon: int, asked: frozenset[int]
    ) -> tuple[_Draft, StudentSpec]:
        """The point's student, which is asked for `horizon` steps, and to be evaluated at some."""
        spec = self.resolver.student(point)
        draft = self._draft("student", run_key(spec), spec, sweep, lambda: student_label(spec))
        self._asks(draft, point, horizon, asked)
        teacher = self.resolver.teacher(point)
        if teacher is not None:
            draft.needs = (
                self._need(point, teacher, spec, sweep),
                *self._scores_need(point, spec, sweep),
            )
        return draft, spec

    def _asks(self, draft: _Draft, point: Point, horizon: int, steps: frozenset[int]) -> None:
        """What a point asks of a student or a probe, beside all that was asked before."""
        draft.horizon = max(draft.horizon, horizon)
        draft.evaluate_at = _union(draft.evaluate_at, steps)
        self._scale(draft, point, point[_WORKERS])
        draft.keep = _longer(draft.keep, point[_KEEP])
        self.asked_steps += horizon

    def _scale(self, draft: _Draft, point: Point, workers: Value) -> None:
        dataset = point[_DATASET]
        draft.workers = draft.workers.joined(workers_of(workers, dataset))
        share = share_of(point[_GPUS_PER_WORKER], dataset)
        draft.share = share if draft.share is None else draft.share.joined(share)

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

    def _scores_need(self, point: Point, spec: StudentSpec, sweep: str) -> tuple[str, ...]:
        """Registers the scores that a student selects by, and who scores; gives the token."""
        scores = self.resolver.scores(spec)
        if scores is None:
            return ()
        draft = self._draft("scores", run_key(scores), scores, sweep, lambda: scores_label(scores))
        self._scale(draft, point, point[_WORKERS])
        scorer = self.resolver.scorer(point)
        if scorer is not None:
            draft.needs = self._scorer(scorer, sweep)
        return (run_name("scores", draft.key),)

    def _scorer(self, scorer: Scorer, sweep: str) -> tuple[str, ...]:
        """The student that scores keeps its weights for it; gives the tokens."""
        student, spec, horizon = scorer.point, scorer.spec, scorer.steps[-1]
        draft = self._draft("student", scorer.key, spec, sweep, lambda: student_label(spec))
        self.asked_steps += max(0, horizon - draft.horizon)  # once, like a teacher's
        draft.horizon = max(draft.horizon, horizon)
        draft.evaluate_at = _union(draft.evaluate_at, frozenset({horizon}))
        draft.keep_weights_at = _union(draft.keep_weights_at, frozenset(scorer.steps))
        self._scale(draft, student, student[_WORKERS])
        draft.keep = _longer(draft.keep, student[_KEEP])
        name = run_name("student", scorer.key)
        return tuple(weights_token(name, step) for step in scorer.steps)

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
        self._scale(draft, point, point[_TEACHER_WORKERS] or point[_WORKERS])
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


_PROBE = INDEX["probe"]
_DATASET = INDEX["dataset"]
_BATCH_SIZE = INDEX["training.batch_size"]
_EVALUATE_AT = INDEX["training.evaluate_at"]
_EVALUATE_EVERY = INDEX["training.evaluate_every"]
_WORKERS = INDEX["scaling.workers"]
_TEACHER_WORKERS = INDEX["scaling.teacher_workers"]
_GPUS_PER_WORKER = INDEX["scaling.gpus_per_worker"]
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
