"""How a long sweep grows: the driver's memory and time a run, the store and MLflow.

    python benchmarks/long_sweep.py [--runs 3000] [--slots 1] [--json long_sweep.json]

The driver is the real one (Ray, Tune, searcher, conductor, ledger, a store on disk); its trials
report like a run of four evaluations and train nothing (one slot: where runs are shorter than a
process takes to start, Tune starts some more and drops them). kb_a_run: growth of the driver's
resident memory between `--from` runs and the end, a run (least squares). driver_ms: the driver
process's own CPU time a run. bytes: of runs written as workers write them, projected to MLflow on
SQLite.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe
from rich.console import Console

import orchestrator.trial
from orchestrator.driver import DriveOptions, drive
from orchestrator.listener import Listener, Live
from orchestrator.orders import write_orders
from orchestrator.plan import Plan, make_plan
from orchestrator.progress import Progress
from orchestrator.records import Records
from orchestrator.spec import load_sweeps
from orchestrator.store import Store
from orchestrator.tracking import Tracker
from orchestrator.units import Unit
from trainers.data.catalogue import OFFICIAL
from trainers.evaluate import STUDENT_COLUMNS

SWEEP = """\
name: long
set:
  dataset: cifar10
  training: {steps: 39000, evaluate_every: 390}
grids:
  - axes: {strategy: [A], seed: [%s]}
"""


def plan_of(folder: Path, runs: int) -> Plan:
    path = folder / "long.yaml"
    path.write_text(SWEEP % ", ".join(map(str, range(runs))))
    return make_plan(load_sweeps([path], OFFICIAL), OFFICIAL)


def short_trial(config: dict[str, Any]) -> None:
    """Says what a run says."""
    from ray import tune

    step = {"top1": 0.5, "images_per_s": 1000.0}
    reports = [{"event": "started", "first_step": 1}]
    reports += [{"event": "evaluation", "step": n, **step} for n in (100, 200, 300, 400)]
    reports += [{"event": "checkpoint", "step": 400}]
    reports += [{"event": "finished", "reason": "done", "step": 400}]
    for report in reports:
        tune.report({"unit": config["unit"], **report})


class Gauge(Listener):
    """Looks at this process every so many finished runs."""

    def __init__(self, every: int) -> None:
        self.rows: list[dict[str, float]] = []
        self._every = every
        self._finished = 0
        self._process = psutil.Process()

    def finished(self, unit: Unit, live: Live) -> None:
        self._finished += 1
        if self._finished % self._every == 0:
            gc.collect()
            used = self._process.cpu_times()
            row = {
                "runs": self._finished,
                "rss_mb": round(self._process.memory_info().rss / 2**20, 1),
                "cpu_s": round(used.user + used.system, 2),
                "wall_s": round(time.monotonic(), 2),
            }
            self.rows.append(row)
            print(json.dumps(row), flush=True)


def slope(rows: list[dict[str, float]], name: str) -> float:
    """By least squares, a run."""
    x = [row["runs"] for row in rows]
    y = [row[name] for row in rows]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure_driver(runs: int, slots: int, start: int) -> dict[str, Any]:
    orchestrator.trial.run_trial = short_trial
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        plan = plan_of(Path(folder), runs)
        gauge = Gauge(max(1, runs // 12))
        progress = Progress(Console(file=sys.stderr, quiet=True), done_before=0)
        options = DriveOptions(concurrency=slots)
        outcome = drive(plan, store, options, progress, [gauge], driver="benchmark")
        assert not outcome.failed, outcome
        assert not outcome.left, outcome
        late = [row for row in gauge.rows if row["runs"] >= start]
        half = len(late) // 2
        return {
            "runs": runs,
            "kb_a_run": round(1024 * slope(late, "rss_mb"), 1),
            "driver_ms_first_half": round(1000 * slope(late[: half + 1], "cpu_s"), 1),
            "driver_ms_second_half": round(1000 * slope(late[half:], "cpu_s"), 1),
            "wall_ms": round(1000 * slope(late, "wall_s"), 1),
            "store_bytes_a_run_of_the_driver": folder_bytes(Path(folder) / "store") // runs,
            "rows": gauge.rows,
        }


def write_run(store: Store, unit: Unit) -> None:
    """As a worker leaves a student: a hundred rows of all columns, its result, no checkpoint."""
    write_orders(store, unit, "0-written")
    records = Records(store, unit.name, STUDENT_COLUMNS, attempt="0-written")
    numbers = random.Random(unit.key)
    for step in unit.request.evaluate_at:
        row = {column: numbers.uniform(0, 100) for column in STUDENT_COLUMNS}
        row |= {"step": step, "count": 10_000, "timestamp_ms": 1_750_000_000_000 + 100 * step}
        records.add(row, replayed=False)
    records.save_rows()
    records.save_result({"reason": "done", "step": unit.request.horizon, "key": unit.key})


def measure_files(runs: int) -> dict[str, Any]:
    """The store's and MLflow's bytes and MLflow's time a run."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        plan = plan_of(Path(folder), runs)
        for unit in plan.units:
            write_run(store, unit)
        run_bytes = folder_bytes(store.root / "runs")
        tracker = Tracker(store)
        tracker.project("long", plan.units[0].name)  # makes the tables
        empty = folder_bytes(store.root) - run_bytes
        began = time.perf_counter()
        for unit in plan.units[1:]:
            tracker.project("long", unit.name)
        seconds = time.perf_counter() - began
        grown = folder_bytes(store.root) - run_bytes - empty
        return {
            "runs": runs,
            "rows_a_run": len(plan.units[0].request.evaluate_at),
            "store_bytes_a_run": run_bytes // runs,
            "files_a_run": sum(1 for path in store.root.rglob("runs/*/*")) // runs,
            "mlflow_bytes_a_run": grown // (runs - 1),
            "mlflow_ms_a_run": round(1000 * seconds / (runs - 1), 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3_000)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--written", type=int, default=200, help="runs to measure files with")
    parser.add_argument("--from", type=int, default=500, dest="start")
    parser.add_argument("--json", type=Path, default=None, help="write rows and machine there too")
    arguments = parser.parse_args()
    files = measure_files(arguments.written)
    print(json.dumps(files, indent=2), flush=True)
    driver = measure_driver(arguments.runs, arguments.slots, arguments.start)
    print(json.dumps({name: value for name, value in driver.items() if name != "rows"}, indent=2))
    if arguments.json is not None:
        about = {"machine": describe("ray", "mlflow"), "files": files, "driver": driver}
        arguments.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
