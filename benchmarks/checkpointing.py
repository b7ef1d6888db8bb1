"""What checkpoints cost a run: how long its loop stands still, and what is written meanwhile.

    python benchmarks/checkpointing.py [--width 64] [--steps 60] [--interval 5] [--rounds 5]
        [--device cuda] [--store FOLDER] [--json checkpointing.json]

The same student (random images, AdamW) is trained in turns, in one process: without checkpoints,
with one every `--interval` seconds as a run makes them (copied in the loop, written beside it), and
with all of it in the loop. `--store` says on which disk; a temporary folder by default.

still: from the end of a checkpoint's step until the loop goes on; on a GPU it includes waiting for
that step. slower: that, and what the write costs the steps beside it by its use of the processor
and of the disk: how much longer the steps of twice the time of a write take than as many of the
turn without checkpoints (their median). Shares are of a run that makes one a minute. The parts of
one checkpoint are timed alone, with nothing in training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from machine import describe
from rich.console import Console
from rich.table import Table

from orchestrator.recording import record
from orchestrator.records import Records
from orchestrator.store import Store
from trainers.checkpoint import write_state
from trainers.data.images import ImageData
from trainers.data.info import DatasetInfo
from trainers.distributed import World
from trainers.evaluate import STUDENT_COLUMNS
from trainers.events import Checkpoint, Evaluation, Event, Finished
from trainers.spec import AUGMENTATIONS, AdamW, Backbone, Dataset, Request, Runtime, StudentSpec
from trainers.student import train_student

NAME = "student-0123456789abcdef"
MINUTE_S = 60.0
NEVER_S = 1e9
WHOLE = "all, in a file that is synchronised"


@dataclass
class Turn:
    """One stretch of training. ticks_s: the ends of its steps; it is its own stop flag, which the
    loop asks once a step. saved_at: indices of ticks after which there was a checkpoint, and
    still_s what it took the loop; but of the last one, which the end brings."""

    ticks_s: list[float] = field(default_factory=list)
    saved_at: list[int] = field(default_factory=list)
    still_s: list[float] = field(default_factory=list)

    def is_set(self) -> bool:
        self.ticks_s.append(time.perf_counter())
        return False

    def watched(self, events: Iterable[Event], horizon: int) -> Iterator[Event]:
        for event in events:
            yield event
            if isinstance(event, Checkpoint) and event.step < horizon:
                self.still_s.append(time.perf_counter() - self.ticks_s[-1])
                self.saved_at.append(len(self.ticks_s) - 1)

    @property
    def step_s(self) -> float:
        """The median."""
        return statistics.median(end - begin for begin, end in pairwise(self.ticks_s))

    def slower_s(self, step_s: float, write_s: float) -> list[float]:
        """Of each checkpoint after which enough steps came. step_s: without any."""
        count = 1 + math.ceil(2 * write_s / step_s)
        return [
            self.ticks_s[at + count] - self.ticks_s[at] - count * step_s
            for at, following in zip(self.saved_at, [*self.saved_at[1:], 10**9], strict=True)
            if at + count < len(self.ticks_s) and at + count <= following
        ]


def images(count: int, size: int, num_test: int = 100) -> ImageData:
    generator = torch.Generator().manual_seed(0)

    def split(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.randint(0, 256, (number, 3, size, size), generator=generator)
        return pixels.to(torch.uint8), torch.arange(number) % 10

    train, test = split(count), split(num_test)
    info = DatasetInfo(
        name="random", fingerprint="0" * 64, num_classes=10, num_train=count, num_test=num_test,
        smallest_class=count // 10, balanced=True, image_size=size, mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )  # fmt: skip
    return ImageData(
        info=info, train_images=train[0], train_labels=train[1], test_images=test[0],
        test_labels=test[1],
    )  # fmt: skip


def student(width: int, batch_size: int) -> StudentSpec:
    return StudentSpec(
        dataset=Dataset(name="random", fingerprint="0" * 64),
        backbone=Backbone(name="resnet18", width=width),
        augmentation=AUGMENTATIONS["std"],
        strategy="A",
        optimizer=AdamW(lr=1e-3, weight_decay=0.01),
        batch_size=batch_size,
        seed=0,
    )


def nothing(event: Finished) -> None:
    """There is no result to write."""


def beside(records: Records, events: Iterable[Event]) -> None:
    for _ in record(
        records, events, World(), key="0" * 64, teacher_digest=None, replayed_until=0,
        finish=nothing,
    ):  # fmt: skip
        pass


def in_the_loop(records: Records, events: Iterable[Event]) -> None:
    for event in events:
        if isinstance(event, Evaluation):
            records.add(event.row, replayed=False)
        elif isinstance(event, Checkpoint):
            records.save_checkpoint(event)


WAYS: dict[str, tuple[Callable[[Records, Iterable[Event]], None], bool]] = {
    "none": (beside, False),
    "beside the loop": (beside, True),
    "in the loop": (in_the_loop, True),
}


def take_turn(way: str, options: argparse.Namespace, data: ImageData, folder: Path) -> Turn:
    consume, saves = WAYS[way]
    turn = Turn()
    every_s = options.interval if saves else NEVER_S
    runtime = Runtime(device=options.device, checkpoint_every_s=every_s)
    with tempfile.TemporaryDirectory(dir=folder) as store:
        events = train_student(
            student(options.width, options.batch), data, Request(horizon=options.steps), runtime,
            stop=turn,
        )  # fmt: skip
        records = Records(Store(store), NAME, STUDENT_COLUMNS)
        consume(records, turn.watched(events, options.steps))
    return turn


def turns(options: argparse.Namespace, data: ImageData, folder: Path) -> dict[str, list[Turn]]:
    """By way; the first round warms up and does not count. Each begins with another way."""
    found: dict[str, list[Turn]] = {way: [] for way in WAYS}
    names = list(WAYS)
    for number in range(options.rounds + 1):
        for way in names[number % 3 :] + names[: number % 3]:
            turn = take_turn(way, options, data, folder)
            if number:
                found[way].append(turn)
    return found


class Nowhere:
    """A stream that keeps nothing."""

    def write(self, data: bytes | memoryview) -> int:
        return len(data)

    def seek(self, position: int) -> int:
        return position

    def flush(self) -> None: ...


def parts(options: argparse.Namespace, data: ImageData, folder: Path) -> dict[str, list[float]]:
    """Seconds of a checkpoint's parts. Each row holds what the ones above it do, but for the hash
    and the rows, which stand alone."""
    spec, runtime = student(options.width, options.batch), Runtime(device=options.device)
    events = train_student(spec, data, Request(horizon=1), runtime)
    (event,) = [one for one in events if isinstance(one, Checkpoint)]
    held = [one.reshape(-1).view(torch.uint8) for one in _tensors(event.state) if one.dim()]
    flat = torch.cat(held).numpy()
    with tempfile.TemporaryDirectory(dir=folder) as store:
        records = Records(Store(store), NAME, STUDENT_COLUMNS)
        full = Records(Store(store), "student-fedcba9876543210", STUDENT_COLUMNS)
        for step in range(1, options.rows + 1):
            full.add(dict.fromkeys(STUDENT_COLUMNS, step / 7) | {"step": step}, replayed=False)
        numbers = iter(range(1, 10**9))
        acts: dict[str, Callable[[], object]] = {
            "SHA-256 of its bytes": lambda: hashlib.sha256(flat).digest(),
            "torch's archive, to nowhere": lambda: torch.save(event.state, Nowhere()),
            "archive and SHA-256": lambda: write_state(event.state, Nowhere()),  # type: ignore[arg-type]
            WHOLE: lambda: records.save_checkpoint(
                Checkpoint(step=next(numbers), state=event.state)
            ),
            f"{options.rows} rows, likewise": full.save_rows,
        }
        found: dict[str, list[float]] = {name: [] for name in acts}
        for _ in range(options.repeats):
            for name, act in acts.items():
                begin = time.perf_counter()
                act()
                found[name].append(time.perf_counter() - begin)
    found["bytes of tensors"] = [float(flat.nbytes)]
    return found


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list):
        for item in value:
            yield from _tensors(item)


def judge(found: dict[str, list[Turn]], write_s: float) -> dict[str, dict[str, Any]]:
    """By way: seconds a checkpoint, and their share of a run (the median's) at one a minute.
    write_s: of one checkpoint, alone."""
    judged: dict[str, dict[str, Any]] = {}
    for way in list(WAYS)[1:]:
        pairs = list(zip(found[way], found["none"], strict=True))
        still = [seconds for turn, _ in pairs for seconds in turn.still_s]
        slower = [s for turn, none in pairs for s in turn.slower_s(none.step_s, write_s)]
        judged[way] = {"still_s": spread(still), "slower_s": spread(slower)}
    return judged


def spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {"n": 0}
    middle = statistics.median(values)
    found = {"median": middle, "least": min(values), "most": max(values)}
    return {"n": len(values), **found, "share_at_one_a_minute": middle / MINUTE_S}


def show(judged: dict[str, dict[str, Any]], timed: dict[str, list[float]], step_s: float) -> None:
    console = Console()
    table = Table(title=f"a checkpoint's cost to its run (steps of {step_s * 1e3:.0f} ms)")
    for head in ("way", "what", "n", "ms", "share at one a minute"):
        table.add_column(head, justify="left" if head in ("way", "what") else "right")
    for way, row in judged.items():
        for what, found in row.items():
            cells = (str(found["n"]), _milliseconds(found), _share(found))
            table.add_row(way, what.removesuffix("_s"), *cells)
    console.print(table)
    inside = Table(title="parts of one checkpoint, alone")
    for head in ("part", "n", "ms"):
        inside.add_column(head, justify="left" if head == "part" else "right")
    for name, seconds in timed.items():
        if not name.startswith("bytes"):
            inside.add_row(name, str(len(seconds)), _milliseconds(spread(seconds)))
    console.print(inside)


def _milliseconds(found: dict[str, float]) -> str:
    if not found["n"]:
        return "–"
    return "{median:.0f} ({least:.0f} to {most:.0f})".format(
        **{name: seconds * 1e3 for name, seconds in found.items()}
    )


def _share(found: dict[str, float]) -> str:
    return f"{100 * found['share_at_one_a_minute']:.2f}%" if found["n"] else "–"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60, help="of a turn")
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between checkpoints")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way")
    parser.add_argument("--repeats", type=int, default=7, help="of each part")
    parser.add_argument("--rows", type=int, default=1000, help="among the parts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--store", type=Path, help="a folder on the disk to write to")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    return parser.parse_args()


def main() -> None:
    options = parse()
    load = os.getloadavg()[0]
    data = images(max(options.batch * 4, 100), options.image_size)
    folder = options.store or Path(tempfile.gettempdir())
    timed = parts(options, data, folder)
    found = turns(options, data, folder)
    judged = judge(found, statistics.median(timed[WHOLE]))
    step_s = statistics.median(turn.step_s for turn in found["none"])
    show(judged, timed, step_s)
    if options.json is not None:
        steps = {way: [turn.step_s for turn in taken] for way, taken in found.items()}
        about = {
            "load_before": load, "step_s_by_turn": steps, "checkpoints": judged,
            "parts_s": timed, "rounds": options.rounds, "machine": describe("torch", "pyarrow"),
        }  # fmt: skip
        options.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
