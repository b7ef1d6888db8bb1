"""A compiled training step on a CPU with small convolutions as products, and with oneDNN's.

    python benchmarks/small_convolutions.py [--sizes 4x8x16 4x8x64 …] [--steps 100] [--rounds 5]
        [--limits 65536 …] [--json small_convolutions.json]

A size is the width of a ResNet-18, pixels and batch. Each is a whole step of strategy A (order,
augmentation, forward, backward, optimiser, sums) on noise, compiled, one thread, in turns in one
process: once with no convolution as a product, and once a limit with those up to so many numbers in
the patches of a batch (`trainers.convolutions`). Ratios are taken within a round, of processor
times, which other work on the machine hardly changes. Compiling takes half a minute each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from baselines.images import noise
from baselines.ours import OurStep
from baselines.setting import Setting
from machine import describe
from rich.console import Console
from rich.table import Table
from rounds import Turn, play, spread

from trainers import convolutions
from trainers.data.catalogue import OFFICIAL
from trainers.engine import configure

SIZES = ("4x8x16", "4x8x64", "8x16x16", "8x16x64", "8x32x128")
IMAGES = 2048


class Limited(OurStep):
    """A step whose convolutions are products up to `limit` numbers. torch compiles for the limit:
    it is a constant to it, and another one another variant."""

    def __init__(self, setting: Setting, limit: int) -> None:
        super().__init__(setting, "A")
        self.name = name_of(limit)
        self._limit = limit

    def run(self, steps: int) -> None:
        before, convolutions._SMALL = convolutions._SMALL, self._limit
        try:
            super().run(steps)
        finally:
            convolutions._SMALL = before


def name_of(limit: int) -> str:
    return "oneDNN" if limit == 0 else f"products to {limit:,}"


def setting_of(size: str) -> Setting:
    width, pixels, batch = map(int, size.split("x"))
    info = replace(OFFICIAL["digits"], image_size=pixels)
    return Setting(
        device=torch.device("cpu"), precision="fp32", width=width, batch=batch,
        augmentation="std", compile=True, data=noise(IMAGES, 1, info),
    )  # fmt: skip


def measured(size: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What to print and keep of one size: a row a limit."""
    setting = setting_of(size)
    configure(setting.runtime)
    torch.compiler.reset()  # variants are counted over all sizes of a process
    steps = [Limited(setting, limit) for limit in (0, *options.limits)]
    rounds = list(play(list(steps), rounds=options.rounds, steps=options.steps))
    for step in steps:
        times = [milliseconds(turns[step.name], setting.batch) for turns in rounds]
        ratios = [turns["oneDNN"].cpu_s / turns[step.name].cpu_s for turns in rounds]
        yield {
            "size": size,
            "convolutions": step.name,
            "cpu_ms_a_step": spread(times).as_json(),
            "speedup": spread(ratios).as_json(),
        }
        step.close()


def milliseconds(turn: Turn, batch: int) -> float:
    return 1e3 * turn.cpu_s / turn.images * batch


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("width x pixels x batch", "convolutions", "ms a step", "times as fast", "n")
    for row in rows:
        fast = row["speedup"]
        table.add_row(
            row["size"], row["convolutions"], f"{row['cpu_ms_a_step']['median']:.2f}",
            f"{fast['median']:.2f} ({fast['least']:.2f}–{fast['greatest']:.2f})", str(fast["n"]),
        )  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--limits", nargs="+", type=int, default=[convolutions._SMALL])
    parser.add_argument("--steps", type=int, default=100, help="of a turn")
    parser.add_argument("--rounds", type=int, default=5, help="that count")
    parser.add_argument("--json", type=Path, help="write rows and machine there too")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        rows += measured(size, options)
        if options.json is not None:
            found = {**describe("torch"), "rows": rows}
            options.json.write_text(json.dumps(found, indent=2) + "\n")
    Console().print(table_of(rows))


if __name__ == "__main__":
    main()
