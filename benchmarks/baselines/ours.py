"""targetsweep's own step, as `train_student` makes it, and its evaluation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rounds import Stopwatch, Turn

from baselines.setting import TEMPERATURE, Setting
from trainers.data.images import ImageData
from trainers.distributed import World
from trainers.engine import Engine
from trainers.evaluate import evaluation_set, student_heads
from trainers.spec import Strategy
from trainers.student import build_engine
from trainers.targets import SoftTargets, TargetsIdentity, write_targets

__all__ = ["LEAD_IN", "OurEvaluation", "OurStep"]

LEAD_IN = 1
"""Steps before those that count, so that caches hold this contender's data, not the last one's."""


class OurStep:
    """One strategy's whole step: order, augmentation, targets, forward, backward, optimiser, sums.

    What it trains on goes to the device when it is built, as in a run.
    """

    def __init__(self, setting: Setting, strategy: Strategy) -> None:
        self.name = strategy
        self._device = setting.device
        self._batch = setting.batch
        self.engine = _engine(setting, strategy)

    def turn(self, steps: int) -> Turn:
        self.run(LEAD_IN)
        with Stopwatch(self._device) as watch:
            self.run(steps)
        return watch.turn(steps * self._batch)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.update()

    def close(self) -> None:
        self.engine.close()


class OurEvaluation:
    """Both heads of a student on the whole test set, with the reading of the training means before
    it: all that a validation adds to a run. A turn is one evaluation, whatever its steps."""

    def __init__(self, setting: Setting, step: OurStep) -> None:
        self.name = "evaluation"
        self._device = setting.device
        self._engine = step.engine
        self._tests = evaluation_set(
            setting.data, device=setting.device, world=World(), precision=setting.precision
        )

    def turn(self, steps: int) -> Turn:
        with Stopwatch(self._device) as watch:
            self._engine.means()
            self._tests.correct(self._engine.model, student_heads)
        return watch.turn(self._tests.count)

    def close(self) -> None:
        """The engine is its step's."""


def _engine(setting: Setting, strategy: Strategy) -> Engine:
    given: dict[str, Any] = {}
    if strategy == "B":
        given["teacher"] = setting.teacher()
    if strategy == "C":
        given["targets"] = _some_targets(setting.data)
    spec = setting.student_spec(strategy)
    return build_engine(spec, setting.data, setting.runtime, World(), **given)


def _some_targets(data: ImageData) -> SoftTargets:
    """Soft targets of no teacher, in a real file: reading rows costs the same whatever they say,
    and a teacher would take minutes to make them on a CPU."""
    logits_NC = np.random.default_rng(0).normal(
        size=(len(data.train_labels), data.info.num_classes)
    )
    shares_NC = np.exp(logits_NC)
    shares_NC /= shares_NC.sum(1, keepdims=True)
    identity = TargetsIdentity(
        teacher_digest="0" * 64, dataset_fingerprint=data.info.fingerprint, split="train",
        view="plain", temperature=TEMPERATURE, dtype="float32",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "targets.arrow"
        write_targets(path, shares_NC, identity)
        return SoftTargets(path, identity)
