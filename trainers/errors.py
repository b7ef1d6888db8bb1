"""Errors of the trainers, with their facts. They survive pickling.

TrainerError
├── DataError            a data set that is missing, damaged or not what it claims
├── TargetsError         a soft-target store of another identity, or without a row
├── CheckpointError      a checkpoint or snapshot that cannot be read
├── UnsuitableError      settings that fit neither the data set nor the number of workers
└── NonFiniteLossError   a loss that is NaN or infinite, with its step
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "DataError",
    "NonFiniteLossError",
    "TargetsError",
    "TrainerError",
    "UnsuitableError",
]


class TrainerError(Exception):
    """problem: what is wrong, with the value. remedy: what to do about it."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n  remedy: {self.remedy}" if self.remedy else self.problem


class DataError(TrainerError):
    pass


class TargetsError(TrainerError):
    pass


class CheckpointError(TrainerError):
    pass


class UnsuitableError(TrainerError):
    pass


class NonFiniteLossError(TrainerError):
    """The loss of `step` was NaN or infinite."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"the loss became NaN or infinite at step {step}",
            "lower the learning rate (training.lr)",
        )
        self.step = step

    def __reduce__(self) -> tuple[type[NonFiniteLossError], tuple[int]]:
        return type(self), (self.step,)
