"""What a pass of scores costs against the training that it is for, a ratio a round."""

from __future__ import annotations

import torch
from rounds import Contender, Stopwatch, Turn, play, spread

from trainers.data.images import ImageData
from trainers.data.info import DatasetInfo
from trainers.distributed import World
from trainers.models import build_student
from trainers.scores import score_samples
from trainers.spec import (
    AdamW,
    Augmentation,
    Backbone,
    Dataset,
    Runtime,
    Scoring,
    SelectionMethod,
    StudentRef,
    StudentSpec,
    scores_spec,
)
from trainers.student import build_engine

__all__ = ["costs"]

CPU = torch.device("cpu")
RUNTIME = Runtime(checkpoint_every_s=1e9)
BATCH = 128


def _pictures(count: int) -> ImageData:
    """Noise of CIFAR-10's form: what is in a picture costs nothing."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=draw, dtype=torch.uint8)
    labels = torch.arange(count) % 10
    info = DatasetInfo(
        name="noise", fingerprint="0" * 64, num_classes=10, num_train=count, num_test=1,
        smallest_class=count // 10, balanced=False, image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3,
    )  # fmt: skip
    return ImageData(
        info=info, train_images=images, train_labels=labels, test_images=images[:1],
        test_labels=labels[:1],
    )  # fmt: skip


def _student() -> StudentSpec:
    return StudentSpec(
        dataset=Dataset(name="noise", fingerprint="0" * 64),
        backbone=Backbone(name="resnet18", width=8),
        augmentation=Augmentation(),
        strategy="A",
        optimizer=AdamW(lr=1e-3, weight_decay=0.01),
        batch_size=BATCH,
        seed=0,
    )


class _Training:
    name = "training"

    def __init__(self, data: ImageData) -> None:
        self._engine = build_engine(_student(), data, RUNTIME, World())

    def turn(self, steps: int) -> Turn:
        with Stopwatch(CPU) as watch:
            for _ in range(steps):
                self._engine.update()
        return watch.turn(steps * BATCH)

    def close(self) -> None:
        self._engine.close()


class _Scores:
    """All passes of a method over the training set, whatever the steps."""

    def __init__(self, method: SelectionMethod, data: ImageData) -> None:
        self.name = method
        self._data = data
        model = build_student(_student().backbone, image_size=32, num_classes=10, seed=0)
        self._weights = [model.state_dict()]

    def turn(self, steps: int) -> Turn:
        student = _student()
        scoring = Scoring(
            method=self.name, student=StudentRef(key="0" * 64, step=1), damping=0.1
        )  # fmt: skip
        events = score_samples(
            scores_spec(student.dataset, scoring), self._data, RUNTIME,
            scorer=student, weights=self._weights,
        )  # fmt: skip
        with Stopwatch(CPU) as watch:
            for _ in events:
                pass
        return watch.turn(len(self._data.train_labels))

    def close(self) -> None:
        """Holds nothing."""


def costs(*, images: int, rounds: int) -> dict[str, dict[str, object]]:
    """By method, processor time an image over that of a training step, spread over rounds."""
    torch.set_num_threads(1)
    data = _pictures(images)
    training = _Training(data)
    methods: tuple[SelectionMethod, ...] = ("loss", "el2n", "influence", "tracin")
    contenders: list[Contender] = [training, *(_Scores(method, data) for method in methods)]
    ratios: dict[str, list[float]] = {method: [] for method in methods}
    for turns in play(contenders, rounds=rounds, steps=images // BATCH):
        its = turns["training"]
        for method in methods:
            own = turns[method]
            ratios[method].append(own.cpu_s / own.images / (its.cpu_s / its.images))
    training.close()
    return {method: spread(values).as_json() for method, values in ratios.items()}
