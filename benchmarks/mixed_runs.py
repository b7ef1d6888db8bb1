"""Narrow and wide runs of a second each through real Ray with logical devices.

    python benchmarks/mixed_runs.py [--narrow 300] [--wide 10] [--slots 8] [--json mixed_runs.json]

The driver, Tune, the trial function and Ray Train (TorchTrainer, two workers, gloo) are the real
ones; only the training is replaced by a second of sleep. held: share of the slot-seconds that the
ledger had given to a run, while runs were waiting. slept: share in which runs did their second; the
rest is what starting costs on this machine's cores. most_waiting_s: the longest time in which a
kind of run waited and none of it was under way.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe
from rich.console import Console

import orchestrator.trial
from orchestrator.driver import DriveOptions, drive
from orchestrator.listener import Listener, Live
from orchestrator.plan import Plan, make_plan
from orchestrator.progress import Progress
from orchestrator.spec import load_sweeps
from orchestrator.store import Store
from orchestrator.units import Unit
from trainers.data.catalogue import OFFICIAL

SWEEP = """\
name: %s
set:
  dataset: cifar10
  training: {steps: 1000}
  scaling: {workers: %d}
grids:
  - axes: {strategy: [A], seed: [%s]}
"""


def plan_of(folder: Path, narrow: int, wide: int) -> Plan:
    files = []
    kinds = {"narrow": (1, range(narrow)), "wide": (2, range(narrow, narrow + wide))}
    for name, (workers, seeds) in kinds.items():
        files.append(folder / f"{name}.yaml")
        files[-1].write_text(SWEEP % (name, workers, ", ".join(map(str, seeds))))
    return make_plan(load_sweeps(files, OFFICIAL), OFFICIAL)


def sleeping(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a run says, around a second of sleep; several workers meet before and after."""
    from torch import distributed

    yield {"event": "started", "first_step": 1}
    began = time.time()
    if config["workers"] > 1:
        distributed.barrier()
    time.sleep(1.0)
    if config["workers"] > 1:
        distributed.barrier()
    stamps = {"began": began, "ended": time.time()}
    yield {"event": "finished", "reason": "done", "step": 1000, **stamps}


def sleeping_workers(config: dict[str, Any]) -> None:
    """On each of Train's workers."""
    import orchestrator.trial as real

    real._all_reports = sleeping
    real._distributed_loop(config)


def sleeping_trial(config: dict[str, Any]) -> None:
    import orchestrator.trial as real

    real._all_reports, real._distributed_loop = sleeping, sleeping_workers
    real.run_trial(config)


class Watch(Listener):
    """When each run was handed out, did its second, and ended."""

    def __init__(self) -> None:
        self.spans: list[dict[str, float]] = []
        self.failures: list[str] = []
        self.memory_mb: list[float] = []
        self._clocks = time.time() - time.monotonic()

    def started(self, unit: Unit, first_step: int) -> None:
        if not self.memory_mb:
            self.look()

    def finished(self, unit: Unit, live: Live) -> None:
        assert live.final is not None
        self.spans.append(
            {
                "workers": unit.workers,
                "given": live.started + self._clocks,
                "began": live.final["began"],
                "ended": live.final["ended"],
                "over": time.time(),
            }
        )

    def failed(self, unit: Unit, failure: Any, decision: Any) -> None:
        self.failures.append(f"{unit.label}: {failure.cause}: {failure.message}")

    def look(self) -> None:
        gc.collect()
        self.memory_mb.append(round(psutil.Process().memory_info().rss / 2**20, 1))


def used(spans: list[dict[str, float]], begin: str, end: str, since: float, until: float) -> float:
    """Slot-seconds between two moments."""
    return sum(
        span["workers"] * max(0.0, min(until, span[end]) - max(since, span[begin]))
        for span in spans
    )


def waited_s(spans: list[dict[str, float]], workers: int, since: float) -> float:
    """The longest gap before a hand-out of this kind with none of it under way."""
    longest, over = 0.0, since
    for span in sorted(spans, key=lambda span: span["given"]):
        if span["workers"] == workers:
            longest, over = max(longest, span["given"] - over), max(over, span["over"])
    return longest


def judge(watch: Watch, slots: int) -> dict[str, Any]:
    spans = watch.spans
    since, until = min(s["given"] for s in spans), max(s["given"] for s in spans)
    end = max(span["over"] for span in spans)
    room = slots * (until - since)
    parts = [since + (until - since) * tenth / 10 for tenth in range(11)]
    narrow = [span for span in spans if span["workers"] == 1]
    wide = [span for span in spans if span["workers"] > 1]
    return {
        "narrow": len(narrow),
        "wide": len(wide),
        "failures": watch.failures,
        "makespan_s": round(end - since, 1),
        "queue_empty_after_s": round(until - since, 1),
        "held": round(used(spans, "given", "over", since, until) / room, 3),
        "held_by_tenth": [
            round(used(spans, "given", "over", a, b) / slots / (b - a), 2)
            for a, b in pairwise(parts)
        ],
        "slept": round(used(spans, "began", "ended", since, until) / room, 3),
        "overhead_s_narrow": mean(s["over"] - s["given"] - 1.0 for s in narrow),
        "overhead_s_wide": mean(s["over"] - s["given"] - 1.0 for s in wide),
        "most_waiting_s": {
            "narrow": round(waited_s(spans, 1, since), 1),
            "wide": round(waited_s(spans, 2, since), 1),
        },
        "driver_mb_before": watch.memory_mb[0],
        "driver_mb_after": watch.memory_mb[-1],
    }


def mean(values: Iterable[float]) -> float:
    found = list(values)
    return round(sum(found) / len(found), 2) if found else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--narrow", type=int, default=300)
    parser.add_argument("--wide", type=int, default=10)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--json", type=Path, default=None, help="write rows and machine there too")
    arguments = parser.parse_args()
    orchestrator.trial.run_trial = sleeping_trial
    watch = Watch()
    load = psutil.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(Path(folder), arguments.narrow, arguments.wide)
        progress = Progress(Console(file=sys.stderr, quiet=True), done_before=0)
        options = DriveOptions(concurrency=arguments.slots)
        store = Store(Path(folder) / "store")
        outcome = drive(plan, store, options, progress, [watch], driver="benchmark")
        watch.look()
    found = judge(watch, arguments.slots) | {"left": outcome.left, "load_before": round(load, 1)}
    print(json.dumps(found, indent=2))
    if arguments.json is not None:
        about = {"n": 1, "machine": describe("ray", "torch"), **found}
        arguments.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
