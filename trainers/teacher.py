"""A teacher run: cross-entropy on one-hot targets, saved whenever it reaches a preset accuracy
(`trainers.harvest`), which validations show (`trainers.validation`)."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from trainers.batches import Batch, BatchSource
from trainers.control import Control, StopFlag
from trainers.data.images import ImageData
from trainers.distributed import World
from trainers.engine import Engine, Sums, configure
from trainers.evaluate import TestSet, evaluation_set
from trainers.events import Checkpoint, Evaluation, Event, Finished, Progress, Row
from trainers.harvest import Harvester, Weights
from trainers.label_noise import noisy_labels
from trainers.losses import classifier_loss
from trainers.models import build_teacher
from trainers.precision import autocast
from trainers.presets import STANDARD_PRESETS
from trainers.schedule import steps_per_epoch
from trainers.screening import AdaptiveScreen
from trainers.spec import Request, Runtime, Screening, TeacherSpec
from trainers.strategies import one_hot
from trainers.student import checkpoint_of
from trainers.validation import PartScreen, Screen, Validator

__all__ = ["build_engine", "train_teacher"]


def _copy(weights: Weights) -> Weights:
    return {name: value.detach().clone() for name, value in weights.items()}


def _copy_into(kept: Weights, weights: Weights) -> None:
    """After every validation: on a GPU two launches, where a copy of each tensor takes 122."""
    for floating in (True, False):  # a launch takes one type
        names = [name for name, value in weights.items() if value.is_floating_point() is floating]
        if names:  # a net without batch-norm counts nothing
            into, values = ([of[name] for name in names] for of in (kept, weights))
            torch._foreach_copy_(into, values)


class TeacherObjective:
    """Cross-entropy on (mixed) one-hot targets: strategy A, one classifier."""

    def __init__(self, spec: TeacherSpec, labels_S: Tensor, num_classes: int) -> None:
        self._precision = spec.precision
        self._labels_S = labels_S
        self._num_classes = num_classes

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Sums]:
        targets_NC = batch.mixed(lambda rows: one_hot(self._labels_S[rows], self._num_classes))
        with autocast(batch.views.device, self._precision):
            logits_NC = model(batch.views)
        loss = classifier_loss(logits_NC, targets_NC)
        return loss, {"train_ce": loss}


def build_engine(spec: TeacherSpec, data: ImageData, runtime: Runtime, world: World) -> Engine:
    device = torch.device(runtime.device)
    batches = BatchSource(
        data, torch.arange(len(data.train_labels)), spec.augmentation, role="teacher",
        seed=spec.seed, batch_size=spec.batch_size, world=world, device=device,
        decode_threads=runtime.decode_threads, compile=runtime.compile,
    )  # fmt: skip
    model = build_teacher(
        spec.backbone, image_size=data.info.image_size, num_classes=data.info.num_classes,
        seed=spec.seed,
    )  # fmt: skip
    num_classes = data.info.num_classes
    labels = noisy_labels(data.train_labels, spec.dataset, num_classes=num_classes)
    objective = TeacherObjective(spec, labels.to(device), num_classes)
    return Engine(
        model, objective, batches, optimizer=spec.optimizer, role="teacher", seed=spec.seed,
        norm_batch=None, runtime=runtime, world=world,
    )  # fmt: skip


def train_teacher(
    spec: TeacherSpec,
    data: ImageData,
    request: Request,
    runtime: Runtime,
    *,
    harvested: frozenset[float] = frozenset(),
    state: dict[str, Any] | None = None,
    stop: StopFlag | None = None,
) -> Iterator[Event]:
    """Trains until every requested preset is harvested, or to request.horizon.

    Yields one `Evaluation` a validated step (step 0, the initialisation, included), a `Snapshot` a
    preset and a kept `Checkpoint` per ten points of accuracy. `harvested` presets, which the store
    has, are not looked for. Every worker of a process group consumes its own generator.
    """
    configure(runtime)
    world = World.current()
    engine = build_engine(spec, data, runtime, world)
    if state is not None:
        engine.load_state_dict(state)

    def tests(part: int | None) -> TestSet:
        return evaluation_set(
            data, device=engine.device, world=world, precision=spec.precision, part=part
        )

    whole = tests(None)
    num_classes = data.info.num_classes
    validator = Validator(whole, _screen(request.screen, whole, tests, num_classes))
    wanted = set(request.presets) - harvested
    presets = (wanted | set(STANDARD_PRESETS)) - harvested
    harvester = Harvester(
        copy.deepcopy(engine.model), whole, presets, num_classes, compile=runtime.compile
    )
    run = _TeacherRun(engine, validator, harvester, wanted, request, data.info.num_train)
    run.start(state or {})
    control = Control(stop, runtime.checkpoint_every_s, world, engine.device)
    with closing(engine):
        yield from run.train(control, fresh=state is None)


def _screen(
    asked: Screening, whole: TestSet, part: Callable[[int], TestSet], num_classes: int
) -> Screen:
    if asked is None:
        return Screen()
    if asked == "adaptive":
        return AdaptiveScreen(whole, num_classes)
    return PartScreen(part(asked), num_classes)


class _TeacherRun:
    """The loop's own state: the last validated weights and their accuracy."""

    def __init__(
        self, engine: Engine, validator: Validator, harvester: Harvester, wanted: set[float],
        request: Request, num_train: int,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._validator = validator
        self._harvester = harvester
        self._wanted = wanted
        self._request = request
        self._epoch_steps = steps_per_epoch(num_train, engine.batches.batch_size)
        self._before: Weights = {}
        self._before_step = 0
        self._accuracy = float("nan")
        self._accuracy_known = True

    def start(self, state: dict[str, Any]) -> None:
        """Takes up the last validated state: the present one, or the earlier one that a checkpoint
        between two validations brings along."""
        engine = self._engine
        weights, step = engine.model.state_dict(), engine.step
        if validated := state.get("validated"):
            weights, step = validated["weights"], validated["step"]
        self._before = {name: value.to(engine.device) for name, value in _copy(weights).items()}
        self._before_step = step
        self._accuracy = self._harvester.accuracy(self._before)
        screen = self._validator.screen
        if screening := state.get("screening"):
            screen.load_state_dict(screening)
        harvester = self._harvester
        screen.start(harvester.compiled_model, self._turn(step), self._accuracy, harvester.missing)
        engine.rest()

    def _turn(self, step: int) -> int:
        """Number of the validation after `step`."""
        return step // self._request.validate_every

    def _missing(self) -> set[float]:
        return self._wanted & self._harvester.missing

    def train(self, control: Control, *, fresh: bool) -> Iterator[Event]:
        engine, request = self._engine, self._request
        told = time.monotonic()
        if fresh:
            yield from self._start()
        while self._missing() and engine.step < request.horizon:
            engine.update()
            if engine.step % request.validate_every == 0:
                yield from self._validate()
            if time.monotonic() - told >= 1.0:
                told = time.monotonic()
                yield Progress(step=engine.step, top1=self._accuracy)
            checkpoint_due, stopping = control.ask(engine.step)
            if checkpoint_due:
                yield self._checkpoint()
            if stopping and self._missing() and engine.step < request.horizon:
                yield Finished(reason="stopped", step=engine.step)
                return
        yield self._checkpoint()
        missing = tuple(sorted(self._missing()))
        yield Finished(reason="exhausted" if missing else "done", step=engine.step, missing=missing)

    def _checkpoint(self, keep_as: str | None = None) -> Checkpoint:
        """The engine's state, what screening remembers, and between two validations the weights of
        the earlier one too: an update that is bisected after the resumption must begin where it
        would have begun. A checkpoint that is kept is of a validated step itself."""
        event = checkpoint_of(self._engine, keep_as)
        if event.state and keep_as is None and self._before_step != event.step:
            weights = {name: value.to("cpu", copy=True) for name, value in self._before.items()}
            event.state["validated"] = {"step": self._before_step, "weights": weights}
        if event.state and (screening := self._validator.screen.state_dict()):
            event.state["screening"] = screening
        return event

    def _start(self) -> Iterator[Event]:
        """The random initialisation counts as validated: CIFAR-10's 10% teacher is one."""
        yield Evaluation(row=self._row(self._accuracy, {}))
        yield from self._harvester.find(
            0, self._before, self._accuracy, self._before, self._accuracy, self._harvester.missing
        )

    def _validate(self) -> Iterator[Event]:
        engine = self._engine
        means = engine.means()  # waits for the device, so the lap below times the steps themselves
        rate = engine.lap()
        verdict = self._validator.validate(
            engine.compiled_model, self._turn(engine.step), self._harvester.missing
        )
        if verdict is None:
            # Screened away: the update's other end, should the next one have to be bisected, still
            # needs its accuracy on the whole set; `_accuracy_before` measures it then.
            self._keep(None)
            return
        accuracy = verdict.accuracy
        before = self._accuracy_before() if verdict.jumps else float("nan")
        weights = engine.model.state_dict()
        yield Evaluation(row=self._row(accuracy, means, rate))
        for snapshot in self._harvester.find(
            engine.step, self._before, before, weights, accuracy, verdict.presets,
            looks_back=verdict.looks_back,
        ):  # fmt: skip
            yield snapshot
            if snapshot.preset % 10 == 0:
                yield self._checkpoint(keep_as=f"{snapshot.preset:g}")
        self._keep(accuracy)

    def _keep(self, accuracy: float | None) -> None:
        """Makes the present state the last validated one. accuracy: None where it is not known."""
        engine = self._engine
        _copy_into(self._before, engine.model.state_dict())
        self._before_step = engine.step
        self._accuracy_known = accuracy is not None
        if accuracy is not None:
            self._accuracy = accuracy
        engine.rest()

    def _accuracy_before(self) -> float:
        return self._accuracy if self._accuracy_known else self._harvester.accuracy(self._before)

    def _row(self, accuracy: float, means: dict[str, float], rate: float = 0.0) -> Row:
        engine, count = self._engine, self._harvester.count
        return {
            "step": engine.step,
            "epoch": engine.step / self._epoch_steps,
            "top1": accuracy,
            "correct": round(accuracy * count / 100),
            "count": count,
            "train_ce": means.get("train_ce", float("nan")),
            "images_per_s": rate,
            "wall_time_s": engine.elapsed_s,
            "timestamp_ms": int(time.time() * 1000),
            "replayed": False,
        }
