"""Rates of this device, measured on the spot: a few steps of every kind of run that a plan has, on
random images of the data set's shape. No data is needed.

It takes about the time that is given, whatever the plan: every model has its share of it, and one
that is too slow is left out and said (a step of a ResNet-50 on 512 photos takes a CPU minutes).
A batch that a GPU has no memory for is measured in parts, as the workers of such a run would train
on it.
"""

from __future__ import annotations

import dataclasses
import gc
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor

from orchestrator import clock
from orchestrator.estimate import group_of
from orchestrator.hardware import cpu_name
from orchestrator.rates import EVALUATION, Group, Rate, Rates
from orchestrator.units import Unit
from trainers.data.images import ImageData
from trainers.data.info import DatasetInfo
from trainers.distributed import World
from trainers.engine import Engine, configure
from trainers.evaluate import TestSet, student_heads
from trainers.graphs import WARM_UP_STEPS
from trainers.models import build_teacher
from trainers.spec import Runtime, StudentSpec, TeacherSpec
from trainers.student import build_engine
from trainers.targets import SoftTargets
from trainers.teacher import build_engine as build_teacher_engine

__all__ = ["calibrate"]

_IMAGES = 512
"""Random images that are trained on and evaluated."""

_SMALL_BATCH = 8
"""A step of so few images tells beforehand how long one of a whole batch will take."""

_SLOWEST = 1 / 8
"""Share of all the time that one step may take and still be measured."""

_KINDS = ("A", "B", "teacher", "C")
"""In the order in which they are measured while the time lasts: C costs what A costs."""


def calibrate(
    infos: Mapping[str, DatasetInfo],
    units: Iterable[Unit],
    *,
    steps: int = 10,
    seconds: float = 45.0,
) -> Rates:
    """Steps/s of the kinds of runs among `units`, and images/s of evaluating their models. steps:
    of each at most. seconds: for all together, about. Data sets of unknown shape are left out."""
    runtime = Runtime(device="cuda" if torch.cuda.is_available() else "cpu")
    configure(runtime)
    models = _models(infos, units)
    found: dict[Group, Rate] = {}
    left_out: list[Group] = []
    for group, (spec, kinds) in models.items():
        bench = _Bench(spec, _data(infos[group.dataset], group), runtime)
        step_s = float("inf")
        with suppress(torch.OutOfMemoryError):
            step_s = bench.predicted_s()
        if step_s > seconds * _SLOWEST:
            left_out.append(group)
            continue
        ends = time.perf_counter() + seconds / len(models)
        wanted = [kind for kind in _KINDS if kind in kinds]
        for kind in (*wanted[:1], EVALUATION, *wanted[1:]):
            # One kind and the evaluation of every model; where time is short, siblings do.
            if kind in wanted[1:] and time.perf_counter() > ends:
                continue
            its = dataclasses.replace(group, strategy=kind)
            rate = bench.measure(kind, steps, seconds / len(models) / len(_KINDS), step_s)
            if rate is not None:
                found[its] = rate
            elif kind == wanted[0]:
                left_out.append(group)
                break
    return Rates(steps=found, left_out=tuple(left_out), about=_about(runtime, steps))


def _models(
    infos: Mapping[str, DatasetInfo], units: Iterable[Unit]
) -> dict[Group, tuple[StudentSpec, set[str]]]:
    """What is to be measured: a student of each group, as strategy A, and the kinds of its runs."""
    found: dict[Group, tuple[StudentSpec, set[str]]] = {}
    for unit in units:
        spec = unit.spec
        if not isinstance(spec, StudentSpec | TeacherSpec) or spec.dataset.name not in infos:
            continue
        group = group_of(unit, infos)
        model = dataclasses.replace(group, strategy="A")
        found.setdefault(model, (_student(spec), set()))[1].add(group.strategy)
    return found


def _student(spec: StudentSpec | TeacherSpec) -> StudentSpec:
    return StudentSpec(
        dataset=dataclasses.replace(spec.dataset, ipc=None, subset_seed=None),
        backbone=spec.backbone,
        augmentation=spec.augmentation,
        strategy="A",
        optimizer=spec.optimizer,
        batch_size=spec.batch_size,
        seed=0,
        precision=spec.precision,
    )


class _Bench:
    """Measures one model on random images."""

    def __init__(self, spec: StudentSpec, data: ImageData, runtime: Runtime) -> None:
        self._spec = spec
        self._data = data
        self._runtime = runtime
        self._warm = True
        self._parts = 1
        """In which a batch is measured."""

    def predicted_s(self) -> float:
        """Seconds of a step, from one of a few images. More than it takes, on a GPU: fine."""
        size = min(_SMALL_BATCH, self._spec.batch_size)
        engine = self._engine(dataclasses.replace(self._spec, batch_size=size))
        engine.update()  # the first step allocates
        return self._timed(engine.update) * self._spec.batch_size / size

    def measure(self, kind: str, steps: int, share_s: float, step_s: float) -> Rate | None:
        """step_s: of a step, predicted. Slow ones are measured without one to warm up. None: not
        even a few images fit into memory; an evaluation's are always as many."""
        self._warm = step_s < share_s
        while True:
            # Not in the handler, where the error still holds what it ran out of.
            with suppress(torch.OutOfMemoryError):
                rate = self._measure(kind, steps, share_s)
                return Rate(rate.per_s / (1 if kind == EVALUATION else self._parts), rate.n)
            if kind == EVALUATION or self._spec.batch_size < 2 * _SMALL_BATCH:
                return None
            self._parts *= 2
            self._spec = dataclasses.replace(self._spec, batch_size=self._spec.batch_size // 2)
            gc.collect()
            if self._runtime.device == "cuda":
                torch.cuda.empty_cache()

    def _measure(self, kind: str, steps: int, share_s: float) -> Rate:
        if kind == EVALUATION:
            return self._evaluation(steps, share_s)
        if kind == "teacher":
            return self._repeated(self._teacher().update, steps, share_s)
        spec = dataclasses.replace(self._spec, strategy=kind)  # type: ignore[arg-type]
        if kind != "A":
            spec = dataclasses.replace(spec, temperature=2.0)
        return self._repeated(self._engine(spec).update, steps, share_s)

    def _engine(self, spec: StudentSpec) -> Engine:
        info = self._data.info
        teacher = targets = None
        if spec.strategy == "B":
            teacher = build_teacher(
                spec.backbone, image_size=info.image_size, num_classes=info.num_classes, seed=0
            )
        elif spec.strategy == "C":
            targets = cast(SoftTargets, _RandomTargets(info.num_classes))
        return build_engine(
            spec, self._data, self._runtime, World(), teacher=teacher, targets=targets
        )

    def _teacher(self) -> Engine:
        spec = self._spec
        its = TeacherSpec(
            dataset=spec.dataset,
            backbone=spec.backbone,
            augmentation=spec.augmentation,
            optimizer=spec.optimizer,
            batch_size=spec.batch_size,
            seed=0,
            precision=spec.precision,
        )
        return build_teacher_engine(its, self._data, self._runtime, World())

    def _evaluation(self, steps: int, share_s: float) -> Rate:
        engine, data = self._engine(self._spec), self._data
        count = _IMAGES if self._warm else _IMAGES // 8
        tests = TestSet(
            data.test_images[:count].to(engine.device),
            data.test_labels[:count].to(engine.device),
            data.info.mean,
            data.info.std,
            world=World(),
            precision=self._spec.precision,
        )
        rate = self._repeated(lambda: tests.correct(engine.model, student_heads), steps, share_s)
        return Rate(rate.per_s * tests.count, rate.n)

    def _repeated(self, act: Callable[[], Any], times: int, share_s: float) -> Rate:
        """`times`, or as many as `share_s` seconds are enough for; before them one to warm up, on a
        GPU as many as it takes until the step is captured and replayed. There `times` are measured
        as one and wait for the device once: a replayed step is shorter than such a wait."""
        on_gpu = self._runtime.device == "cuda"
        if self._warm:
            self._timed(act, WARM_UP_STEPS + 2 if on_gpu else 1)
        at_once = times if on_gpu and self._warm else 1
        count, spent = 0, 0.0
        while not count or (count < times and spent < share_s):
            spent += self._timed(act, at_once)
            count += at_once
        return Rate(count / spent, count)

    def _timed(self, act: Callable[[], Any], times: int = 1) -> float:
        began = time.perf_counter()
        for _ in range(times):
            act()
        if self._runtime.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


class _RandomTargets:
    """Stands for a file of soft targets: equal rows are as fast as any."""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes

    def rows(self, samples_N: Tensor) -> Tensor:
        return torch.full((len(samples_N), self._num_classes), 1 / self._num_classes)


def _data(info: DatasetInfo, group: Group) -> ImageData:
    """A few images of the group's shape. The order of samples repeats them to fill any batch."""
    size = group.image_size or info.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (_IMAGES, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.arange(_IMAGES) % info.num_classes
    return ImageData(
        info=dataclasses.replace(info, image_size=size),
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )


def _about(runtime: Runtime, steps: int) -> dict[str, str]:
    on_gpu = runtime.device == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else platform.processor() or "CPU"
    return {
        "device": device if on_gpu else f"{cpu_name() or device}, 1 thread",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": clock.now_utc().date().isoformat(),
        "method": f"up to {steps} steps each on random images, evaluation apart",
    }
