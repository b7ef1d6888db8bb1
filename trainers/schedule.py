"""At which steps a student is evaluated even if nobody asks: later questions find answers."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["EARLY_STEPS", "evaluation_interval", "evaluation_steps", "steps_per_epoch"]

EARLY_STEPS = (10, 20, 50, 100, 150, 200, 300, 500, 700, 1_000, 1_200, 1_500)
"""The steps of the paper's Table 2."""

_LONG_EPOCH = 1_000


def steps_per_epoch(num_train: int, batch_size: int) -> int:
    """Full batches of the full training set, whatever the IPC: the paper's epoch."""
    return max(num_train // batch_size, 1)


def evaluation_interval(steps_per_epoch: int) -> int:
    """Steps between evaluations after the early ones: five epochs, or 500 steps where one epoch is
    already over a thousand (the paper evaluates ImageNet every 500)."""
    return 500 if steps_per_epoch > _LONG_EPOCH else 5 * max(steps_per_epoch, 1)


def evaluation_steps(
    horizon: int, steps_per_epoch: int, requested: Iterable[int] = (), every: int | None = None
) -> tuple[int, ...]:
    """Sorted steps in 1…horizon: the early steps, then every `every` (default:
    `evaluation_interval`), the requested ones and the horizon itself."""
    every = evaluation_interval(steps_per_epoch) if every is None else every
    last_early = EARLY_STEPS[-1]
    regular = range((last_early // every + 1) * every, horizon + 1, every)
    steps = {*EARLY_STEPS, *regular, *requested, horizon}
    return tuple(sorted(step for step in steps if 1 <= step <= horizon))
