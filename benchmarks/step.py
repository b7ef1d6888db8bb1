"""A training step of ours against its floor and against what others would use.

    python benchmarks/step.py [--device cuda] [--precision bf16] [--data PARQUET…] [--json FILE]

ResNet-18 on CIFAR-10, batch 128, with the paper's augmentation, everybody in turn in one process:
*floor*, the model's forward, backward and optimiser step on a fixed batch (on a GPU replayed as a
CUDA graph); *A*, *B*, *C*, our whole step by strategy; *evaluation*, ours of the test set;
*Lightning*, the paper's own stack at its best number of workers; *torchdistill* for strategy B.
A round gives each a turn of `--steps` steps; ratios are taken within a round. The baselines need
packages of their own (extra `bench`); without them they are left out, and why is said. On a CPU
everybody has `--threads` threads, and the baselines have their workers besides. Ends with status 1
if something of ours could not run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from accelerator import describe_device
from baselines.floor import Floor
from baselines.images import load_images
from baselines.lineup import BASELINES, LineUp
from baselines.ours import OurStep
from baselines.setting import Setting
from machine import describe
from rich.console import Console
from rich.table import Table
from rounds import Turn, play
from step_measures import measures, per_step
from step_profile import summary, write_summaries

from trainers.data.images import ImageData
from trainers.engine import configure
from trainers.spec import AUGMENTATIONS, Runtime

_TRIAL_STEPS, _PROFILED_STEPS = 40, 20
_PACKAGES = ("torch", "torchvision", "numpy", "pillow", *BASELINES)

console = Console()
if not console.is_terminal:
    console = Console(width=140)  # a file's lines need not fit a window


def setting_of(options: argparse.Namespace, precision: Any, data: ImageData) -> Setting:
    return Setting(
        device=torch.device(options.device), precision=precision, width=options.width,
        batch=options.batch, augmentation=options.augmentation, compile=options.compile, data=data,
    )  # fmt: skip


def measure(
    setting: Setting,
    options: argparse.Namespace,
    keep: Callable[[dict[str, Any]], None],
    profiles: dict[str, Any],
) -> dict[str, Any]:
    """One precision, for the JSON: handed to `keep` after each round too, so that a run which is
    cut short has what it measured. Prints the tables and adds to `profiles`."""
    lined = LineUp(setting, min(options.steps, _TRIAL_STEPS), say)
    lined.add_ours(options.strategies, nchw=options.nchw)
    wanted = [name for name in options.baselines if BASELINES[name] in options.strategies]
    lined.add_baselines(wanted, options.workers)
    before, rounds, found = describe_device(setting.device), [], {}
    for turns in play(lined.contenders, rounds=options.rounds, steps=options.steps, told=tell):
        rounds.append(turns)
        found = {"device_before": before, **result(lined, rounds)}
        keep(found)
    if options.profile is not None:
        profiles |= profiled(lined, options)
        write_summaries(options.profile, profiles)
    lined.close()
    print_tables(f"{setting.precision}, {before['name']}", found)
    return found


def result(lined: LineUp, rounds: list[dict[str, Turn]]) -> dict[str, Any]:
    setting = lined.setting
    rows = measures(rounds, on_cpu=setting.device.type == "cpu")
    return {
        "precision": setting.precision,
        "n": len(rounds),
        "device_after": describe_device(setting.device),
        "measures": [row.as_json() for row in rows],
        "contenders": per_step(rounds, setting.batch),
        "workers": {"used": lined.workers, "lightning_images_per_s": lined.tried},
        "left_out": lined.left_out,
    }


def say(text: str) -> None:
    console.print(text, markup=False, highlight=False)


def tell(number: int, turns: dict[str, Turn]) -> None:
    parts = (f"{name} {turn.images / turn.wall_s:,.0f}" for name, turn in turns.items())
    say(f"round {number or 'that does not count'}: images/s " + ", ".join(parts))


def profiled(lined: LineUp, options: argparse.Namespace) -> dict[str, Any]:
    """Summaries of the floor's and of our steps."""
    steps = min(options.steps, _PROFILED_STEPS)
    return {
        f"{contender.name}, {lined.setting.precision}": summary(
            contender.run, steps, lined.setting.device
        )
        for contender in lined.contenders
        if isinstance(contender, Floor | OurStep)
    }


def print_tables(title: str, found: dict[str, Any]) -> None:
    table = Table("", "ms a step", "quartiles", "images/s", "processor ms", title=title)
    for name, about in found["contenders"].items():
        table.add_row(
            name, f"{about['step_ms']['median']:,.4g}", span(about["step_ms"]["quartiles"]),
            f"{about['images_per_s']:,.0f}", f"{about['cpu_ms']:,.4g}",
        )  # fmt: skip
    console.print(table)
    heads = ("", "goal", "median", "quartiles", "least to greatest", "all rounds", "by CPU time")
    table = Table(*heads, title=f"n = {found['n']} rounds")
    for row in found["measures"]:
        by_cpu = row.get("on_cpu")
        table.add_row(
            row["measure"], row["goal"], f"{row['median']:,.4g}", span(row["quartiles"]),
            span((row["least"], row["greatest"])), f"{row['pooled']:,.4g}",
            f"{by_cpu['median']:.4g}" if by_cpu else "",
        )  # fmt: skip
    console.print(table)


def span(ends: Sequence[float]) -> str:
    return " to ".join(f"{end:,.4g}" for end in ends)


def installed(packages: Sequence[str]) -> list[str]:
    found = []
    for package in packages:
        try:
            version(package)
        except PackageNotFoundError:
            continue
        found.append(package)
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--precision", nargs="+", choices=("fp32", "bf16"), help="default: bf16 on GPUs, else fp32")
    add("--width", type=int, default=64, help="channels of the first stage")
    add("--batch", type=int, default=128)
    add("--augmentation", choices=sorted(AUGMENTATIONS), default="std")
    add("--strategies", nargs="+", choices=("A", "B", "C"), default=["A", "B", "C"])
    add("--baselines", nargs="*", choices=list(BASELINES), default=list(BASELINES))
    add("--workers", type=int, default=None, help="of DataLoaders; default: the best for Lightning")
    add("--steps", type=int, default=None, help="of a turn; default: 256 on GPUs, else 4")
    add("--rounds", type=int, default=15, help="that count")
    add("--data", type=Path, nargs="+", default=[], help="Parquet files; default: random images")
    add("--images", type=int, default=50_000, help="training images at most")
    add("--test-images", type=int, default=10_000, help="test images at most")
    add("--threads", type=int, default=1, help="of torch, on a CPU")
    add("--compile", action="store_true", help="torch.compile ours and the floor")
    add("--nchw", action="store_true", help="the floor in NCHW too: is channels-last the faster?")
    add("--profile", type=Path, default=None, help="write summaries there, as JSON or text")
    add("--json", type=Path, default=None, help="write rows and machine there too")
    options = parser.parse_args(arguments)
    on_gpu = torch.device(options.device).type == "cuda"
    options.precision = options.precision or ["bf16" if on_gpu else "fp32"]
    options.steps = options.steps or (256 if on_gpu else 4)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    configure(Runtime(device=options.device, threads=options.threads))
    data = load_images(options.data, train=options.images, test=options.test_images)
    about = facts(options, data)
    done: list[dict[str, Any]] = []
    profiles: dict[str, Any] = {}

    def keep(found: dict[str, Any]) -> None:
        if options.json is not None:
            text = json.dumps({**about, "results": [*done, found]}, indent=2, ensure_ascii=False)
            options.json.write_text(text + "\n")

    for precision in options.precision:
        done.append(measure(setting_of(options, precision, data), options, keep, profiles))
    failed = {"floor", *options.strategies} & {name for found in done for name in found["left_out"]}
    return 1 if failed else 0


def facts(options: argparse.Namespace, data: ImageData) -> dict[str, Any]:
    return {
        "machine": describe(*installed(_PACKAGES)),
        "width": options.width,
        "batch": options.batch,
        "augmentation": options.augmentation,
        "steps_a_turn": options.steps,
        "compile": options.compile,
        "training_images": len(data.train_labels),
        "test_images": len(data.test_labels),
        "images_are": "CIFAR-10" if options.data else "noise",
    }


if __name__ == "__main__":
    sys.exit(main())
