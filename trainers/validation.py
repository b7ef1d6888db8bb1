"""When a teacher's state is validated on the whole test set: always, or after a look at a part."""

from __future__ import annotations

from torch import nn

from trainers.evaluate import TestSet, percent, standard_error, teacher_heads
from trainers.harvest import TOLERANCE, jumped_over

__all__ = ["Validator"]


class Validator:
    """Validates on the whole test set, or, with screening, on a fixed part of it first and on the
    whole only near a missing preset (three standard errors) or past one."""

    def __init__(self, whole: TestSet, part: TestSet | None) -> None:
        self._whole = whole
        self._part = part
        self._last_rough: float | None = None

    def start(self, model: nn.Module) -> None:
        """Says what the first state to be validated is compared with."""
        if self._part is not None:
            self._last_rough = self._rough(self._part, model)

    def validate(self, model: nn.Module, missing: set[float]) -> float | None:
        """Top-1 (percent) on the whole set, or None when screening saw no preset near."""
        if self._part is not None and not self._worth_confirming(model, missing):
            return None
        return percent(self._whole.correct(model, teacher_heads)[0], self._whole.count)

    def _worth_confirming(self, model: nn.Module, missing: set[float]) -> bool:
        assert self._part is not None
        rough = self._rough(self._part, model)
        last, self._last_rough = self._last_rough, rough
        margin = TOLERANCE + 3 * standard_error(rough, self._part.count)
        return any(
            abs(rough - preset) <= margin or (last is not None and jumped_over(last, rough, preset))
            for preset in missing
        )

    def _rough(self, part: TestSet, model: nn.Module) -> float:
        return percent(part.correct(model, teacher_heads)[0], part.count)
