"""ResNet-50 at 224 pixels: images/s with images on the device, and with input from our shards.

    python benchmarks/resnet50.py [--device cuda] [--precision bf16] [--decode-threads 8 16]
                                  [--images PARQUET] [--json resnet50.json]

Both are a student's whole step (strategy A, the paper's augmentation). *device*: uint8 images of
noise that lie on it. *shards*: JPEGs in Arrow shards, prepared by our own code, read, checked
against their digests, decoded and cropped by `--decode-threads` threads while the device computes.
The JPEGs are large given ones, or made of small ones, of ImageNet's size and weight (`pictures`).
They are in the page cache: no disk is measured. For each number of threads the two take turns in
one process, and the share lost is taken within a round. Where shards cannot be read (a decoder is
missing), that is said, and the rest is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from accelerator import describe_device, usable_cores
from machine import describe
from pictures import write_image_folder
from rich.console import Console
from rich.table import Table
from rounds import Stopwatch, Turn, play, spread

from trainers.data.catalogue import OFFICIAL
from trainers.data.images import ImageData
from trainers.data.prepare import Form, prepare
from trainers.data.prepared import load
from trainers.distributed import World
from trainers.engine import configure
from trainers.errors import DataError
from trainers.spec import AUGMENTATIONS, AdamW, Backbone, Dataset, Runtime, StudentSpec
from trainers.student import build_engine

_OFFICIAL_WIDTH = 64
_SETTINGS = ("precision", "width", "size", "batch", "pictures", "steps", "compile")
_LEAD_IN = 2
"""Steps before those that count: what is decoded ahead is under way then."""

console = Console()


class Training:
    """A student that trains on `data`."""

    def __init__(self, name: str, spec: StudentSpec, data: ImageData, runtime: Runtime) -> None:
        self.name = name
        self._batch = spec.batch_size
        self._engine = build_engine(spec, data, runtime, World())

    def turn(self, steps: int) -> Turn:
        for _ in range(_LEAD_IN):
            self._engine.update()
        with Stopwatch(self._engine.device) as watch:
            for _ in range(steps):
                self._engine.update()
        return watch.turn(steps * self._batch)

    def close(self) -> None:
        self._engine.close()


def spec_of(options: argparse.Namespace) -> StudentSpec:
    width = None if options.width == _OFFICIAL_WIDTH else options.width
    return StudentSpec(
        dataset=Dataset(name="imagenet", fingerprint="0" * 64),
        backbone=Backbone(name="resnet50", width=width, stem="standard"),
        augmentation=AUGMENTATIONS["std"],
        strategy="A",
        optimizer=AdamW(lr=1e-3, weight_decay=0.01),
        batch_size=options.batch,
        seed=0,
        precision=options.precision,
    )


def noise(count: int, size: int) -> ImageData:
    """Images in memory, as many as differ; no kernel's time depends on a pixel."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, size, size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    info = replace(OFFICIAL["imagenet"], image_size=size)
    labels = torch.arange(count) % info.num_classes
    return ImageData(
        info=info,
        train_images=images, train_labels=labels, test_images=images[:1], test_labels=labels[:1],
    )  # fmt: skip


def shards_of(options: argparse.Namespace, folder: Path) -> tuple[ImageData, dict[str, Any]]:
    """As `targetsweep data prepare imagenet` makes them, and what is in them, in words."""
    raw, out = folder / "raw", folder / "shards"
    about = write_image_folder(options.images, raw, options.pictures)
    prepare("imagenet", out=out, path=raw, form=Form(encoded=True, subset=True))
    return load(out, image_size=options.size), about


def measure(
    threads: int, sources: Mapping[str, ImageData], options: argparse.Namespace
) -> dict[str, Any]:
    """One number of decoding threads. Ends what it made, so that the next has the memory."""
    spec = spec_of(options)
    runtime = Runtime(
        device=options.device, compile=options.compile, decode_threads=threads,
        threads=options.threads,
    )  # fmt: skip
    contenders = [Training(name, spec, data, runtime) for name, data in sources.items()]
    try:
        rounds = list(play(contenders, rounds=options.rounds, steps=options.steps))
    finally:
        for contender in contenders:
            contender.close()
    rates = {name: spread(_rate(turns[name]) for turns in rounds).as_json() for name in sources}
    found: dict[str, Any] = {"decode_threads": threads, "images_per_s": rates}
    if "shards" in sources:
        lost = (1 - _rate(turns["shards"]) / _rate(turns["device"]) for turns in rounds)
        found["share_lost"] = spread(lost).as_json()
    return found


def _rate(turn: Turn) -> float:
    return turn.images / turn.wall_s


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    columns = ("decode threads", "on the device", "from shards", "share lost", "least to most")
    table = Table(*columns, title=title)
    for row in rows:
        rates = [f"{rate['median']:,.0f} images/s" for rate in row["images_per_s"].values()]
        lost = row.get("share_lost")
        shares = [] if lost is None else [
            f"{lost['median']:.1%}", f"{lost['least']:.1%} to {lost['greatest']:.1%}",
        ]  # fmt: skip
        table.add_row(f"{row['decode_threads']}", *rates, *shares)
    console.print(table)


def headline(row: dict[str, Any]) -> str:
    rates = row["images_per_s"]
    alone = f"{rates['device']['median']:,.0f} images/s on the device"
    if "share_lost" not in row:
        return alone
    return (
        f"{alone}, {rates['shards']['median']:,.0f} from shards by {row['decode_threads']} "
        f"threads: {row['share_lost']['median']:.1%} lost"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    on_gpu = torch.cuda.is_available()
    add("--device", default="cuda" if on_gpu else "cpu")
    add("--precision", choices=("fp32", "bf16"), default="bf16" if on_gpu else "fp32")
    add("--width", type=int, default=_OFFICIAL_WIDTH, help="64 is torchvision's ResNet-50")
    add("--size", type=int, default=224, help="pixels")
    add("--batch", type=int, default=256)
    add("--decode-threads", type=int, nargs="+", default=[usable_cores()])
    add("--images", type=Path, default=None, help="Parquet file or folder of JPEGs")
    add("--pictures", type=int, default=1024, help="JPEGs, and images on the device")
    add("--steps", type=int, default=40 if on_gpu else 2, help="of a turn")
    add("--rounds", type=int, default=5, help="that count")
    add("--threads", type=int, default=1, help="of torch, on a CPU")
    add("--compile", action="store_true")
    add("--json", type=Path, default=None, help="write rows and machine there too")
    return parser.parse_args(arguments)


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    about = describe_device(torch.device(options.device))
    with tempfile.TemporaryDirectory() as folder:
        sources = {"device": noise(options.pictures, options.size)}
        pictures: dict[str, Any] = {}
        left_out = None
        try:
            sources["shards"], pictures = shards_of(options, Path(folder))
        except (ImportError, DataError) as error:
            left_out = f"{type(error).__name__}: {error}"
            console.print(f"no shards: {left_out}", markup=False)
        rows = []
        for threads in options.decode_threads if left_out is None else options.decode_threads[:1]:
            rows.append(measure(threads, sources, options))
            show(about["name"], rows)
    return {
        "n": options.rounds,
        "machine": describe("torch", "torchvision", "pillow", "pyarrow"),
        "device": about,
        "device_after": describe_device(torch.device(options.device)),
        **{name: getattr(options, name) for name in _SETTINGS},
        **pictures,
        "shards_left_out": left_out,
        "rows": rows,
        "headline": [headline(row) for row in rows],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    configure(Runtime(device=options.device, threads=options.threads))
    found = measure_all(options)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return 0 if found["shards_left_out"] is None else 1


if __name__ == "__main__":
    sys.exit(main())
