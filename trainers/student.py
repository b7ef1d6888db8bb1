"""A student run: decoupled training under a mapping strategy (equations 1 to 3)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from trainers.batches import Batch, BatchSource
from trainers.compiled import compiled
from trainers.control import Control, StopFlag
from trainers.data.images import ImageData
from trainers.data.subset import ipc_indices
from trainers.distributed import World
from trainers.engine import Engine, Sums, configure
from trainers.errors import UnsuitableError
from trainers.evaluate import TestSet, evaluation_set, percent, student_heads
from trainers.events import Checkpoint, Evaluation, Event, Finished, Progress, Row, Weights
from trainers.label_noise import noisy_labels
from trainers.losses import (
    classifier_loss,
    distillation_loss,
    projection_loss,
    target_entropy,
)
from trainers.models import build_student
from trainers.precision import autocast, in_precision
from trainers.revision import revise
from trainers.schedule import evaluation_steps, steps_per_epoch
from trainers.selection import selected
from trainers.spec import Request, Runtime, StudentSpec
from trainers.strategies import one_hot, shared_target, soft_target
from trainers.targets import SoftTargets

__all__ = ["StudentObjective", "train_student"]


class StudentObjective:
    """L_total = L_B + L_H of equation 3 for one strategy, or the loss of conventional distillation.

    labels_S: (S,) class indices, as the run sees them. teacher: strategy B's teacher, on the
    device, in evaluation mode. stored_SC: strategy C's soft targets by index in the full training
    set, on the device. selected_S: (S,) 1 where a sample learns from the teacher, else 0; None: all
    do. compile: the losses.
    """

    def __init__(
        self,
        spec: StudentSpec,
        labels_S: Tensor,
        num_classes: int,
        *,
        teacher: nn.Module | None = None,
        stored_SC: Tensor | None = None,
        selected_S: Tensor | None = None,
        compile: bool = False,
    ) -> None:
        self._spec = spec
        self._labels_S = labels_S
        self._num_classes = num_classes
        self._teacher = teacher
        self._stored_SC = stored_SC
        self._selected_S = selected_S
        self._losses = compiled(student_losses, wanted=compile)
        self._kd_losses = compiled(kd_losses, wanted=compile)

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Sums]:
        one_hot_NC = self.one_hot_targets(batch)
        if self._spec.loss == "kd":
            return self._distillation(model, batch, one_hot_NC)
        targets_NC = self.targets(batch, one_hot_NC)
        projection_NC, classifier_NC = self._logits(model, batch)
        return self._losses(
            projection_NC, classifier_NC, targets_NC, one_hot_NC,
            student_temperature=self._spec.student_temperature, ce_weight=self._spec.ce_weight,
        )  # fmt: skip

    def _distillation(
        self, model: nn.Module, batch: Batch, one_hot_NC: Tensor
    ) -> tuple[Tensor, Sums]:
        """One classifier. Without a teacher it learns from the labels alone."""
        own_NC, revised_NC = self._own_and_revised(batch, one_hot_NC)
        alpha_N = torch.full_like(one_hot_NC[:, 0], self._spec.alpha or 0.0)
        if self._selected_S is not None:
            alpha_N = alpha_N * batch.mixed(self._share_of).squeeze(1)
        logits_NC, _ = self._logits(model, batch)
        return self._kd_losses(
            logits_NC, one_hot_NC, own_NC, revised_NC, alpha_N,
            temperature=self._spec.temperature or 1.0, revised_weight=self._spec.revised_weight,
        )  # fmt: skip

    def _logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        with autocast(batch.views.device, self._spec.precision):
            projection_NC, classifier_NC = model(batch.views)
        return projection_NC, classifier_NC

    # -- targets: B asks the teacher about the (mixed) image itself and revises what it says; what A
    # and C know of samples is put right by sample, then mixed with the images' λ ------------------

    def one_hot_targets(self, batch: Batch) -> Tensor:
        """ψ_A: (N, C) rows of the samples' classes, mixed as the images are."""
        return batch.mixed(self._one_hot)

    def targets(self, batch: Batch, one_hot_NC: Tensor) -> Tensor:
        """ψ of the batch, (N, C) float32: soft targets, revised, of what is selected (D^t), one-hot
        rows of the rest (D^s). An image mixed from both gets λ of each; under B, whose teacher saw
        it as one, D^t's part of it is the teacher's."""
        if self._spec.strategy == "A":
            return one_hot_NC
        if self._spec.strategy == "C":
            return batch.mixed(self._of_sample)
        soft_NC = revise(self._asked(batch), one_hot_NC, self._spec.revision)
        if self._selected_S is None:
            return soft_NC
        return batch.mixed(self._share_of) * soft_NC + batch.mixed(
            lambda samples: (1 - self._share_of(samples)) * self._one_hot(samples)
        )

    def _of_sample(self, samples_N: Tensor) -> Tensor:
        """What C knows: (N, C)."""
        if self._selected_S is None:
            return self._revised(samples_N)
        is_selected_N1 = self._share_of(samples_N) > 0
        return torch.where(is_selected_N1, self._revised(samples_N), self._one_hot(samples_N))

    def _own_and_revised(self, batch: Batch, one_hot_NC: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's soft targets as they are, and revised; one-hot rows without a teacher."""
        if self._spec.strategy == "A":
            return one_hot_NC, one_hot_NC
        if self._spec.strategy == "C":
            return batch.mixed(self._stored), batch.mixed(self._revised)
        own_NC = self._asked(batch)
        return own_NC, revise(own_NC, one_hot_NC, self._spec.revision)

    def _asked(self, batch: Batch) -> Tensor:
        """Strategy B's teacher about the views."""
        assert self._teacher is not None
        assert self._spec.temperature is not None
        with torch.inference_mode(), autocast(batch.views.device, self._spec.precision):
            logits_NC = self._teacher(batch.views)
        return soft_target(logits_NC, self._spec.temperature).clone()

    def _stored(self, samples_N: Tensor) -> Tensor:
        assert self._stored_SC is not None
        return shared_target(self._stored_SC, samples_N)

    def _revised(self, samples_N: Tensor) -> Tensor:
        stored_NC = self._stored(samples_N)
        if self._spec.revision is None:
            return stored_NC
        return revise(stored_NC, self._one_hot(samples_N), self._spec.revision)

    def _one_hot(self, samples_N: Tensor) -> Tensor:
        return one_hot(self._labels_S[samples_N], self._num_classes)

    def _share_of(self, samples_N: Tensor) -> Tensor:
        """(N, 1): 1 in D^t, 0 in D^s."""
        assert self._selected_S is not None
        return self._selected_S[samples_N].unsqueeze(1)


def student_losses(
    projection_NC: Tensor,
    classifier_NC: Tensor,
    targets_NC: Tensor,
    one_hot_NC: Tensor,
    *,
    student_temperature: float,
    ce_weight: float,
) -> tuple[Tensor, Sums]:
    """L_B + ce_weight · L_H of the heads' logits, and the batch's means of what is reported."""
    kl = projection_loss(projection_NC, targets_NC, student_temperature=student_temperature)
    ce = classifier_loss(classifier_NC, one_hot_NC)
    return kl + ce_weight * ce, _means(kl, ce, projection_NC, targets_NC)


def kd_losses(
    logits_NC: Tensor,
    truth_NC: Tensor,
    teacher_NC: Tensor,
    revised_NC: Tensor,
    alpha_N: Tensor,
    *,
    temperature: float,
    revised_weight: float,
) -> tuple[Tensor, Sums]:
    """`losses.distillation_loss`, and the batch's means of what is reported: KL to the revised
    targets without its T², over all samples, selected or not."""
    loss = distillation_loss(
        logits_NC, truth_NC, teacher_NC, revised_NC,
        temperature=temperature, alpha_N=alpha_N, revised_weight=revised_weight,
    )  # fmt: skip
    kl = projection_loss(logits_NC, revised_NC, student_temperature=temperature)
    return loss, _means(kl, classifier_loss(logits_NC, truth_NC), logits_NC, revised_NC)


def _means(kl: Tensor, ce: Tensor, logits_NC: Tensor, targets_NC: Tensor) -> Sums:
    agree = (logits_NC.detach().argmax(1) == targets_NC.argmax(1)).float().mean()
    return {
        "train_kl": kl,
        "train_ce": ce,
        "target_entropy": target_entropy(targets_NC).mean(),
        "teacher_agreement": agree,
    }


def build_engine(
    spec: StudentSpec,
    data: ImageData,
    runtime: Runtime,
    world: World,
    *,
    teacher: nn.Module | None = None,
    targets: SoftTargets | None = None,
    scores: Tensor | None = None,
) -> Engine:
    """The student at step 0. scores: (S,) of the full training set, where it selects. Raises
    UnsuitableError where spec and what was given disagree."""
    _refuse_unfit(spec, teacher, targets, scores)
    device = torch.device(runtime.device)
    samples = ipc_indices(
        data.train_labels, ipc=spec.dataset.ipc, subset_seed=spec.dataset.subset_seed or 0
    )
    batches = BatchSource(
        data, samples, spec.augmentation, role="student", seed=spec.seed,
        batch_size=spec.batch_size, world=world, device=device,
        decode_threads=runtime.decode_threads, compile=runtime.compile,
    )  # fmt: skip
    if teacher is not None:
        teacher = teacher.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        teacher = compiled(in_precision(teacher, spec.precision), wanted=runtime.compile)
    stored = None
    if targets is not None:
        stored = _sent(targets, len(data.train_labels), device)
    chosen = None
    if spec.selection is not None and scores is not None:
        chosen = selected(scores, samples, spec.selection.fraction).float().to(device)
    num_classes = data.info.num_classes
    labels = noisy_labels(data.train_labels, spec.dataset, num_classes=num_classes)
    objective = StudentObjective(
        spec, labels.to(device), num_classes, teacher=teacher, stored_SC=stored,
        selected_S=chosen, compile=runtime.compile,
    )  # fmt: skip
    model = build_student(
        spec.backbone, image_size=data.info.image_size, num_classes=num_classes,
        seed=spec.seed, joint=spec.loss == "joint", one_classifier=spec.loss == "kd",
    )  # fmt: skip
    return Engine(
        model, objective, batches, optimizer=spec.optimizer, role="student", seed=spec.seed,
        norm_batch=spec.norm_batch, runtime=runtime, world=world,
    )  # fmt: skip


_ROWS = 50_000
"""Soft targets sent at once: of ImageNet's 1.28 million, a worker holds no copy of its own."""


def _sent(targets: SoftTargets, count: int, device: torch.device) -> Tensor:
    """The first `count` rows, on the device."""
    sent_SC = torch.empty(0)
    for first in range(0, count, _ROWS):
        rows_NC = targets.rows(torch.arange(first, min(first + _ROWS, count)))
        if not first:
            sent_SC = torch.empty((count, *rows_NC.shape[1:]), dtype=rows_NC.dtype, device=device)
        sent_SC[first : first + len(rows_NC)] = rows_NC
    return sent_SC


def _refuse_unfit(
    spec: StudentSpec,
    teacher: nn.Module | None,
    targets: SoftTargets | None,
    scores: Tensor | None,
) -> None:
    if (spec.strategy == "B") != (teacher is not None) or (spec.strategy == "C") != (
        targets is not None
    ):
        raise UnsuitableError(
            f"strategy {spec.strategy} was given teacher={teacher is not None}, "
            f"soft targets={targets is not None}",
            "B takes a teacher, C takes soft targets, A neither",
        )
    if (spec.selection is not None) != (scores is not None):
        raise UnsuitableError(
            f"a student that {'selects' if spec.selection else 'does not select'} was given "
            f"scores={scores is not None}",
            "selection takes the scores of the full training set, and nothing else does",
        )


def train_student(
    spec: StudentSpec,
    data: ImageData,
    request: Request,
    runtime: Runtime,
    *,
    teacher: nn.Module | None = None,
    targets: SoftTargets | None = None,
    scores: Tensor | None = None,
    state: dict[str, Any] | None = None,
    stop: StopFlag | None = None,
) -> Iterator[Event]:
    """Trains from `state` (or from the start) to request.horizon; yields evaluations, checkpoints
    and signs of life, and `Finished` last. Every worker of a process group consumes its own."""
    configure(runtime)
    world = World.current()
    engine = build_engine(
        spec, data, runtime, world, teacher=teacher, targets=targets, scores=scores
    )
    if state is not None:
        engine.load_state_dict(state)
    tests = evaluation_set(data, device=engine.device, world=world, precision=spec.precision)
    epoch_steps = steps_per_epoch(data.info.num_train, spec.batch_size)
    with closing(engine):
        yield from train_to_horizon(
            engine, request, runtime, epoch_steps=epoch_steps, stop=stop,
            evaluate=lambda: _evaluation(engine, tests, epoch_steps),
        )  # fmt: skip


def train_to_horizon(
    engine: Engine,
    request: Request,
    runtime: Runtime,
    *,
    epoch_steps: int,
    evaluate: Callable[[], Row],
    stop: StopFlag | None,
) -> Iterator[Event]:
    """The loop of students and of their probes. evaluate: the row of the engine's present step."""
    due = frozenset(evaluation_steps(request.horizon, epoch_steps, request.evaluate_at))
    control = Control(stop, runtime.checkpoint_every_s, engine.world, engine.device)
    top1, told = None, time.monotonic()
    while engine.step < request.horizon:
        engine.update()
        if engine.step in due:
            row = evaluate()
            top1 = float(row["top1_h"])
            yield Evaluation(row=row)
        elif time.monotonic() - told >= 1.0:
            told = time.monotonic()
            yield Progress(step=engine.step, top1=top1)
        if engine.step in request.keep_weights_at:
            yield _weights_of(engine)  # before the checkpoint after which nobody comes by again
        checkpoint_due, stopping = control.ask(engine.step)
        if checkpoint_due or engine.step == request.horizon:
            yield checkpoint_of(engine)
        if stopping and engine.step < request.horizon:
            yield Finished(reason="stopped", step=engine.step)
            return
    yield Finished(reason="done", step=engine.step)


def checkpoint_of(engine: Engine, keep_as: str | None = None) -> Checkpoint:
    """The state of the run, empty on all but rank 0; every worker must ask for it. Raises
    NonFiniteLossError rather than keep weights that a bad loss has spoilt."""
    engine.check_finite()
    return Checkpoint(step=engine.step, state=engine.state_dict(), keep_as=keep_as)


def _weights_of(engine: Engine) -> Weights:
    """Raises NonFiniteLossError as `checkpoint_of` does; every worker must ask for it."""
    engine.check_finite()
    kept = engine.model.state_dict() if engine.world.rank == 0 else {}
    weights = {name: value.detach().to("cpu", copy=True) for name, value in kept.items()}
    return Weights(step=engine.step, weights=weights)


def _evaluation(engine: Engine, tests: TestSet, epoch_steps: int) -> Row:
    means = engine.means()  # waits for the device, so the lap below times the steps themselves
    rate = engine.lap()
    right_h, right_g = tests.correct(engine.compiled_model, student_heads)
    engine.rest()
    return {
        "step": engine.step,
        "epoch": engine.step / epoch_steps,
        "top1_h": percent(right_h, tests.count),
        "top1_g": percent(right_g, tests.count),
        "correct_h": right_h,
        "correct_g": right_g,
        "count": tests.count,
        **means,
        "images_per_s": rate,
        "wall_time_s": engine.elapsed_s,
        "timestamp_ms": int(time.time() * 1000),
        "replayed": False,
    }
