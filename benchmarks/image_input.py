"""ImageNet's input, JPEG to augmented batch: ours against torchvision's reference loader.

    python benchmarks/image_input.py [--images FILE] [--count 512] [--rounds 7] [--json FILE]

The reference is that of torchvision's references/classification: ImageFolder, Pillow,
RandomResizedCrop(224), flip, PILToTensor, ToDtype, Normalize, in DataLoader's workers. Ours is what
trains: shards made by `targetsweep data prepare`, decoded by threads, with crop, flip and
normalisation, on the CPU (augmented), or up to the uint8 views that go to a GPU, which does the
rest (views). `original` are the original bytes; `256` is `--shorter-side 256 --jpeg-quality 90`.

images/s a core: pictures by CPU seconds of all processes and threads taken together, between the
first batch and the last, so other work on the machine weighs on it little. Rounds take turns;
numbers are medians, spread is the lowest and highest round. ratio: to the reference with as many
workers, round by round. The second table takes one picture's way apart, the third compares
decoders on the same boxes; of those, what is not installed is left out. All runs on CPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator
from itertools import count
from pathlib import Path
from typing import Any

import image_stages
import numpy as np
import psutil
import torch
import torchvision
from machine import describe
from pictures import write_image_folder
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, RandomSampler
from torchvision.transforms import v2

from trainers.batches import BatchSource
from trainers.data.encoded import EncodedImages
from trainers.data.images import ImageData
from trainers.data.order import SampleOrder
from trainers.data.pool import DecodePool, Decoding
from trainers.data.prepare import Form, prepare
from trainers.data.prepared import load
from trainers.data.source import Image
from trainers.data.views import crop_view
from trainers.distributed import World
from trainers.pixels import Crops
from trainers.spec import Augmentation

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP_AND_FLIP = Augmentation(crop_scale=(0.08, 1.0), flip_p=0.5)
FORMS = {
    "original": Form(subset=True),
    "256": Form(subset=True, shorter_side=256, jpeg_quality=90),
}
PACKAGES = ("torch", "torchvision", "pillow", "simplejpeg", "numpy", "pyarrow")

Batches = Generator[torch.Tensor, None, None]


def reference(folder: Path, workers: int, batch: int) -> Batches:
    """torchvision's reference training input, without end."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.Normalize(MEAN, STD),
            v2.ToPureTensor(),
        ]
    )
    data = torchvision.datasets.ImageFolder(str(folder / "train"), transform)
    sampler = RandomSampler(data, replacement=True, num_samples=1_000_000)
    loader = DataLoader(data, batch_size=batch, sampler=sampler, num_workers=workers)
    for images, _ in loader:
        yield images


def augmented(data: ImageData, workers: int, batch: int) -> Batches:
    """What a CPU trains on: float32 batches from our shards."""
    source = BatchSource(
        data, torch.arange(len(data.train_images)), CROP_AND_FLIP, role="student", seed=0,
        batch_size=batch, world=World(), device=torch.device("cpu"), decode_threads=workers,
    )  # fmt: skip
    try:
        for step in count():
            yield source.batch(step).views
    finally:
        source.close()


def views(data: ImageData, workers: int, batch: int) -> Batches:
    """What goes to a GPU: uint8 views from our shards, cropped, three batches ahead."""
    images = data.train_images
    assert isinstance(images, EncodedImages)
    order = SampleOrder(len(images), batch, "student", 0)
    crops = Crops(CROP_AND_FLIP, role="student", seed=0, batch_size=batch)
    pool = DecodePool(workers)

    def begin(step: int) -> Decoding:
        samples = order.batch(step)
        boxes = crops.boxes(step, np.arange(batch), images.sizes[samples])
        assert boxes is not None

        def view(position: int) -> Image:
            index = int(samples[position])
            top, left, height, width = boxes[position].tolist()
            box = (top, left, height, width)
            return crop_view(images.read(index), images.where(index), box, SIZE)

        return pool.decode(batch, SIZE, view)

    ahead = deque(map(begin, range(3)))
    try:
        for step in count(3):
            yield ahead.popleft().result()
            ahead.append(begin(step))
    finally:
        pool.close()


def cpu_s() -> float:
    """CPU seconds of this process and its children so far."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def rate(batches: Batches, steps: int) -> tuple[float, float]:
    """(images/s a core, images/s by the clock) of `steps` batches after a first one."""
    images = len(next(batches)) * steps
    clock, cpu = time.perf_counter(), cpu_s()
    for _ in range(steps):
        next(batches)
    clock, cpu = time.perf_counter() - clock, cpu_s() - cpu
    batches.close()
    return images / cpu, images / clock


def compare(
    folder: Path, prepared: dict[str, ImageData], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row a way of loading and a number of workers."""
    ways: dict[str, Callable[[int], Batches]] = {
        "torchvision's reference": lambda workers: reference(folder, workers, arguments.batch)
    }
    for form, data in prepared.items():
        ways[f"ours, {form}, augmented"] = lambda w, d=data: augmented(d, w, arguments.batch)
        ways[f"ours, {form}, views"] = lambda w, d=data: views(d, w, arguments.batch)
    measured: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(arguments.rounds):
        for workers in arguments.workers:
            for name, way in ways.items():
                found = rate(way(workers), arguments.steps)
                measured.setdefault((name, workers), []).append(found)
    first = next(iter(ways))
    return [
        row_of(name, workers, rounds, measured[first, workers])
        for (name, workers), rounds in measured.items()
    ]


def row_of(
    name: str,
    workers: int,
    rounds: list[tuple[float, float]],
    against: list[tuple[float, float]],
) -> dict[str, Any]:
    a_core = [own for own, _ in rounds]
    ratios = [own / other for (own, _), (other, _) in zip(rounds, against, strict=True)]
    return {
        "what": name,
        "workers": workers,
        "images_per_s_a_core": round(statistics.median(a_core)),
        "spread": [round(min(a_core)), round(max(a_core))],
        "images_per_s_clock": round(statistics.median(clock for _, clock in rounds)),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_spread": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("what", "pixels") else "right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=120).print(table)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=None, help="Parquet or folder; real ones")
    parser.add_argument("--count", type=int, default=512, help="pictures to make and load")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16, help="batches a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, default=None, help="write rows and machine there too")
    return parser.parse_args()


def main() -> None:
    arguments = options()
    torch.set_num_threads(1)  # as a run on a CPU does
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        about = write_image_folder(arguments.images, root / "raw", arguments.count)
        prepared = {}
        for name, form in FORMS.items():
            prepare("imagenet", out=root / name, path=root / "raw", form=form)
            prepared[name] = load(root / name, image_size=SIZE)
        loading = compare(root / "raw", prepared, arguments)
        show("JPEG to batch", loading)
        stages = image_stages.stages(prepared, SIZE, arguments.rounds)
        show("one picture, ms of CPU time", stages)
        decoders = image_stages.decoders(prepared["original"], SIZE, arguments.rounds)
        show("decoders on the same boxes, ms of CPU time", decoders)
    if arguments.json is not None:
        found = {
            "n": arguments.rounds,
            "machine": describe(*PACKAGES) | {"load_before": round(load_before, 1)},
            **about,
            "batch": arguments.batch,
            "steps": arguments.steps,
            "loading": loading,
            "stages": stages,
            "decoders": decoders,
        }
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
