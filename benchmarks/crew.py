"""Several students on one device, each in a process of its own, that train together when told."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import torch
from baselines.images import load_images

from trainers.distributed import World
from trainers.engine import Engine, configure
from trainers.spec import AUGMENTATIONS, AdamW, Backbone, Dataset, Precision, Runtime, StudentSpec
from trainers.student import build_engine

__all__ = ["Crew", "Job", "steps_within"]

_WARM_UP_STEPS = 20
"""Kernels are chosen and the step is captured in the first few."""

_CHUNK_S = 0.05
"""Between two looks at the clock. Looking waits for the device."""

_LEAD_S = 0.2
"""From the word to the start: every process has heard it by then."""

Stamps = list[tuple[float, int]]
"""Moments (of the clock that all processes of a machine share), and steps done by then."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every student trains. images: how many of noise, in CIFAR-10's shape."""

    device: str
    precision: Precision
    width: int
    batch: int
    images: int
    compile: bool = False
    image_size: int = 32

    def engine(self, seed: int) -> Engine:
        data = load_images([], train=self.images, test=1)
        spec = StudentSpec(
            dataset=Dataset(name=data.info.name, fingerprint=data.info.fingerprint),
            backbone=Backbone(name="resnet18", width=self.width),
            augmentation=AUGMENTATIONS["std"],
            strategy="A",
            optimizer=AdamW(lr=1e-3, weight_decay=0.01),
            batch_size=self.batch,
            seed=seed,
            precision=self.precision,
        )
        runtime = Runtime(device=self.device, compile=self.compile)
        configure(runtime)
        return build_engine(spec, data, runtime, World())


class Crew:
    """`number` students, warmed up. patience_s: how long the slowest may take for that.

    Raises SystemExit where one of them ended: its own error stands above that."""

    def __init__(self, job: Job, number: int, *, patience_s: float) -> None:
        self._batch = job.batch
        self._patience_s = patience_s
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        # CUDA does not survive a fork.
        context = multiprocessing.get_context("spawn")
        for seed in range(number):
            ours, theirs = context.Pipe()
            process = context.Process(target=_student, args=(job, seed, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def __enter__(self) -> Crew:
        try:
            for number in range(len(self._pipes)):
                self._heard(number, self._patience_s)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def turn(self, runs: int, *, settle_s: float, window_s: float) -> list[float]:
        """Images/s of the first `runs` students while exactly these train."""
        begins = time.monotonic() + _LEAD_S
        opens, closes = begins + settle_s, begins + settle_s + window_s
        for pipe in self._pipes[:runs]:
            pipe.send((begins, closes))
        wait_s = self._patience_s + settle_s + window_s
        stamps = [self._heard(number, wait_s) for number in range(runs)]
        return [self._batch * steps_within(one, opens, closes) / window_s for one in stamps]

    def _heard(self, number: int, patience_s: float) -> Any:
        try:
            if self._pipes[number].poll(patience_s):
                return self._pipes[number].recv()
        except (EOFError, ConnectionError):
            raise SystemExit(f"student {number} of {len(self._pipes)} ended") from None
        raise SystemExit(f"student {number} of {len(self._pipes)} said nothing in {patience_s:g} s")

    def close(self) -> None:
        """Ends the students, those too that hang."""
        for pipe in self._pipes:
            pipe.close()  # they end when nobody is there to tell them anything
        for process in self._processes:
            process.join(10.0)
            if process.is_alive():
                process.kill()


def _student(job: Job, seed: int, pipe: Connection) -> None:
    """The process of one student."""
    engine = job.engine(seed)
    chunk = _warm_up(engine)
    try:
        pipe.send("ready")
        while True:
            begins, closes = pipe.recv()
            time.sleep(max(0.0, begins - time.monotonic()))
            pipe.send(_train_until(engine, closes, chunk))
    except (EOFError, ConnectionError):
        engine.close()


def _warm_up(engine: Engine) -> int:
    """Steps a chunk."""
    for _ in range(_WARM_UP_STEPS // 2):
        engine.update()
    began = _now(engine)
    for _ in range(_WARM_UP_STEPS // 2):
        engine.update()
    step_s = (_now(engine) - began) / (_WARM_UP_STEPS // 2)
    return max(1, int(_CHUNK_S / step_s))


def _train_until(engine: Engine, closes: float, chunk: int) -> Stamps:
    """Nobody stops before the window closes, so all of it is under the load of all."""
    stamps = [(_now(engine), 0)]
    while stamps[-1][0] < closes:
        for _ in range(chunk):
            engine.update()
        stamps.append((_now(engine), stamps[-1][1] + chunk))
    return stamps


def _now(engine: Engine) -> float:
    """Once all steps are done."""
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
    return time.monotonic()


def steps_within(stamps: Sequence[tuple[float, int]], opens: float, closes: float) -> float:
    """Steps done between two moments, those that straddle one of them in part."""
    return _steps_by(stamps, closes) - _steps_by(stamps, opens)


def _steps_by(stamps: Sequence[tuple[float, int]], moment: float) -> float:
    done = 0.0
    for (began, before), (ended, after) in pairwise(stamps):
        share = min(max((moment - began) / (ended - began), 0.0), 1.0)
        done += share * (after - before)
    return done
