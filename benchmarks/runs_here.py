"""Whether the code runs on a device at all: a few steps of every kind, each on its own.

    python benchmarks/runs_here.py [--device cuda] [--json runs_here.json]

The first thing to ask of a machine: precisions, strategies, mixed images, a teacher's validations,
torch.compile, CUDA graphs, channels-last. What fails is said and the others go on; exit status 1
says that something did. Nothing here is a measurement.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from accelerator import describe_device
from baselines.images import load_images
from machine import describe
from rich.console import Console
from rich.table import Table

from trainers.data.images import ImageData
from trainers.distributed import World
from trainers.engine import Engine, configure
from trainers.evaluate import evaluation_set, student_heads
from trainers.events import Evaluation, Finished
from trainers.models import build_teacher
from trainers.spec import (
    AUGMENTATIONS,
    AdamW,
    Backbone,
    Dataset,
    Request,
    Runtime,
    StudentSpec,
    TeacherRef,
    TeacherSpec,
)
from trainers.student import build_engine
from trainers.targets import SoftTargets
from trainers.teacher import train_teacher

console = Console()


@dataclass(frozen=True)
class Place:
    """Where everything is tried. steps: of each student."""

    device: str
    width: int
    batch: int
    steps: int
    data: ImageData = field(repr=False)

    def runtime(self, **changes: Any) -> Runtime:
        runtime = Runtime(device=self.device, **changes)
        configure(runtime)
        return runtime


@dataclass(frozen=True)
class Trial:
    """Something to try. try_it: returns what there is to say; raises where it does not run."""

    name: str
    try_it: Callable[[Place], Mapping[str, Any]]


class _EqualTargets:
    """Stands for a file of soft targets."""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes

    def rows(self, samples_N: Tensor) -> Tensor:
        return torch.full((len(samples_N), self._num_classes), 1 / self._num_classes)


def engine_of(
    place: Place, strategy: str, precision: str, augmentation: str, **runtime: Any
) -> Engine:
    info = place.data.info
    spec = StudentSpec(
        dataset=Dataset(name=info.name, fingerprint=info.fingerprint),
        backbone=Backbone(name="resnet18", width=place.width),
        augmentation=AUGMENTATIONS[augmentation],
        strategy=cast(Any, strategy),
        optimizer=AdamW(lr=1e-3, weight_decay=0.01),
        batch_size=place.batch,
        seed=0,
        teacher=None if strategy == "A" else TeacherRef(key="0" * 64, accuracy=60.0),
        temperature=None if strategy == "A" else 2.0,
        precision=cast(Any, precision),
    )
    teacher: nn.Module | None = None
    if strategy == "B":
        teacher = build_teacher(
            spec.backbone, image_size=info.image_size, num_classes=info.num_classes, seed=1
        )
    targets = cast(SoftTargets, _EqualTargets(info.num_classes)) if strategy == "C" else None
    return build_engine(
        spec, place.data, place.runtime(**runtime), World(), teacher=teacher, targets=targets
    )


def student(
    strategy: str, precision: str, place: Place, *, augmentation: str = "std", **runtime: Any
) -> Mapping[str, Any]:
    """Some steps and one evaluation."""
    engine = engine_of(place, strategy, precision, augmentation, **runtime)
    try:
        began = time.perf_counter()
        for _ in range(place.steps):
            engine.update()
        means = engine.means()  # waits; raises where a loss was not finite
        trained_s = time.perf_counter() - began
        tests = evaluation_set(place.data, device=engine.device, world=World(), precision=precision)
        tests.correct(engine.model, student_heads)
    finally:
        engine.close()
    return {"train_kl": round(means["train_kl"], 4), "seconds": round(trained_s, 2)}


def weights_are_channels_last(place: Place) -> Mapping[str, Any]:
    """Of every convolution, whose kernels are chosen by it."""
    engine = engine_of(place, "A", "bf16", "std")
    try:
        engine.update()
        convolutions = [m for m in engine.model.modules() if isinstance(m, nn.Conv2d)]
        for module in convolutions:
            if not module.weight.is_contiguous(memory_format=torch.channels_last):
                raise AssertionError(f"{module} is not channels-last")
    finally:
        engine.close()
    return {"convolutions": len(convolutions)}


def teacher(place: Place) -> Mapping[str, Any]:
    """A search that validates after every step and ends at its limit."""
    info = place.data.info
    spec = TeacherSpec(
        dataset=Dataset(name=info.name, fingerprint=info.fingerprint),
        backbone=Backbone(name="resnet18", width=place.width),
        augmentation=AUGMENTATIONS["std"],
        optimizer=AdamW(lr=1e-3, weight_decay=0.01),
        batch_size=place.batch,
        seed=0,
        precision="bf16",
    )
    request = Request(horizon=place.steps, presets=(100.0,))
    events = list(train_teacher(spec, place.data, request, place.runtime()))
    if not isinstance(events[-1], Finished):
        raise AssertionError(f"it ended with {events[-1]}")
    return {"validations": sum(isinstance(event, Evaluation) for event in events)}


def trials(device: str, *, with_compile: bool) -> list[Trial]:
    """In an order in which the first one that fails says most."""
    found = [
        Trial("A, fp32", partial(student, "A", "fp32")),
        Trial("A, bf16", partial(student, "A", "bf16")),
        Trial("weights are channels-last", weights_are_channels_last),
        Trial("B, bf16", partial(student, "B", "bf16")),
        Trial("C, bf16", partial(student, "C", "bf16")),
        Trial("A, bf16, mixup", partial(student, "A", "bf16", augmentation="mixup")),
        Trial("A, bf16, cutmix", partial(student, "A", "bf16", augmentation="cutmix")),
        Trial("a teacher, bf16", teacher),
    ]
    if device.startswith("cuda"):
        found.append(
            Trial("A, bf16, no CUDA graph", partial(student, "A", "bf16", cuda_graphs=False))
        )
    if with_compile:
        found.append(Trial("A, bf16, compiled", partial(student, "A", "bf16", compile=True)))
        found.append(Trial("B, bf16, compiled", partial(student, "B", "bf16", compile=True)))
    return found


def attempt(trial: Trial, place: Place) -> dict[str, Any]:
    began = time.perf_counter()
    found: dict[str, Any] = {"trial": trial.name, "ran": True, "error": ""}
    try:
        found["said"] = dict(trial.try_it(place))
    except Exception as error:
        found |= {"ran": False, "error": f"{type(error).__name__}: {error}"}
        console.print(traceback.format_exc(), markup=False, highlight=False)
    return found | {"seconds": round(time.perf_counter() - began, 1)}


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table("", "ran", "seconds", "", title=title)
    for row in rows:
        said = ", ".join(f"{name} {value}" for name, value in row.get("said", {}).items())
        table.add_row(
            row["trial"], "yes" if row["ran"] else "NO", f"{row['seconds']}", said or row["error"]
        )
    console.print(table)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--width", type=int, default=64, help="channels of the first stage of ResNet-18")
    add("--batch", type=int, default=128)
    add("--steps", type=int, default=12, help="enough for a CUDA graph to be captured and replayed")
    add("--images", type=int, default=2000, help="training images, of noise")
    add("--no-compile", action="store_true", help="leave torch.compile out")
    add("--json", type=Path, default=None, help="write rows and machine there, as they come")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    data = load_images([], train=options.images, test=options.batch)
    place = Place(options.device, options.width, options.batch, options.steps, data)
    about = describe_device(torch.device(options.device))
    rows: list[dict[str, Any]] = []
    for trial in trials(options.device, with_compile=not options.no_compile):
        rows.append(attempt(trial, place))
        failed = [row["trial"] for row in rows if not row["ran"]]
        if options.json is not None:
            found = {
                "machine": describe("torch", "torchvision", "numpy"),
                "device": about,
                "rows": rows,
                "headline": [f"{len(rows) - len(failed)} of {len(rows)} ran", *failed],
            }
            options.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    show(about["name"], rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
