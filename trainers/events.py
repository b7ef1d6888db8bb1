"""What a run yields. The trainer decides what happened; whoever consumes the generator decides
where it is stored and who is told. Events carry CPU data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = [
    "Checkpoint",
    "Evaluation",
    "Event",
    "Finished",
    "Progress",
    "Scored",
    "Snapshot",
    "Weights",
]

Row = dict[str, float | int | bool]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One row of metrics.parquet (columns: `trainers.evaluate.COLUMNS`)."""

    row: Row


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A resumable state; it covers every row with a step up to its own. `keep_as` names a teacher
    checkpoint that stays (one per ten points of accuracy); None is the rolling one."""

    step: int
    state: dict[str, Any] = field(repr=False)
    keep_as: str | None = None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A teacher reached preset `preset` (percent). alpha: position inside the update that jumped
    over the window, θ_s + α(θ_{s+1} − θ_s); 1 is the validated step itself, 0 the one before, which
    adaptive screening may find a step later."""

    preset: float
    step: int
    accuracy: float
    alpha: float
    weights: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A student's weights at a step that it was asked to keep; empty on all but rank 0."""

    step: int
    weights: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Every training sample's score, (N,) float32 by index in the full training set; None on all
    but rank 0."""

    scores_N: Tensor | None = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A sign of life between evaluations (at most one a second)."""

    step: int
    top1: float | None


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The last event. reason: `done`, `stopped` (asked to), or `exhausted` (a teacher that ended
    its search with `missing` presets unreached)."""

    reason: str
    step: int
    missing: tuple[float, ...] = ()


Event = Evaluation | Checkpoint | Snapshot | Weights | Scored | Progress | Finished
