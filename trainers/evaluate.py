"""Evaluation on the whole test set: counts, reduced over the workers, divided once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainers.augment import normalise
from trainers.data.images import ImageData
from trainers.data.pool import PlainViews
from trainers.distributed import World
from trainers.precision import autocast
from trainers.pulse import PULSE

__all__ = ["STUDENT_COLUMNS", "TEACHER_COLUMNS", "TestSet", "evaluation_set", "percent"]

EVALUATION_BATCH = 1000

STUDENT_COLUMNS = (
    "step", "epoch", "top1_h", "top1_g", "correct_h", "correct_g", "count", "train_kl", "train_ce",
    "target_entropy", "teacher_agreement", "images_per_s", "wall_time_s", "timestamp_ms",
    "replayed",
)  # fmt: skip
TEACHER_COLUMNS = (
    "step", "epoch", "top1", "correct", "count", "train_ce", "images_per_s", "wall_time_s",
    "timestamp_ms", "replayed",
)  # fmt: skip
"""Columns of metrics.parquet by kind (docs/architecture.md says what they mean)."""


def percent(correct: int, count: int) -> float:
    return 100.0 * correct / count


class TestSet:
    """A test split; every worker evaluates its share of it.

    images: uint8 (M, 3, H, W), on the labels' device, or sent there batch by batch; those that stay
    encoded are decoded once somebody looks. labels: (M,).
    part: evaluate on this many samples spread evenly over the split (screening); None is the whole
    set.
    """

    __test__ = False  # not a pytest class

    def __init__(
        self,
        images: Tensor | PlainViews,
        labels: Tensor,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        world: World,
        precision: str,
        part: int | None = None,
    ) -> None:
        self._images = images
        self._all_labels = labels
        # On the device once: sent batch by batch, each would be waited for.
        self._mean_C = torch.tensor(mean, device=labels.device)
        self._std_C = torch.tensor(std, device=labels.device)
        self._world = world
        self._precision = precision
        self._choose(part)

    def _choose(self, part: int | Tensor | None) -> None:
        rows = _rows(self._images, part)
        self.count = self._images.shape[0] if rows is None else len(rows)
        if rows is None and self._world.size > 1:
            rows = torch.arange(self.count, device=self._images.device)
        self._mine = None if rows is None else rows[self._world.rank :: self._world.size]
        labels = self._all_labels
        self._labels = labels if self._mine is None else labels[self._mine.to(labels.device)]

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self._images.device

    def only(self, rows_M: Tensor) -> TestSet:
        """These rows of the split (on the images' device), in this order; no image is copied."""
        part = copy.copy(self)
        part._choose(rows_M)
        return part

    @torch.inference_mode()
    def correct(
        self, model: nn.Module, heads: Callable[[nn.Module, Tensor], list[Tensor]]
    ) -> list[int]:
        """Correct top-1 predictions on the set, for each head's logits. The model is evaluated in
        evaluation mode and left in the mode it was in. One device synchronisation."""
        training = model.training
        model.eval()
        totals: Tensor | None = None
        # A worker without a sample (more workers than samples) still answers, with zeros.
        for first in range(0, max(len(self._labels), 1), EVALUATION_BATCH):
            PULSE.beat()
            rows = slice(first, first + EVALUATION_BATCH)
            images = self._images[rows if self._mine is None else self._mine[rows]]
            views = normalise(images.to(self._labels.device), self._mean_C, self._std_C)
            with autocast(views.device, self._precision):
                logits = heads(model, views)
            right = torch.stack([(head.argmax(1) == self._labels[rows]).sum() for head in logits])
            totals = right if totals is None else totals + right
        model.train(training)
        assert totals is not None
        return [int(value) for value in self._world.sum(totals).tolist()]


def _rows(images: Tensor | PlainViews, part: int | Tensor | None) -> Tensor | None:
    """Rows of the split; None for all of them."""
    count = images.shape[0]
    if part is None or isinstance(part, Tensor):
        return part
    if part >= count:
        return None
    return torch.linspace(0, count - 1, part, device=images.device).round().long()


def evaluation_set(
    data: ImageData, *, device: torch.device, world: World, precision: str, part: int | None = None
) -> TestSet:
    """The test split of `data` for models on `device`. Views of encoded pictures (ImageNet: 7.5 GB)
    stay where they are: sending them costs little beside evaluating them."""
    images = data.test_images
    if isinstance(images, Tensor):
        images = images.to(device)
    return TestSet(
        images, data.test_labels.to(device), data.info.mean, data.info.std,
        world=world, precision=precision, part=part,
    )  # fmt: skip


def teacher_heads(model: nn.Module, views: Tensor) -> list[Tensor]:
    return [model(views)]


def student_heads(model: nn.Module, views: Tensor) -> list[Tensor]:
    """h first, then g."""
    projection, classifier = model(views)
    return [classifier, projection]


def standard_error(accuracy: float, count: int) -> float:
    """Of a top-1 percentage measured on `count` samples, in points."""
    share = min(max(accuracy / 100, 0.5 / count), 1 - 0.5 / count)
    return 100 * math.sqrt(share * (1 - share) / count)
