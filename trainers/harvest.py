"""Which states of a teacher become snapshots: the window of a preset, and what jumped over it.

Harvest rule (SEMANTICS 1). A snapshot of preset p is the first validated state whose top-1 on the
whole test set lies in [p − 1, p + 1] (paper, Appendix B: "the first time it reached the preset
accuracy", error below 1%); where an untrained net would be inside, from halfway between chance and
p on (`presets.least_trained`). Where the accuracy jumps over the whole window between two
validations, the segment between their weights is bisected, θ_s + α(θ_t − θ_s) with its batch-norm
buffers, at most `MAX_HALVINGS` times; if none lands inside, the search goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

from torch import Tensor, lerp, nn

from trainers.compiled import compiled
from trainers.evaluate import TestSet, percent, teacher_heads
from trainers.events import Snapshot
from trainers.presets import ROUNDING, TOLERANCE, least_trained

__all__ = [
    "MAX_HALVINGS",
    "Harvester",
    "Weights",
    "in_window",
    "interpolate",
    "jumped_over",
]

MAX_HALVINGS = 8

Weights = dict[str, Tensor]


def in_window(accuracy: float, preset: float, num_classes: int) -> bool:
    """Whether a top-1 percentage counts as having reached `preset`."""
    least = least_trained(preset, num_classes)
    low = preset - TOLERANCE if least is None else least
    return low - ROUNDING <= accuracy <= preset + TOLERANCE + ROUNDING


def jumped_over(before: float, after: float, preset: float, num_classes: int) -> bool:
    """Whether the accuracy went past the whole window of `preset`, upwards or downwards."""
    outside = not in_window(before, preset, num_classes) and not in_window(
        after, preset, num_classes
    )
    return outside and (before - preset) * (after - preset) < 0


def interpolate(before: Weights, after: Weights, alpha: float) -> Weights:
    """θ_s + α(θ_t − θ_s) for every floating-point parameter and buffer; counters are θ_t's."""
    return {
        name: lerp(before[name], value, alpha) if value.is_floating_point() else value
        for name, value in after.items()
    }


class Harvester:
    """Looks for presets between two validated states. Knows nothing of training.

    model: a model of the teacher's architecture to evaluate weights in. whole: the test set, of
    num_classes classes. compile: evaluate as a compiled teacher is validated, whose rounding may
    decide at a window's edge; where its code is compiled already, it serves here.
    """

    def __init__(
        self,
        model: nn.Module,
        whole: TestSet,
        presets: set[float],
        num_classes: int,
        *,
        compile: bool = False,
    ) -> None:
        self.model = model
        self.compiled_model = compiled(model, wanted=compile)
        self._num_classes = num_classes
        self._whole = whole
        self.count = whole.count
        self.missing = set(presets)

    def accuracy(self, weights: Weights) -> float:
        """Top-1 (percent) on the whole test set."""
        self.model.load_state_dict(weights)
        (correct,) = self._whole.correct(self.compiled_model, teacher_heads)
        return percent(correct, self._whole.count)

    def find(
        self, step: int, before: Weights, before_accuracy: float, after: Weights, accuracy: float,
        presets: Set[float], *, looks_back: bool = False,
    ) -> Iterator[Snapshot]:  # fmt: skip
        """Snapshots of the presets among these that this update reached or jumped over, lowest
        first. before_accuracy: NaN where nothing can have been jumped over. looks_back: a state
        before that is inside a window, which a screen did not see, is the snapshot (α = 0)."""
        for preset in sorted(self.missing & presets):
            found: tuple[float, float, Weights] | None = None
            if in_window(accuracy, preset, self._num_classes):
                found = (1.0, accuracy, after)
            elif looks_back and in_window(before_accuracy, preset, self._num_classes):
                found = (0.0, before_accuracy, before)
            elif jumped_over(before_accuracy, accuracy, preset, self._num_classes):
                found = self._bisect(preset, before, before_accuracy, after)
            if found is not None:
                self.missing.discard(preset)
                alpha, reached, weights = found
                yield Snapshot(
                    preset=preset, step=step, accuracy=reached, alpha=alpha,
                    weights={name: value.cpu().clone() for name, value in weights.items()},
                )  # fmt: skip

    def _bisect(
        self, preset: float, before: Weights, before_accuracy: float, after: Weights
    ) -> tuple[float, float, Weights] | None:
        low, high = 0.0, 1.0
        for _ in range(MAX_HALVINGS):
            alpha = (low + high) / 2
            weights = interpolate(before, after, alpha)
            accuracy = self.accuracy(weights)
            if in_window(accuracy, preset, self._num_classes):
                return alpha, accuracy, weights
            same_side = (accuracy - preset) * (before_accuracy - preset) > 0
            low, high = (alpha, high) if same_side else (low, alpha)
        return None
