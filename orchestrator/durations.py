"""Epochs become steps here, once, and nowhere else."""

from __future__ import annotations

from orchestrator.fieldtypes import Value
from trainers.data.info import DatasetInfo
from trainers.schedule import steps_per_epoch

__all__ = ["as_steps"]


def as_steps(duration: Value, info: DatasetInfo | None, batch_size: int) -> int | None:
    """`300` or `"50 epochs"` in steps; None for nothing, for less than a step, and for epochs of a
    data set of unknown size."""
    if duration is None or isinstance(duration, int):
        return duration
    if info is None:
        return None
    epochs = float(str(duration).partition(" ")[0])
    return round(epochs * steps_per_epoch(info.num_train, batch_size)) or None
