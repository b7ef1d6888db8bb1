"""A probe: a linear classifier h trained afterwards on a student's frozen backbone (equation 2).

What is trained jointly in a student, on detached features, is trained here alone: on the features
of weights that no longer move, with the batch-norm statistics they were left with. It draws its
order, its augmentations and its first weights by itself, from the student's seed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from trainers.batches import Batch, BatchSource
from trainers.compiled import compiled
from trainers.control import StopFlag
from trainers.data.images import ImageData
from trainers.data.subset import ipc_indices
from trainers.distributed import World
from trainers.engine import Engine, Sums, configure
from trainers.errors import CheckpointError
from trainers.evaluate import TestSet, evaluation_set, percent
from trainers.events import Event, Row
from trainers.label_noise import noisy_labels
from trainers.losses import classifier_loss
from trainers.models import build_probe
from trainers.precision import autocast
from trainers.schedule import steps_per_epoch
from trainers.spec import ProbeSpec, Request, Runtime
from trainers.strategies import one_hot
from trainers.student import train_to_horizon

__all__ = ["ProbeObjective", "build_probe_engine", "train_probe"]

_NAN = float("nan")
_BACKBONE = "backbone."


class ProbeObjective:
    """Cross-entropy of h on features that send no gradient anywhere.

    backbone: φ, on the device, in evaluation mode. labels_S: (S,) class indices of the full
    training set. The model that the objective is called with is h alone.
    """

    def __init__(
        self, backbone: nn.Module, labels_S: Tensor, num_classes: int, precision: str
    ) -> None:
        self.backbone = backbone
        self._labels_S = labels_S
        self._num_classes = num_classes
        self._precision = precision

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Sums]:
        targets_NC = batch.mixed(
            lambda samples: one_hot(self._labels_S[samples], self._num_classes)
        )
        with autocast(batch.views.device, self._precision):
            with torch.inference_mode():
                features_ND = self.backbone(batch.views)
            # A copy made outside of inference mode: the classifier's backward pass keeps its input.
            logits_NC = model(features_ND.clone())
        ce = classifier_loss(logits_NC, targets_NC)
        return ce, {"train_ce": ce}


def build_probe_engine(
    spec: ProbeSpec,
    data: ImageData,
    runtime: Runtime,
    world: World,
    *,
    weights: dict[str, Tensor],
) -> tuple[Engine, nn.Module]:
    """The probe at step 0, and the frozen backbone on its device. weights: the student's, of which
    φ's are taken. Raises CheckpointError when they are of another backbone."""
    device = torch.device(runtime.device)
    backbone, classifier = build_probe(
        spec.backbone, image_size=data.info.image_size, num_classes=data.info.num_classes,
        seed=spec.seed,
    )  # fmt: skip
    _load_backbone(backbone, weights)
    backbone = backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    backbone.eval().requires_grad_(False)
    samples = ipc_indices(
        data.train_labels, ipc=spec.dataset.ipc, subset_seed=spec.dataset.subset_seed or 0
    )
    batches = BatchSource(
        data, samples, spec.augmentation, role="probe", seed=spec.seed,
        batch_size=spec.batch_size, world=world, device=device,
        decode_threads=runtime.decode_threads, compile=runtime.compile,
    )  # fmt: skip
    features = compiled(backbone, wanted=runtime.compile)
    labels = noisy_labels(data.train_labels, spec.dataset, num_classes=data.info.num_classes)
    objective = ProbeObjective(features, labels.to(device), data.info.num_classes, spec.precision)
    engine = Engine(
        classifier, objective, batches, optimizer=spec.optimizer, role="probe", seed=spec.seed,
        norm_batch=None, runtime=runtime, world=world,
    )  # fmt: skip
    return engine, features


def _load_backbone(backbone: nn.Module, weights: dict[str, Tensor]) -> None:
    own = {
        name.removeprefix(_BACKBONE): value
        for name, value in weights.items()
        if name.startswith(_BACKBONE)
    }
    try:
        backbone.load_state_dict(own)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(
            f"the student's weights do not fit the backbone of its probe: {first}",
            "delete the student's folder; the next run trains it again",
        ) from error


def train_probe(
    spec: ProbeSpec,
    data: ImageData,
    request: Request,
    runtime: Runtime,
    *,
    weights: dict[str, Tensor],
    state: dict[str, Any] | None = None,
    stop: StopFlag | None = None,
) -> Iterator[Event]:
    """Trains h from `state` (or from the start) to request.horizon; yields what `train_student`
    does. weights: the student's. Every worker of a process group consumes its own."""
    configure(runtime)
    world = World.current()
    engine, backbone = build_probe_engine(spec, data, runtime, world, weights=weights)
    if state is not None:
        engine.load_state_dict(state)
    tests = evaluation_set(data, device=engine.device, world=world, precision=spec.precision)
    epoch_steps = steps_per_epoch(data.info.num_train, spec.batch_size)
    with closing(engine):
        yield from train_to_horizon(
            engine, request, runtime, epoch_steps=epoch_steps, stop=stop,
            evaluate=lambda: _evaluation(engine, backbone, tests, epoch_steps),
        )  # fmt: skip


def _evaluation(engine: Engine, backbone: nn.Module, tests: TestSet, epoch_steps: int) -> Row:
    """A student's row; what belongs to g alone is not a number here."""
    means = engine.means()
    rate = engine.lap()
    (right,) = tests.correct(engine.compiled_model, lambda model, views: [model(backbone(views))])
    engine.rest()
    return {
        "step": engine.step,
        "epoch": engine.step / epoch_steps,
        "top1_h": percent(right, tests.count),
        "top1_g": _NAN,
        "correct_h": right,
        "count": tests.count,
        "train_kl": _NAN,
        **means,
        "target_entropy": _NAN,
        "teacher_agreement": _NAN,
        "images_per_s": rate,
        "wall_time_s": engine.elapsed_s,
        "timestamp_ms": int(time.time() * 1000),
        "replayed": False,
    }
