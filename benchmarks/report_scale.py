"""How long a report takes on a large store.

Writes a synthetic store (default: 10,000 student runs × 150 evaluations, 5 seeds a cell) into a
temporary folder, then times reading, aggregating and `write_report` on it. Prints a table; `--json`
also writes it with machine and versions.

    python benchmarks/report_scale.py --runs 1000 --json report_scale.json

Numbers include a warm page cache: the store has just been written.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import describe

from dashboards import aggregate, load_plan, load_results, write_report
from dashboards.seals import seal_json, seal_parquet

PACKAGES = ("pyarrow", "pandas", "numpy", "matplotlib", "seaborn")
TEACHERS = tuple(float(p) for p in range(10, 100, 10))
STRATEGIES = ("B", "C")
SEEDS = 5
PER_IPC = len(TEACHERS) * len(STRATEGIES) * SEEDS


def points(num_runs: int) -> Iterator[dict[str, Any]]:
    """Settings of `num_runs` students: strategies × teachers × seeds, as many IPCs as it takes."""
    for index in range(num_runs):
        ipc, rest = divmod(index, PER_IPC)
        teacher, rest = divmod(rest, len(STRATEGIES) * SEEDS)
        strategy, seed = divmod(rest, SEEDS)
        yield {
            "strategy": STRATEGIES[strategy],
            "teacher.accuracy": TEACHERS[teacher],
            "ipc": 10 * (ipc + 1),
            "seed": seed,
        }


def references(steps: list[int], num_ipcs: int) -> list[dict[str, Any]]:
    """A number of "the paper" for every cell of the large table, and for every Gain."""
    found = []
    for ipc in range(1, num_ipcs + 1):
        for step in steps:
            for teacher in TEACHERS:
                at = {"ipc": 10 * ipc, "step": step, "teacher.accuracy": teacher}
                found += [
                    {"at": at | {"strategy": s}, "value": 79.0, "std": 0.5} for s in STRATEGIES
                ]
                found.append({"at": at, "kind": "gain", "value": 1.0})
    return found


def items(steps: list[int], num_ipcs: int) -> list[dict[str, Any]]:
    """A large table with Gain and paired rows and the paper's numbers, a figure over IPC with power
    laws, and panels of curves."""
    contrast = {"field": "strategy", "of": "C", "to": "B"}
    table = {"rows": ["ipc", "step", "strategy"], "columns": ["teacher.accuracy"]}
    table |= {"references": references(steps, num_ipcs), "bold": "gain"}
    over_ipc = {"x": "ipc", "hue": "teacher.accuracy", "panel": "strategy", "fit": "power"}
    curves = {"hue": "strategy", "panel": "teacher.accuracy", "smooth": "lowess", "scale": "log"}
    return [
        {"table": "all", **table, "steps": steps, "ratio": contrast, "paired": contrast},
        {"figure": "ipc", **over_ipc},
        {"figure": "curves", "where": {"ipc": 10}, **curves},
    ]


def write_store(store: Path, num_runs: int, num_evaluations: int) -> None:
    """The files a report reads, in the documented format."""
    rng = np.random.default_rng(0)
    steps = np.arange(1, num_evaluations + 1) * 390
    plan_points = []
    for index, settings in enumerate(points(num_runs)):
        name = f"student-{index:016x}"
        horizon = int(steps[-1])
        plan_points.append({"run": name, "settings": settings, "horizon": horizon})
        folder = store / "runs" / name
        folder.mkdir(parents=True)
        metrics = io.BytesIO()
        pq.write_table(_metrics(steps, rng), metrics)
        (folder / "metrics.parquet").write_bytes(seal_parquet(metrics.getvalue()))
        digest = hashlib.sha256(str(settings["teacher.accuracy"]).encode()).hexdigest()
        result = {"status": "complete", "step": horizon, "teacher_digest": digest}
        environment = {"torch": "2.11", "device": "cpu", "hostname": "bench"}
        result |= {"environment": environment, "wall_time_s": 1.0}
        (folder / "result.json").write_text(json.dumps(seal_json(result)))
    num_ipcs = -(-num_runs // PER_IPC)
    report = items([int(steps[len(steps) // 2]), int(steps[-1])], num_ipcs)
    plan = {"sweep": "bench", "fields": ["strategy", "teacher.accuracy", "ipc", "seed"]}
    folder = store / "sweeps" / "bench"
    folder.mkdir(parents=True)
    plan |= {"points": plan_points, "report": report}
    (folder / "plan.json").write_text(json.dumps(seal_json(plan)))


def _metrics(steps: np.ndarray, rng: np.random.Generator) -> pa.Table:
    size = len(steps)
    curve = 80 * (1 - np.exp(-steps / 5000)) + rng.normal(0, 1, size)
    names = ("top1_g", "train_kl", "train_ce", "target_entropy", "teacher_agreement")
    columns = {"step": steps, "epoch": steps / 390, "top1_h": curve}
    columns |= {name: rng.random(size) for name in names}
    columns |= {"images_per_s": rng.random(size), "wall_time_s": rng.random(size)}
    columns |= {"timestamp_ms": 1_760_000_000_000 + steps, "replayed": np.zeros(size, bool)}
    return pa.table(columns)


def timed(action: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each repeat."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return seconds


def measure(num_runs: int, num_evaluations: int, repeats: int) -> dict[str, list[float]]:
    """Seconds by stage; `report` reads the store again."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        write = timed(lambda: write_store(store, num_runs, num_evaluations), 1)
        plan = load_plan(folder, "bench")
        results = load_results(folder, plan)
        return {
            "write the synthetic store": write,
            "load_plan": timed(lambda: load_plan(folder, "bench"), repeats),
            "load_results": timed(lambda: load_results(folder, plan), repeats),
            "aggregate": timed(lambda: aggregate(results), repeats),
            "write_report": timed(lambda: write_report(folder, "bench"), repeats),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--evaluations", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    stages = measure(options.runs, options.evaluations, options.repeats)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{options.runs:,} runs × {options.evaluations} evaluations, peak {peak_gb:.2f} GB")
    print(f"{'stage':<28}{'median s':>10}{'min s':>10}{'n':>5}")
    for stage, seconds in stages.items():
        middle = statistics.median(seconds)
        print(f"{stage:<28}{middle:>10.2f}{min(seconds):>10.2f}{len(seconds):>5}")
    if options.json:
        about = {"runs": options.runs, "evaluations": options.evaluations, "peak_gb": peak_gb}
        content = about | {"seconds": stages, "machine": describe(*PACKAGES)}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
