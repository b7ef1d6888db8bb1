"""Adaptive screening: as many test images as it takes to rule every missing preset out.

At a validation the first `FIRST_LOOK` images of a fixed permutation that no validation has used for
the longest time are evaluated, then twice as many in all, and so on up to a quarter of the test
set. After each look, what the images say (n of them, top-1 a, sampling variance s²) is joined with
where the accuracy has been lately (its level m, and the variance v of states around it):

    top-1 on the whole set ~ N(m + w (a − m), w s²),  w = v / (v + s²)

A preset whose window lies at least z standard deviations away is ruled out, and the state is known
to lie above or below it. z is `RULED_OUT`, and `LEFT` at the last look, behind which stands the
whole test set. What is not ruled out, or has changed sides, takes the whole set. Where it changed
sides the state before does too, and is the snapshot if it was inside the window after all.

Three properties are kept on purpose. The images of successive validations differ, so that the level
is that of the whole set and not of a lucky part. The level moves by first looks alone, and each
preset is decided by itself: which others are missing changes nothing, so neither does what else a
sweep asks, nor when. And all that a resumed run needs is three numbers and a look.
"""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainers.evaluate import TestSet, percent, standard_error, teacher_heads
from trainers.harvest import in_window
from trainers.presets import TOLERANCE
from trainers.rng import generator
from trainers.validation import Screen, Verdict

__all__ = ["AdaptiveScreen", "Level", "Look", "look_sizes"]

FIRST_LOOK = 125
"""Images: a third of what a step on 128 costs (an evaluated image is a third of a trained one). Its
multiples fill batches of evaluation."""

_LARGEST_SHARE = 1 / 4
RULED_OUT = 2.5
"""Standard deviations (0.6%, one-sided): another look costs little."""
LEFT = 1.3
"""Standard deviations (10%): the whole of CIFAR-10's test set costs as much as 26 steps, which is
too much for a state that is probably outside. On simulated searches it takes half as many whole
sets as `RULED_OUT` would, and about as few crossings are found late."""

CONTRADICTION = 2.0
"""Standard deviations between a look and the level (5%, two-sided)."""

_LEVEL_RATE = 0.1
_VARIANCE_RATE = 0.02
_FIRST_VARIANCE = 25.0
"""Points²: nothing is known at first."""
_LEAST_VARIANCE = 1.0
"""Points²: states are never trusted to stay closer to their level."""


@dataclass(frozen=True)
class Look:
    """accuracy: percent of the images looked at. variance: points², of that as an estimate of the
    whole set's."""

    accuracy: float
    variance: float

    @classmethod
    def of(cls, correct: int, num_images: int, num_test: int) -> Look:
        accuracy = percent(correct, num_images)
        unseen = 1 - num_images / num_test  # drawn without replacement
        return cls(accuracy, standard_error(accuracy, num_images) ** 2 * unseen)


@dataclass
class Level:
    """Where the accuracy has been lately: mean (percent), and variance (points²) of states around
    it. pending: the last state's first look, which the next state's level includes."""

    mean: float
    variance: float = _FIRST_VARIANCE
    pending: Look | None = None

    def include(self, look: Look) -> None:
        surprise = look.accuracy - self.mean
        excess = surprise**2 - look.variance - self.variance
        self.variance = max(self.variance + _VARIANCE_RATE * excess, _LEAST_VARIANCE)
        self.mean += _LEVEL_RATE * surprise

    def joined(self, look: Look) -> tuple[float, float]:
        """Mean and standard deviation of the state's accuracy on the whole set. A look that
        contradicts the level counts alone: something has happened."""
        surprise = look.accuracy - self.mean
        expected = self.variance + look.variance
        contradicts = surprise**2 > CONTRADICTION**2 * expected
        weight = 1.0 if contradicts else self.variance / expected
        mean = self.mean + weight * surprise
        return mean, math.sqrt(weight * look.variance)


def look_sizes(num_test: int) -> tuple[int, ...]:
    """Images of a validation's successive looks, in all. None for a test set so small that it is
    evaluated whole."""
    sizes = []
    size = FIRST_LOOK
    while size <= num_test * _LARGEST_SHARE:
        sizes.append(size)
        size *= 2
    return tuple(sizes)


class AdaptiveScreen(Screen):
    """See the module."""

    def __init__(self, whole: TestSet, num_classes: int) -> None:
        self._whole = whole
        self._num_classes = num_classes
        order = generator("data", 0, "order", 0).permutation(whole.count)
        self._order_M = torch.from_numpy(order).to(whole.device)
        self._sizes = look_sizes(whole.count)
        self._level: Level | None = None
        self._before: dict[float, int] = {}
        self._sides: dict[float, int] = {}
        """1 above the window of a missing preset, −1 below; of the last state, and before it."""

    def start(self, model: nn.Module, turn: int, accuracy: float, missing: Set[float]) -> None:
        self._sides = {preset: _side(accuracy, preset) for preset in missing}
        if self._level is None:
            self._level = Level(accuracy)
        elif self._level.pending is not None:  # as it was decided then
            self._sides |= self._ruled_out(model, turn, missing, self._level)[0]

    def suspects(self, model: nn.Module, turn: int, missing: Set[float]) -> frozenset[float]:
        level = self._level
        assert level is not None, "start() comes first"
        if level.pending is not None:
            level.include(level.pending)
        self._before = self._sides
        self._sides, level.pending = self._ruled_out(model, turn, missing, level)
        return frozenset(
            preset
            for preset in missing
            if self._sides.get(preset) is None or self._sides[preset] != self._before[preset]
        )

    def settle(self, accuracy: float, suspects: frozenset[float]) -> Verdict:
        outside = {
            preset for preset in suspects if not in_window(accuracy, preset, self._num_classes)
        }
        true_sides = {preset: _side(accuracy, preset) for preset in outside}
        passed = {preset for preset in outside if true_sides[preset] != self._before[preset]}
        self._sides = true_sides | self._sides
        presets = (suspects - outside) | passed
        return Verdict(accuracy, presets, jumps=bool(passed), looks_back=True)

    def _ruled_out(
        self, model: nn.Module, turn: int, missing: Set[float], level: Level
    ) -> tuple[dict[float, int], Look | None]:
        """The sides of the presets that are ruled out, and the first look."""
        first: Look | None = None
        sides: dict[float, int] = {}
        correct = seen = 0
        for size in self._sizes:
            correct += self._correct(model, turn, seen, size)
            seen = size
            look = Look.of(correct, seen, self._whole.count)
            first = first or look
            z = RULED_OUT if size < self._sizes[-1] else LEFT
            mean, deviation = level.joined(look)
            for preset in missing - sides.keys():
                if abs(mean - preset) > TOLERANCE + z * deviation:
                    sides[preset] = _side(mean, preset)
            if len(sides) == len(missing):
                break
        return sides, first

    def _correct(self, model: nn.Module, turn: int, begin: int, end: int) -> int:
        """Of images begin to end of this validation's. One device synchronisation."""
        places = torch.arange(begin, end, device=self._order_M.device) + turn * FIRST_LOOK
        rows_M = self._order_M[places % self._whole.count]
        return self._whole.only(rows_M).correct(model, teacher_heads)[0]

    def state_dict(self) -> dict[str, Any]:
        level = self._level
        assert level is not None, "start() comes first"
        look = level.pending
        return {
            "mean": level.mean,
            "variance": level.variance,
            "look": None if look is None else [look.accuracy, look.variance],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        look = None if state["look"] is None else Look(*state["look"])
        self._level = Level(state["mean"], state["variance"], look)


def _side(accuracy: float, preset: float) -> int:
    return 1 if accuracy > preset else -1
