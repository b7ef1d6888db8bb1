"""How long a plan takes, and how much memory, by the number of grid points.

    python benchmarks/plan_scale.py [--points 1000 10000 100000] [--json plan_scale.json]

Each size runs in a process of its own, so that one's memory is not the next one's. The grid has all
axes of the paper and as many seeds as it takes; load includes every check of the sweep file.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe

# B and C with nine teachers, and A, by IPC and augmentation.
POINTS_PER_SEED = 9 * 2 * 9 * 6 + 9 * 6


def write_sweep(folder: Path, points: int) -> Path:
    """A sweep of at least `points` points."""
    seeds = max(1, round(points / POINTS_PER_SEED))
    accuracies = [10.0 * tenth for tenth in range(1, 10)]
    sweep = {
        "name": "scale",
        "set": {"dataset": "cifar10", "training": {"steps": 39_000, "evaluate_every": 390}},
        "grids": [
            {
                "axes": {
                    "strategy": ["A", "B", "C"],
                    "teacher.accuracy": accuracies,
                    "ipc": [10, 20, 50, 100, 200, 500, 1000, 2000, 5000],
                    "augmentation": ["none", "color", "crop", "mixup", "cutmix", "std"],
                    "seed": list(range(seeds)),
                }
            }
        ],
        "report": [
            {
                "table": "all",
                "where": {"strategy": ["B", "C"]},
                "rows": ["step", "strategy", "ipc"],
                "columns": ["teacher.accuracy", "augmentation"],
                "steps": [1_950, 7_800, 39_000],
            }
        ],
    }
    path = folder / "scale.yaml"
    path.write_text(json.dumps(sweep))  # JSON is YAML
    return path


def measure(points: int) -> dict[str, Any]:
    """Seconds and bytes of one plan, in this process."""
    from orchestrator.plan import make_plan
    from orchestrator.plandocument import plan_document
    from orchestrator.spec import load_sweeps
    from trainers.data.catalogue import OFFICIAL

    with tempfile.TemporaryDirectory() as folder:
        path = write_sweep(Path(folder), points)
        started = time.perf_counter()
        sweeps = load_sweeps([path])
        loaded = time.perf_counter()
        plan = make_plan(sweeps, OFFICIAL)
        planned = time.perf_counter()
        plan_document(sweeps[0], plan)
        written = time.perf_counter()
    return {
        "points": plan.num_points,
        "units": len(plan.units),
        "load_s": round(loaded - started, 3),
        "plan_s": round(planned - loaded, 3),
        "document_s": round(written - planned, 3),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--json", type=Path, default=None, help="write rows and machine there too")
    parser.add_argument("--one", type=int, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measure(arguments.one)))
        return
    rows = []
    for points in arguments.points:
        command = [sys.executable, __file__, "--one", str(points)]
        rows.append(json.loads(subprocess.check_output(command)))
        if len(rows) == 1:
            print("".join(f"{name:>12}" for name in rows[0]))
        print("".join(f"{value:>12,}" for value in rows[-1].values()), flush=True)
    if arguments.json is not None:
        about = {"n": 1, "machine": describe("pydantic", "pyyaml"), "rows": rows}
        arguments.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
