"""When a teacher's state is validated on the whole test set: always, or after a look at a part.

Whatever the screening, a snapshot's accuracy is that of the whole set. What screening may cost is
lateness: a state that reached a preset is passed by, and a later one becomes the snapshot.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from torch import nn

from trainers.evaluate import TestSet, percent, standard_error, teacher_heads
from trainers.harvest import jumped_over
from trainers.presets import TOLERANCE

__all__ = ["PartScreen", "Screen", "Validator", "Verdict"]


@dataclass(frozen=True)
class Verdict:
    """A state validated on the whole test set.

    accuracy: its top-1 in percent. presets: those that it may have reached or jumped over. jumps:
    whether one of them may have been jumped over, for which the accuracy before must be known.
    looks_back: whether the state before is taken where it turns out to lie inside a window.
    """

    accuracy: float
    presets: frozenset[float]
    jumps: bool
    looks_back: bool = False


class Screen:
    """No screening. The kinds of it decide from a part of the test set, alike on every worker."""

    def start(self, model: nn.Module, turn: int, accuracy: float, missing: Set[float]) -> None:
        """Says what the first state to be validated is compared with: `model`, whose top-1 on the
        whole set is `accuracy`. turn: number of the validation it belongs to."""

    def suspects(self, model: nn.Module, turn: int, missing: Set[float]) -> frozenset[float]:
        """Missing presets for which the state is worth the whole set."""
        return frozenset(missing)

    def settle(self, accuracy: float, suspects: frozenset[float]) -> Verdict:
        """What the whole set says of a suspicious state."""
        return Verdict(accuracy, suspects, jumps=True)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on alike, beyond what `start` is told."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave; before `start`."""


class PartScreen(Screen):
    """A fixed part of the test set first, and the whole only near a missing preset (three standard
    errors) or past one."""

    def __init__(self, part: TestSet, num_classes: int) -> None:
        self._part = part
        self._num_classes = num_classes
        self._last_rough: float | None = None

    def start(self, model: nn.Module, turn: int, accuracy: float, missing: Set[float]) -> None:
        self._last_rough = self._rough(model)

    def suspects(self, model: nn.Module, turn: int, missing: Set[float]) -> frozenset[float]:
        rough = self._rough(model)
        last, self._last_rough = self._last_rough, rough
        margin = TOLERANCE + 3 * standard_error(rough, self._part.count)
        is_near = any(
            abs(rough - preset) <= margin
            or (last is not None and jumped_over(last, rough, preset, self._num_classes))
            for preset in missing
        )
        return frozenset(missing) if is_near else frozenset()

    def _rough(self, model: nn.Module) -> float:
        return percent(self._part.correct(model, teacher_heads)[0], self._part.count)


class Validator:
    """Validates on the whole test set what the screen lets through."""

    def __init__(self, whole: TestSet, screen: Screen) -> None:
        self._whole = whole
        self.screen = screen

    def validate(self, model: nn.Module, turn: int, missing: Set[float]) -> Verdict | None:
        """None where the screen saw no missing preset near."""
        suspects = self.screen.suspects(model, turn, missing)
        if not suspects:
            return None
        accuracy = percent(self._whole.correct(model, teacher_heads)[0], self._whole.count)
        return self.screen.settle(accuracy, suspects)
