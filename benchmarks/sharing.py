"""How many runs a GPU should take at once: images/s of 1, 2, 4 and 8 students on it, in all.

    python benchmarks/sharing.py [--device cuda] [--runs 1 2 4 8] [--json sharing.json]
    python benchmarks/sharing.py --record sharing.json     # into sweeps/sharing.json, for `auto`

Each student is a real run's engine (strategy A, its own seed) in a process of its own, as under
Ray. All processes are started once; in each turn some of them train and the others wait. They
begin at one moment, and the steps that count are those within a window that all of them train
through. A round gives every number of runs a turn; ratios are taken within a round. Where NVIDIA's
MPS can be started, everything is measured with it too; sweeps run without, so `--record` takes what
was measured without.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from accelerator import describe_device
from crew import Crew, Job
from machine import describe
from mps import serving
from rich.console import Console
from rich.table import Table
from rounds import spread

TABLE = Path(__file__).parents[1] / "sweeps" / "sharing.json"

console = Console()


def measure(job: Job, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of runs."""
    numbers = sorted({1, *options.runs})
    rounds: list[dict[int, float]] = []
    with Crew(job, max(numbers), patience_s=options.patience) as crew:
        for number in range(options.rounds):
            first = number % len(numbers)
            turns = {
                runs: sum(crew.turn(runs, settle_s=options.settle, window_s=options.seconds))
                for runs in numbers[first:] + numbers[:first]
            }
            rounds.append(turns)
            say(f"round {number + 1}: images/s " + ", ".join(
                f"{runs} runs {turns[runs]:,.0f}" for runs in numbers
            ))  # fmt: skip
    return [row_of(runs, rounds) for runs in numbers]


def row_of(runs: int, rounds: Sequence[dict[int, float]]) -> dict[str, Any]:
    """images_per_s: of all runs together. to_one: over that of one run in the same round."""
    totals = spread(turns[runs] for turns in rounds)
    return {
        "runs": runs,
        "images_per_s": totals.as_json(),
        "images_per_s_each": round(totals.median / runs, 1),
        "to_one": spread(turns[runs] / turns[1] for turns in rounds).as_json(),
    }


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    columns = ("runs at once", "images/s in all", "quartiles", "each", "× one run", "least to most")
    table = Table(*columns, title=title)
    for row in rows:
        totals, to_one = row["images_per_s"], row["to_one"]
        low, high = totals["quartiles"]
        table.add_row(
            f"{row['runs']}", f"{totals['median']:,.0f}", f"{low:,.0f} to {high:,.0f}",
            f"{row['images_per_s_each']:,.0f}", f"{to_one['median']:.3f}",
            f"{to_one['least']:.3f} to {to_one['greatest']:.3f}",
        )  # fmt: skip
    console.print(table)


def headline(rows: Sequence[dict[str, Any]], title: str) -> str:
    best = max(rows, key=lambda row: float(row["images_per_s"]["median"]))
    return (
        f"{title}: {best['runs']} runs get most done, {best['to_one']['median']:.2f} × one run "
        f"({best['images_per_s']['median']:,.0f} images/s)"
    )


def say(text: str) -> None:
    console.print(text, markup=False, highlight=False)


# -- into the table that `gpus_per_worker: auto` reads ---------------------------------------------


def record(result: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """The table with the measured rows in it, in place of earlier ones of the same GPU and load.
    result: of this benchmark, or of a whole session (`gpu_session`), which may have several."""
    for name, stage in result.get("stages", {}).items():
        if name.startswith("sharing") and "result" in stage:
            table = _with_row(stage["result"], table)
    return table if "stages" in result else _with_row(result, table)


def _with_row(result: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    if "multiprocessors" not in result["device"]:
        raise SystemExit(f"measured on {result['device']['name']}: `auto` is about GPUs")
    job = result["job"]
    (rows,) = (found["rows"] for found in result["measures"] if not found["mps"])
    row = {
        "gpu": result["device"]["name"],
        "backbone": {"name": "resnet18", "width": job["width"], "stem": "small"},
        "batch_size": job["batch"],
        "image_size": job["image_size"],
        "precision": job["precision"],
        "images_per_s": {str(one["runs"]): one["images_per_s"]["median"] for one in rows},
        "n": result["n"],
        "date": result["machine"]["date"],
        "torch": result["machine"]["torch"],
    }
    others = [one for one in table["measured"] if _identity(one) != _identity(row)]
    return table | {"measured": sorted([*others, row], key=_identity)}


def _identity(row: dict[str, Any]) -> str:
    names = ("gpu", "backbone", "batch_size", "image_size", "precision")
    return json.dumps([row[name] for name in names], sort_keys=True)


def record_file(result: Path, table: Path) -> None:
    found = record(json.loads(result.read_text()), json.loads(table.read_text()))
    table.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    say(f"{table}: {len(found['measured'])} measured")


# -- the command -----------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    on_gpu = torch.cuda.is_available()
    add("--device", default="cuda" if on_gpu else "cpu")
    add("--precision", choices=("fp32", "bf16"), default="bf16" if on_gpu else "fp32")
    add("--runs", type=int, nargs="+", default=[1, 2, 4, 8], help="at once")
    add("--width", type=int, default=64, help="channels of the first stage of ResNet-18")
    add("--batch", type=int, default=128)
    add("--images", type=int, default=50_000, help="training images of noise, in CIFAR-10's shape")
    add("--compile", action="store_true")
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=4.0, help="of the window that counts")
    add("--settle", type=float, default=1.0, help="seconds before it")
    add("--patience", type=float, default=180.0, help="seconds until all must have warmed up")
    add("--no-mps", action="store_true", help="do not try MPS")
    add("--json", type=Path, default=None, help="write rows and machine there too")
    add("--record", type=Path, default=None, help="measure nothing: take this JSON into the table")
    add("--table", type=Path, default=TABLE, help="for --record")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.record is not None:
        record_file(options.record, options.table)
        return 0
    return measure_all(options)


def measure_all(options: argparse.Namespace) -> int:
    device = torch.device(options.device)
    job = Job(
        device=options.device, precision=options.precision, width=options.width,
        batch=options.batch, images=options.images, compile=options.compile,
    )  # fmt: skip
    about = describe_device(device)
    found: dict[str, Any] = {
        "n": options.rounds,
        "machine": describe("torch", "numpy"),
        "device": about,
        "job": asdict(job),
        "seconds": options.seconds,
        "mps": "not tried",
        "measures": [],
        "headline": [],
    }
    add_measure(found, job, options, mps=False)
    if device.type == "cuda" and not options.no_mps:
        with serving() as refusal:
            found["mps"] = refusal or "measured"
            if refusal is None:
                add_measure(found, job, options, mps=True)
    found["device_after"] = describe_device(device)
    write(found, options)
    say(f"MPS: {found['mps']}")
    return 0


def add_measure(found: dict[str, Any], job: Job, options: argparse.Namespace, *, mps: bool) -> None:
    """Measures, prints, and writes what there is so far: the next thing may hang."""
    rows = measure(job, options)
    title = f"{found['device']['name']}, {job.precision}{', with MPS' if mps else ''}"
    found["measures"].append({"mps": mps, "rows": rows})
    found["headline"].append(headline(rows, title))
    show(title, rows)
    write(found, options)


def write(found: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
