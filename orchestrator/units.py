"""What a plan hands out, and what the store already holds of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator import paths
from trainers.spec import Request, RunSpec, Screening, StudentSpec

__all__ = [
    "ARTEFACTS",
    "KINDS",
    "RANKS",
    "SEARCH_STEPS",
    "Action",
    "Held",
    "HeldSnapshot",
    "Kind",
    "Unit",
    "Work",
    "cost_left",
    "provider",
    "rank_of",
    "snapshot_token",
    "weights_token",
]

Kind = Literal["teacher", "targets", "student", "scores", "probe"]
KINDS: tuple[Kind, ...] = ("teacher", "targets", "student", "scores", "probe")

ARTEFACTS: frozenset[Kind] = frozenset({"targets", "scores"})
"""Kinds that make a file for others to learn from, and train nothing: they have no rows."""

RANKS = range(6)


def rank_of(kind: Kind, spec: RunSpec) -> int:
    """What a unit waits for has a lower rank: teachers 0, their targets 1, students 2, scores by
    those 3, students that select by scores 4, probes 5."""
    if kind == "student" and isinstance(spec, StudentSpec) and spec.selection is not None:
        return 4
    return {"teacher": 0, "targets": 1, "student": 2, "scores": 3, "probe": 5}[kind]


def snapshot_token(teacher: str, preset: float) -> str:
    """What students and targets wait for: `teacher-0123456789abcdef/acc-30`."""
    return f"{teacher}/acc-{paths.preset_name(preset)}"


def weights_token(student: str, step: int) -> str:
    """What a probe waits for: `student-0123456789abcdef/step-00000600`."""
    return f"{student}/{paths.step_name(step)}"


def provider(token: str) -> str:
    """The unit that provides a token."""
    return token.partition("/")[0]


SEARCH_STEPS = 10_000
"""What a teacher counts as, everywhere: its search ends when it ends, rarely near its limit. An
estimate: CIFAR-10's teachers pass 90% after some 25 epochs of 390 steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One piece of work: a teacher run with all its presets, one snapshot's soft targets, a student
    run, the scores of a training set by a student, or a probe of a student. needs: tokens it waits
    for. workers, gpus_per_worker, keep_checkpoint: the most that anybody asks. workers_auto,
    gpus_auto: nobody asked for a number; fewer workers will do where there are fewer devices, and
    less of a GPU where runs were measured to get more done side by side (`sharing`). sweeps: who
    asks. answers: False for a student that
    no point reads, which is there for its probes or its scores alone."""

    kind: Kind
    key: str
    spec: RunSpec
    request: Request
    needs: tuple[str, ...] = ()
    workers: int = 1
    workers_auto: bool = False
    gpus_per_worker: float = 1.0
    gpus_auto: bool = False
    keep_checkpoint: str | int = "final"
    label: str = ""
    sweeps: tuple[str, ...] = ()
    answers: bool = True
    measures: bool = False

    @property
    def name(self) -> str:
        return paths.run_name(self.kind, self.key)

    @property
    def rank(self) -> int:
        """`rank_of` it."""
        return rank_of(self.kind, self.spec)

    @property
    def provides(self) -> tuple[str, ...]:
        """Tokens: a teacher's presets; soft targets and scores as a whole, by the unit's name; the
        steps at which a student keeps its weights."""
        if self.kind == "teacher":
            return tuple(self.snapshot_token(preset) for preset in self.request.presets)
        if self.kind == "student":
            return tuple(self.weights_token(step) for step in self.request.keep_weights_at)
        return (self.name,) if self.kind in ARTEFACTS else ()

    @property
    def cost(self) -> float:
        """An estimate of its length in steps; a teacher counts as `SEARCH_STEPS` at most."""
        if self.kind in ARTEFACTS:
            return 1.0
        horizon = self.request.horizon
        return float(min(horizon, SEARCH_STEPS) if self.kind == "teacher" else horizon)

    def snapshot_token(self, preset: float) -> str:
        return snapshot_token(self.name, preset)

    def weights_token(self, step: int) -> str:
        return weights_token(self.name, step)


@dataclass(frozen=True, kw_only=True)
class HeldSnapshot:
    """A teacher snapshot in the store. digest: SHA-256 of its weights."""

    step: int
    accuracy: float
    alpha: float
    digest: str


@dataclass(frozen=True, kw_only=True)
class Held:
    """What the store holds of one unit.

    complete: there is a sound result.json (for targets: the file; for scores: both). horizon: the
    last step of a complete run. evaluated: steps in metrics.parquet. checkpoints: steps to resume
    from. presets: a teacher's snapshots by accuracy; weightless: those of them that are records
    alone, as a bundle brings them. kept: steps whose weights a student kept. searched_to, missing:
    how far a teacher looked, and for which presets in vain. validate_every, screen: the rule of its
    snapshots. failure: the last attempt's.
    """

    complete: bool = False
    horizon: int = 0
    evaluated: frozenset[int] = frozenset()
    checkpoints: tuple[int, ...] = ()
    presets: Mapping[float, HeldSnapshot] = field(default_factory=dict)
    weightless: frozenset[float] = frozenset()
    kept: frozenset[int] = frozenset()
    searched_to: int = 0
    missing: tuple[float, ...] = ()
    validate_every: int = 1
    screen: Screening = None
    teacher_digest: str | None = None
    failure: Mapping[str, Any] | None = None

    def checkpoint_before(self, step: int) -> int:
        """The last checkpoint at or before `step`; 0, the beginning, when there is none."""
        return max((at for at in self.checkpoints if at <= step), default=0)


Action = Literal["new", "resume", "extend", "replay", "done", "unneeded", "exhausted", "blocked"]
"""new: nothing is held. resume: an attempt was cut off. extend: complete, but to a shorter horizon
(or fewer presets). replay: complete, but some requested steps or presets were passed unseen. done:
all is held. unneeded: not held, and everything that would need it is done. exhausted: a teacher
that searched to its limit in vain. blocked: needs a preset of an exhausted teacher."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What is left to do for a unit. from_step: where training starts again. steps: to train, at
    most; none where weights are taken from the checkpoint of their step. missing_steps,
    missing_presets, missing_weights: what is still to be seen or kept. unreachable: presets known
    to fail."""

    action: Action
    from_step: int = 0
    steps: int = 0
    missing_steps: tuple[int, ...] = ()
    missing_presets: tuple[float, ...] = ()
    missing_weights: tuple[int, ...] = ()
    unreachable: tuple[float, ...] = ()

    @property
    def is_left(self) -> bool:
        return self.action in ("new", "resume", "extend", "replay")


def cost_left(unit: Unit, work: Work) -> float:
    """An estimate of the steps that are left of a unit. A search that goes on from a later step has
    the rest of `SEARCH_STEPS`, but half of them at least: where it is near them or beyond, nobody
    knows how much longer it takes."""
    left = unit.cost
    if unit.kind == "teacher":
        left = max(SEARCH_STEPS - work.from_step, SEARCH_STEPS / 2)
    return min(left, float(work.steps))
