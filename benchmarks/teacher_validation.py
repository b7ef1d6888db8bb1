"""A teacher with validation after every step: what it costs, and what screening finds late.

    python benchmarks/teacher_validation.py [--data FOLDER] [--width 8] [--steps 400]
        [--rules exact,1000,adaptive] [--replays 20] [--json teacher_validation.json]

One teacher is trained under each rule of validation, in turns of --block steps in one process (the
rule changes nothing of the training, so all are at the same step): `none` validates nothing,
`exact` the whole test set, a number that many images first (`teacher.screen: 1000`), `adaptive` as
many as it takes. A turn is timed from the end of its first step to the end of its last, on a CPU in
processor time, so that other work on the machine enters little; ratios are turn by turn against
`none`. images: test images evaluated a step, confirmations and bisections among them. modelled:
1 + images / (3 batches), the ratio where an evaluated image costs a third of a trained one and
nothing else costs anything: what a busy GPU comes to.

Then adaptive screening is repeated on the accuracies that `exact` saw, --replays times with other
images being right: late and missed crossings of many draws from one search.

--data: a prepared data set, or a folder with CIFAR-10 in a layout that `data prepare` knows;
without it, scikit-learn's digits. It needs torch alone where the folder is a prepared one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe
from rich.console import Console
from rich.table import Table

from trainers.data.images import ImageData
from trainers.data.prepare import prepare
from trainers.data.prepared import load
from trainers.distributed import World
from trainers.evaluate import TestSet
from trainers.events import Checkpoint, Evaluation, Snapshot
from trainers.harvest import in_window, jumped_over
from trainers.presets import STANDARD_PRESETS
from trainers.screening import AdaptiveScreen
from trainers.spec import (
    AUGMENTATIONS,
    AdamW,
    Backbone,
    Dataset,
    Request,
    Runtime,
    TeacherSpec,
)
from trainers.teacher import train_teacher
from trainers.validation import Validator

NEVER = 10**9
UNREACHED = 100.0
"""Asked of every search besides the others, so that none ends before its steps are over."""
CLASSES = 10
"""Of every data set here."""


class Images:
    """Test images evaluated so far."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts, inside the block, what every test set of the process is asked."""
        correct = TestSet.correct

        def counting(its: TestSet, *arguments: Any) -> list[int]:
            self.count += its.count
            return correct(its, *arguments)

        TestSet.correct = counting  # type: ignore[method-assign]
        try:
            yield
        finally:
            TestSet.correct = correct  # type: ignore[method-assign]


class Turn:
    """A stop flag that is asked after every step: it ends the turn and reads clock and counter."""

    def __init__(self, steps: int, images: Images, device: torch.device) -> None:
        self._left = steps
        self._images = images
        self._device = device
        self._marks: list[tuple[float, int]] = []
        self.steps = steps - 1

    def is_set(self) -> bool:
        self._left -= 1
        if not self._marks or not self._left:
            self._marks.append((self._now(), self._images.count))
        return self._left <= 0

    def _now(self) -> float:
        if self._device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._marks[-1][0] - self._marks[0][0]

    @property
    def images(self) -> int:
        return self._marks[-1][1] - self._marks[0][1]


class Search:
    """One teacher under one rule, trained turn by turn."""

    def __init__(self, rule: str, spec: TeacherSpec, data: ImageData, runtime: Runtime) -> None:
        self.rule = rule
        self._spec, self._data, self._runtime = spec, data, runtime
        self._state: dict[str, Any] | None = None
        self.snapshots: dict[float, Snapshot] = {}
        self.rows: list[dict[str, Any]] = []
        self.step_s: list[float] = []
        self.images: list[int] = []

    def _request(self, presets: Sequence[float]) -> Request:
        plain: dict[str, Any] = {"none": {"validate_every": NEVER}, "exact": {}}
        screen = self.rule if self.rule == "adaptive" or self.rule in plain else int(self.rule)
        options = plain.get(self.rule, {"screen": screen})
        return Request(horizon=NEVER, presets=(*presets, UNREACHED), **options)

    def take_turn(self, presets: Sequence[float], steps: int, images: Images) -> None:
        turn = Turn(steps, images, torch.device(self._runtime.device))
        events = train_teacher(
            self._spec, self._data, self._request(presets), self._runtime,
            harvested=frozenset(self.snapshots), state=self._state, stop=turn,
        )  # fmt: skip
        for event in events:
            if isinstance(event, Snapshot):
                self.snapshots[event.preset] = dataclasses.replace(event, weights={})
            elif isinstance(event, Evaluation):
                self.rows.append(dict(event.row))
            elif isinstance(event, Checkpoint) and event.keep_as is None:
                self._state = event.state
        self.step_s.append(turn.seconds / turn.steps)
        self.images.append(turn.images)

    def found(self) -> dict[str, Any]:
        return {
            f"{preset:g}": {"step": one.step, "accuracy": one.accuracy, "alpha": one.alpha}
            for preset, one in sorted(self.snapshots.items())
        }


# -- the same search, drawn again -----------------------------------------------------------------


class Recorded(nn.Module):
    """A teacher's state as it is told: which images it is right on. An image is its own number."""

    def __init__(self, right_M: Tensor) -> None:
        super().__init__()
        self._right_M = right_M

    def forward(self, views: Tensor) -> Tensor:
        numbers = (views[:, 0, 0, 0] * 255 + views[:, 1, 0, 0] * 255 * 256).round().long()
        right_N = self._right_M[numbers]
        return torch.stack([right_N, ~right_N], 1).float()


def numbered(count: int) -> TestSet:
    """A test set of images that are their numbers; each is of class 0."""
    numbers = torch.arange(count)
    images = torch.zeros(count, 3, 1, 1, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 1, 0, 0] = numbers % 256, numbers // 256
    labels = torch.zeros(count, dtype=torch.int64)
    return TestSet(images, labels, (0.0,) * 3, (1.0,) * 3, world=World(), precision="fp32")


def crossings(trace: Sequence[float], presets: Iterable[float]) -> dict[float, int]:
    """The validation at which the exact rule finds each preset, where it does."""
    found: dict[float, int] = {}
    for turn, accuracy in enumerate(trace):
        before = trace[turn - 1] if turn else accuracy
        for preset in presets:
            if in_window(accuracy, preset, CLASSES) or jumped_over(
                before, accuracy, preset, CLASSES
            ):
                found.setdefault(preset, turn)
    return found


def replay(trace: Sequence[float], presets: Iterable[float], whole: TestSet, seed: int) -> Any:
    """Adaptive screening of a search whose accuracies are known; its crossings, and the images."""
    draws, images = torch.Generator().manual_seed(seed), Images()
    found = {preset: 0 for preset in presets if in_window(trace[0], preset, CLASSES)}
    missing = set(presets) - found.keys()
    validator = Validator(whole, AdaptiveScreen(whole, CLASSES))
    validator.screen.start(Recorded(torch.ones(whole.count)), 0, trace[0], missing)
    with images.counted():
        for turn, accuracy in enumerate(trace[1:], 1):
            rank_M = torch.randperm(whole.count, generator=draws)
            state = Recorded(rank_M < round(accuracy * whole.count / 100))
            verdict = validator.validate(state, turn, missing)
            for preset in verdict.presets if verdict else ():
                before = trace[turn - 1]
                is_inside = in_window(accuracy, preset, CLASSES) or in_window(
                    before, preset, CLASSES
                )
                if is_inside or jumped_over(before, accuracy, preset, CLASSES):
                    found[preset] = turn
                    missing.discard(preset)
    return found, images.count


def replays(trace: Sequence[float], presets: set[float], num_test: int, n: int) -> dict[str, Any]:
    exact, whole = crossings(trace, presets), numbered(num_test)
    delays, missed, images = [], 0, 0
    for seed in range(n):
        found, asked = replay(trace, presets, whole, seed)
        images += asked
        missed += len(exact.keys() - found.keys())
        delays += [found[preset] - turn for preset, turn in exact.items() if preset in found]
    late = sorted(delay for delay in delays if delay > 0)
    return {
        "n": n,
        "crossings": n * len(exact),
        "late": len(late),
        "missed": missed,
        "median_delay_of_late": median(late) if late else 0,
        "delays_of_late": late,
        "images_a_step": round(images / max(n * (len(trace) - 1), 1), 1),
    }


# -- what is printed and written ------------------------------------------------------------------


def costs(search: Search, baseline: Search, batch_size: int, block: int) -> dict[str, Any]:
    ratios = [own / its for own, its in zip(search.step_s, baseline.step_s, strict=True)]
    images = sum(search.images) / (len(search.images) * (block - 1))
    whole = sum(search.step_s) / sum(baseline.step_s)
    return {
        "ms_a_step": round(median(search.step_s) * 1e3, 3),
        "ratio": round(whole, 3),
        "ratio_quartiles": [round(one, 3) for one in quantiles(ratios, n=4)],
        "turns": len(ratios),
        "images_a_step": round(images, 1),
        "modelled": round(1 + images / (3 * batch_size), 3),
        "ratio_by_turn": [round(one, 3) for one in ratios],
    }


def lateness(search: Search, exact: Search) -> dict[str, Any]:
    """Of the crossings that exact validation found."""
    steps = {preset: one.step for preset, one in exact.snapshots.items()}
    both = steps.keys() & search.snapshots.keys()
    delays = {preset: search.snapshots[preset].step - steps[preset] for preset in both}
    return {
        "crossings": len(steps),
        "same": sum(delay == 0 for delay in delays.values()),
        "late": {f"{preset:g}": delay for preset, delay in sorted(delays.items()) if delay},
        "missed": [f"{preset:g}" for preset in sorted(steps.keys() - both)],
    }


def show(console: Console, result: dict[str, Any], searches: Sequence[Search]) -> None:
    table = Table("rule", "ms a step", "× none", "quartiles", "images a step", "modelled ×")
    for rule, cost in result["cost"].items():
        quartiles = " ".join(f"{one:.2f}" for one in cost["ratio_quartiles"])
        table.add_row(
            rule, f"{cost['ms_a_step']:.1f}", f"{cost['ratio']:.2f}", quartiles,
            f"{cost['images_a_step']:.0f}", f"{cost['modelled']:.2f}",
        )  # fmt: skip
    console.print(table)
    validated = [search for search in searches if search.rule != "none"]
    table = Table("preset", *(search.rule for search in validated))
    for preset in sorted({preset for search in validated for preset in search.snapshots}):
        found = [search.snapshots.get(preset) for search in validated]
        cells = (f"step {one.step}: {one.accuracy:.2f}%" if one else "missed" for one in found)
        table.add_row(f"{preset:g}", *cells)
    console.print(table)
    for rule, one in result["against_exact"].items():
        console.print(f"{rule}: {one['same']} of {one['crossings']} the same, late {one['late']}")
    console.print("adaptive, drawn again:", result["replays"])


def read_data(folder: Path | None, image_size: int | None, test_images: int | None) -> ImageData:
    """Prepared data as it is; anything else is decoded into a folder that goes away."""
    if folder is not None and (folder / "meta.json").exists():
        data = load(folder, image_size=image_size)
    else:
        with tempfile.TemporaryDirectory() as out:
            prepare("digits" if folder is None else "cifar10", out=Path(out), path=folder)
            data = load(Path(out), image_size=image_size)
    if test_images is None or test_images >= len(data.test_labels):
        return data
    rows = torch.linspace(0, len(data.test_labels) - 1, test_images).round().long()
    return dataclasses.replace(
        data, test_images=data.test_images[rows], test_labels=data.test_labels[rows]
    )


def measured(options: argparse.Namespace) -> tuple[dict[str, Any], list[Search]]:
    data = read_data(options.data, options.image_size, options.test_images)
    spec = TeacherSpec(
        dataset=Dataset(name=data.info.name, fingerprint=data.info.fingerprint),
        backbone=Backbone(name="resnet18", width=options.width),
        augmentation=AUGMENTATIONS[options.augmentation],
        optimizer=AdamW(lr=options.lr, weight_decay=0.01),
        batch_size=options.batch_size,
        seed=options.seed,
        precision=options.precision,
    )
    runtime = Runtime(device=options.device, compile=options.compile, checkpoint_every_s=1e9)
    presets = [float(one) for one in options.presets.split(",")]
    searches = [Search(rule, spec, data, runtime) for rule in ("none", *options.rules.split(","))]
    images = Images()
    with images.counted():
        for _ in range(options.steps // options.block):
            for search in searches:
                search.take_turn(presets, options.block, images)
    baseline, exact = searches[0], next(one for one in searches if one.rule == "exact")
    trace = [row["top1"] for row in exact.rows]
    wanted = {*presets, UNREACHED, *STANDARD_PRESETS}
    num_test = len(data.test_labels)
    result = {
        "data": data.info.name,
        "test_images": num_test,
        "steps": len(trace) - 1,
        "load_before": options.load,
        "cost": {s.rule: costs(s, baseline, spec.batch_size, options.block) for s in searches},
        "found": {s.rule: s.found() for s in searches if s.rule != "none"},
        "against_exact": {
            s.rule: lateness(s, exact) for s in searches if s.rule not in ("none", "exact")
        },
        "replays": replays(trace, wanted, num_test, options.replays),
        "top1": trace,
    }
    return result, searches


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--image-size", type=int, default=None, help="pixels; default: the data's")
    parser.add_argument("--test-images", type=int, default=None, help="a part of the test set")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--augmentation", choices=list(AUGMENTATIONS), default="std")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--block", type=int, default=20, help="steps of a turn")
    parser.add_argument("--presets", default=",".join(map(str, range(10, 95, 5))))
    parser.add_argument("--rules", default="exact,1000,adaptive")
    parser.add_argument("--replays", type=int, default=20)
    parser.add_argument("--json", type=Path, default=None, help="write rows and machine there too")
    options = parser.parse_args()
    if "exact" not in options.rules.split(","):
        parser.error("--rules has no exact, against which the others are judged")
    if options.block < 2 or options.steps < options.block:
        parser.error("a turn has two steps or more, and --steps one turn or more")
    return options


def main() -> None:
    options = parsed()
    options.load = round(os.getloadavg()[0], 1)
    result, searches = measured(options)
    show(Console(), result, searches)
    if options.json is not None:
        paths = ("data", "json")
        given = {name: str(value) for name, value in vars(options).items() if name not in paths}
        about = {"machine": describe("torch"), "options": given, **result}
        options.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
