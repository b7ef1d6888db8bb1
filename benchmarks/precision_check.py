"""Whether bf16 ends where fp32 ends: final top-1 of students of both, seed by seed.

    python benchmarks/precision_check.py --data cifar10_train.parquet cifar10_test.parquet
        [--seeds 3] [--steps 3900] [--seconds 600] [--json precision_check.json]

A seed gives both precisions the same initial weights, samples and augmentation, so accuracies are
compared in pairs. The difference counts as none where its mean is smaller than the seeds' spread:
the standard deviation of fp32's accuracies. Without `--data`: scikit-learn's digits, which shows
that the script runs and little else. `--seconds` begins no pair that would not end in time; what is
measured so far is written after every pair.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from accelerator import describe_device
from baselines.images import load_images
from machine import describe
from rich.console import Console
from rich.table import Table

from trainers.data.images import ImageData
from trainers.data.prepare import prepare
from trainers.data.prepared import load
from trainers.events import Evaluation
from trainers.spec import AUGMENTATIONS, AdamW, Backbone, Dataset, Request, Runtime, StudentSpec
from trainers.student import train_student

PRECISIONS = ("fp32", "bf16")
HEADS = ("top1_h", "top1_g")

console = Console()


def pair(seed: int, data: ImageData, options: argparse.Namespace) -> dict[str, Any]:
    """One seed's final rows by precision, with the seconds that each took."""
    spec = StudentSpec(
        dataset=Dataset(name=data.info.name, fingerprint=data.info.fingerprint),
        backbone=Backbone(name="resnet18", width=options.width),
        augmentation=AUGMENTATIONS["std"],
        strategy="A",
        optimizer=AdamW(lr=1e-3, weight_decay=0.01),
        batch_size=options.batch,
        seed=seed,
    )
    runtime = Runtime(
        device=options.device, threads=options.threads, compile=options.compile,
        checkpoint_every_s=float("inf"),
    )  # fmt: skip
    found: dict[str, Any] = {"seed": seed}
    for precision in PRECISIONS:
        its = replace(spec, precision=precision)
        began = time.perf_counter()
        events = train_student(its, data, Request(horizon=options.steps), runtime)
        rows = [event.row for event in events if isinstance(event, Evaluation)]
        last = {head: round(float(rows[-1][head]), 3) for head in HEADS}
        found[precision] = last | {"seconds": round(time.perf_counter() - began, 1)}
    return found


def compare(pairs: Sequence[dict[str, Any]], head: str) -> dict[str, Any]:
    """In points. spread: std of fp32's accuracies over seeds; difference: bf16 − fp32. agrees: None
    below two seeds, which have no spread."""
    fp32, bf16 = ([float(one[precision][head]) for one in pairs] for precision in PRECISIONS)
    differences = [b - a for a, b in zip(fp32, bf16, strict=True)]
    several = len(pairs) > 1
    found: dict[str, Any] = {
        "head": head,
        "n": len(pairs),
        "fp32": round(mean(fp32), 3),
        "bf16": round(mean(bf16), 3),
        "difference": round(mean(differences), 3),
        "difference_std": round(stdev(differences), 3) if several else None,
        "spread": round(stdev(fp32), 3) if several else None,
        "spread_bf16": round(stdev(bf16), 3) if several else None,
    }
    return found | {"agrees": abs(mean(differences)) < stdev(fp32) if several else None}


def headline(compared: dict[str, Any]) -> str:
    if compared["spread"] is None:
        return f"{compared['head']}: {compared['difference']:+.2f} points, one seed"
    verdict = "less" if compared["agrees"] else "not less"
    return (
        f"{compared['head']}: bf16 − fp32 = {compared['difference']:+.2f} points, {verdict} than "
        f"the seeds' spread of {compared['spread']:.2f} (n = {compared['n']})"
    )


def show(pairs: Sequence[dict[str, Any]]) -> None:
    table = Table("seed", "head", "fp32", "bf16", "difference")
    for one in pairs:
        for head in HEADS:
            a, b = one["fp32"][head], one["bf16"][head]
            table.add_row(f"{one['seed']}", head, f"{a:.2f}", f"{b:.2f}", f"{b - a:+.2f}")
    console.print(table)


def images_of(options: argparse.Namespace) -> ImageData:
    if options.data:
        return load_images(options.data, train=options.images, test=options.test_images)
    with tempfile.TemporaryDirectory() as folder:
        prepare("digits", out=Path(folder))
        return load(Path(folder))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--data", type=Path, nargs="+", default=[], help="Parquet files of CIFAR-10")
    add("--images", type=int, default=50_000, help="training images at most")
    add("--test-images", type=int, default=10_000, help="test images at most")
    add("--seeds", type=int, default=3)
    add("--steps", type=int, default=3900, help="ten epochs of CIFAR-10")
    add("--width", type=int, default=64, help="channels of the first stage of ResNet-18")
    add("--batch", type=int, default=128)
    add("--threads", type=int, default=1, help="of torch, on a CPU")
    add("--compile", action="store_true")
    add("--seconds", type=float, default=float("inf"), help="for everything")
    add("--json", type=Path, default=None, help="write pairs and machine there, as they come")
    return parser.parse_args(arguments)


def write(pairs: Sequence[dict[str, Any]], data: ImageData, options: argparse.Namespace) -> None:
    compared = [compare(pairs, head) for head in HEADS]
    found = {
        "n": len(pairs),
        "machine": describe("torch", "torchvision", "numpy"),
        "device": describe_device(torch.device(options.device)),
        "data": data.info.name,
        "training_images": len(data.train_labels),
        "test_images": len(data.test_labels),
        "steps": options.steps,
        "width": options.width,
        "batch": options.batch,
        "compile": options.compile,
        "asked_seeds": options.seeds,
        "pairs": list(pairs),
        "compared": compared,
        "headline": [headline(one) for one in compared],
    }
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    began = time.perf_counter()
    data = images_of(options)
    pairs: list[dict[str, Any]] = []
    longest_s = 0.0
    for seed in range(options.seeds):
        before_s = time.perf_counter() - began
        if pairs and before_s + longest_s > options.seconds:
            console.print(f"no time for seed {seed} and later ones")
            break
        pairs.append(pair(seed, data, options))
        longest_s = max(longest_s, time.perf_counter() - began - before_s)
        write(pairs, data, options)
    show(pairs)
    for head in HEADS:
        console.print(headline(compare(pairs, head)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
