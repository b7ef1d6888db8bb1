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
from trainers.data import ImageData, ipc_indices
from trainers.distributed import World
from trainers.engine import Engine, Sums, configure
from trainers.errors import UnsuitableError
from trainers.evaluate import TestSet, evaluation_set, percent, student_heads
from trainers.events import Checkpoint, Evaluation, Event, Finished, Progress, Row, Weights
from trainers.losses import classifier_loss, projection_loss, target_entropy
from trainers.models import build_student
from trainers.precision import autocast, in_precision
from trainers.schedule import evaluation_steps, steps_per_epoch
from trainers.spec import Request, Runtime, StudentSpec
from trainers.strategies import one_hot, shared_target, soft_target
from trainers.targets import SoftTargets

__all__ = ["StudentObjective", "train_student"]


class StudentObjective:
    """L_total = L_B + L_H of equation 3 for one strategy.

    teacher: strategy B's teacher, on the device, in evaluation mode. stored_SC: strategy C's soft
    targets by index in the full training set, on the device. labels_S: (S,) class indices.
    compile: the losses.
    """

    def __init__(
        self,
        spec: StudentSpec,
        labels_S: Tensor,
        num_classes: int,
        *,
        teacher: nn.Module | None = None,
        stored_SC: Tensor | None = None,
        compile: bool = False,
    ) -> None:
        self._spec = spec
        self._labels_S = labels_S
        self._num_classes = num_classes
        self._teacher = teacher
        self._stored_SC = stored_SC
        self._losses = compiled(student_losses, wanted=compile)

    def one_hot_targets(self, batch: Batch) -> Tensor:
        """(N, C) rows of the samples' classes, mixed as the images are."""
        return batch.mixed(lambda samples: one_hot(self._labels_S[samples], self._num_classes))

    def targets(self, batch: Batch, one_hot_NC: Tensor) -> Tensor:
        """ψ of the batch: (N, C) float32. B asks the teacher about the mixed image itself; A and C
        mix the partners' targets with the images' λ."""
        if self._spec.strategy == "A":
            return one_hot_NC
        assert self._spec.temperature is not None
        if self._spec.strategy == "B":
            assert self._teacher is not None
            with torch.inference_mode(), autocast(batch.views.device, self._spec.precision):
                logits_NC = self._teacher(batch.views)
            return soft_target(logits_NC, self._spec.temperature).clone()
        assert self._stored_SC is not None
        stored_SC = self._stored_SC
        return batch.mixed(lambda samples: shared_target(stored_SC, samples))

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Sums]:
        one_hot_NC = self.one_hot_targets(batch)
        targets_NC = self.targets(batch, one_hot_NC)
        with autocast(batch.views.device, self._spec.precision):
            projection_NC, classifier_NC = model(batch.views)
        return self._losses(
            projection_NC, classifier_NC, targets_NC, one_hot_NC,
            student_temperature=self._spec.student_temperature, ce_weight=self._spec.ce_weight,
        )  # fmt: skip


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
    agree = (projection_NC.detach().argmax(1) == targets_NC.argmax(1)).float().mean()
    means = {
        "train_kl": kl,
        "train_ce": ce,
        "target_entropy": target_entropy(targets_NC).mean(),
        "teacher_agreement": agree,
    }
    return kl + ce_weight * ce, means


def build_engine(
    spec: StudentSpec,
    data: ImageData,
    runtime: Runtime,
    world: World,
    *,
    teacher: nn.Module | None = None,
    targets: SoftTargets | None = None,
) -> Engine:
    """The student at step 0. Raises UnsuitableError where strategy and what was given disagree."""
    if (spec.strategy == "B") != (teacher is not None) or (spec.strategy == "C") != (
        targets is not None
    ):
        raise UnsuitableError(
            f"strategy {spec.strategy} was given teacher={teacher is not None}, "
            f"soft targets={targets is not None}",
            "B takes a teacher, C takes soft targets, A neither",
        )
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
        stored = targets.rows(torch.arange(len(data.train_labels))).to(device)
    objective = StudentObjective(
        spec, data.train_labels.to(device), data.info.num_classes, teacher=teacher,
        stored_SC=stored, compile=runtime.compile,
    )  # fmt: skip
    model = build_student(
        spec.backbone, image_size=data.info.image_size, num_classes=data.info.num_classes,
        seed=spec.seed, joint=spec.loss == "joint",
    )  # fmt: skip
    return Engine(
        model, objective, batches, optimizer=spec.optimizer, role="student", seed=spec.seed,
        norm_batch=spec.norm_batch, runtime=runtime, world=world,
    )  # fmt: skip


def train_student(
    spec: StudentSpec,
    data: ImageData,
    request: Request,
    runtime: Runtime,
    *,
    teacher: nn.Module | None = None,
    targets: SoftTargets | None = None,
    state: dict[str, Any] | None = None,
    stop: StopFlag | None = None,
) -> Iterator[Event]:
    """Trains from `state` (or from the start) to request.horizon; yields evaluations, checkpoints
    and signs of life, and `Finished` last. Every worker of a process group consumes its own."""
    configure(runtime)
    world = World.current()
    engine = build_engine(spec, data, runtime, world, teacher=teacher, targets=targets)
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
