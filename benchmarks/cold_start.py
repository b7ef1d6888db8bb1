"""From `targetsweep run` in a fresh process and a fresh store to the first training step.

    python benchmarks/cold_start.py [--repeats 5] [--against FOLDER] [--prepared]
        [--json cold_start.json]

Each repeat runs the real command on a tiny sweep (digits, a run a slot, strategy A) and stamps the
moments at which it passed on: the stages are the time between two of them, and `first step` ends
when the first run has trained one step. all_slots_s: until every slot has. cpu_s: processor seconds
of the command and all its processes up to the first step, which tell more than seconds on a machine
that does other work. --against: another checkout of this project, measured in turns with this one.
--prepared: the store has the data set already, as all but the first sweep of a store find it.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
SWEEP = """\
name: cold
set:
  dataset: digits
  backbone: {name: resnet18, width: 8}
  training: {steps: 10, batch_size: 64}
grids:
  - axes: {strategy: [A], seed: [%s]}
"""

STAGES = {
    "imported": "interpreter and imports",
    "validated": "reading and checking the sweep",
    "prepared": "data into the store",
    "driving": "plan",
    "ray": "Ray",
    "trial": "Tune, and a process for the trial",
    "ready": "the trial's imports",
    "step": "data, model, first step",
}
"""Stamps in their order, and what the time before each was for."""


# -- in the command's processes ------------------------------------------------------------------


def stamp(name: str) -> None:
    """Appends a moment to the file that this benchmark reads."""
    line = json.dumps({"name": name, "at": time.time(), "pid": os.getpid()})
    with open(os.environ["COLD_START_STAMPS"], "a") as file:
        file.write(line + "\n")


def command(tree: str, arguments: list[str]) -> None:
    """`targetsweep` of a checkout, with stamps."""
    sys.path.insert(0, tree)
    import orchestrator.cli
    import orchestrator.driver
    import orchestrator.sweeping
    import orchestrator.trial

    stamp("imported")
    sweeping: Any = orchestrator.sweeping
    driver: Any = orchestrator.driver
    sweeping.read_asked = after(sweeping.read_asked, "validated")
    sweeping.prepare_dataset = after(sweeping.prepare_dataset, "prepared")
    sweeping.drive = before(sweeping.drive, "driving")
    driver.ClusterView = before(driver.ClusterView, "ray")
    orchestrator.trial.run_trial = stamped_trial
    sys.argv = ["targetsweep", *arguments]
    orchestrator.cli.main()


def before(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(call)
    def stamped(*args: Any, **kwargs: Any) -> Any:
        stamp(name)
        return call(*args, **kwargs)

    return stamped


def after(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(call)
    def stamped(*args: Any, **kwargs: Any) -> Any:
        found = call(*args, **kwargs)
        stamp(name)
        return found

    return stamped


def stamped_trial(config: dict[str, Any]) -> None:
    """Tune's trainable; it travels by value, since this file is the command's `__main__`."""
    stamp("trial")
    import orchestrator.trial as real
    import orchestrator.worker  # noqa: F401 (what the trial loads before it trains)
    from trainers.engine import Engine

    stamp("ready")
    engine: Any = Engine
    engine.update = after(engine.update, "step")
    real.run_trial(config)


# -- the benchmark -------------------------------------------------------------------------------


def measure(tree: Path, slots: int, data: Path | None) -> dict[str, float]:
    """One cold start of a checkout's command. data: a prepared data set for its store."""
    with tempfile.TemporaryDirectory(prefix="cold-start-") as name:
        folder = Path(name)
        stamps = folder / "stamps.jsonl"
        stamps.touch()
        sweep = folder / "cold.yaml"
        sweep.write_text(SWEEP % ", ".join(map(str, range(slots))))
        if data is not None:
            shutil.copytree(data, folder / "store" / "datasets" / data.name)
        arguments = ["run", str(sweep), "--store", str(folder / "store")]
        arguments += ["--concurrency", str(slots)]
        ours = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "TARGETSWEEP_STORE", "PYTHONPATH")
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        environment |= {"COLD_START_STAMPS": str(stamps), "PYTHONPATH": str(tree)}
        began = time.time()
        with open(folder / "log", "w") as log:
            process = subprocess.Popen(
                [sys.executable, str(HERE), "--command", str(tree), *arguments],
                env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder,
            )  # fmt: skip
            cpu_s = _cpu_until_first_step(process, stamps)
            if process.wait():
                raise SystemExit((folder / "log").read_text())
        return judge(began, list(_stamps(stamps)), slots) | {
            "cpu_s": cpu_s,
            "command_s": time.time() - began,
        }


def prepared_data(folder: Path) -> Path:
    sys.path.insert(0, str(HERE.parents[1]))
    from trainers.data.prepare import prepare

    prepare("digits", out=folder / "digits")
    return folder / "digits"


def _cpu_until_first_step(process: subprocess.Popen[bytes], stamps: Path) -> float:
    import psutil

    root = psutil.Process(process.pid)
    while process.poll() is None:
        if '"step"' in stamps.read_text():
            return sum(map(_cpu_s, [root, *root.children(recursive=True)]))
        time.sleep(0.02)
    return float("nan")


def _cpu_s(process: Any) -> float:
    """Of a process and of those of its children that have ended."""
    import psutil

    try:
        used = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(used.user + used.system + used.children_user + used.children_system)


def _stamps(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        yield json.loads(line)


def judge(began: float, stamps: list[dict[str, Any]], slots: int) -> dict[str, float]:
    """Seconds of each stage, by its first stamp; of one that overlaps another, the rest."""
    first: dict[str, float] = {}
    for one in stamps:
        first.setdefault(one["name"], one["at"])
    first.setdefault("prepared", first["validated"])
    moments = [began, *(first[name] for name in STAGES)]
    found = {
        name: max(0.0, then - before)
        for name, (before, then) in zip(STAGES, pairwise(moments), strict=True)
    }
    steps: dict[int, float] = {}
    for one in stamps:
        if one["name"] == "step":
            steps.setdefault(one["pid"], one["at"])
    every = sorted(steps.values())[:slots]
    return found | {"first_step_s": first["step"] - began, "all_slots_s": every[-1] - began}


def summary(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median, least and most of each column."""
    return {
        name: {
            "median": round(statistics.median(row[name] for row in rows), 3),
            "min": round(min(row[name] for row in rows), 3),
            "max": round(max(row[name] for row in rows), 3),
        }
        for name in rows[0]
    }


def show(found: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="seconds, median (least to most)")
    table.add_column("stage")
    for name in found:
        table.add_column(name, justify="right")
    for column in next(iter(found.values())):
        cells = [f"{one['median']:.2f} ({one['min']:.2f} to {one['max']:.2f})"
                 for one in (columns[column] for columns in found.values())]  # fmt: skip
        table.add_row(STAGES.get(column, column), *cells)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slots", type=int, default=2, help="runs at once")
    parser.add_argument("--prepared", action="store_true", help="the data are in the store")
    parser.add_argument("--against", type=Path, default=None, help="another checkout")
    parser.add_argument("--json", type=Path, default=None, help="write rows and machine there too")
    arguments = parser.parse_args()
    trees = {"this": HERE.parents[1]}
    if arguments.against is not None:
        trees["against"] = arguments.against.resolve()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory(prefix="cold-data-") as folder:
        data = prepared_data(Path(folder)) if arguments.prepared else None
        for _ in range(arguments.repeats):
            for name, tree in trees.items():
                rows[name].append(measure(tree, arguments.slots, data))
                print(name, json.dumps(rows[name][-1]), flush=True)
    found = {name: summary(measured) for name, measured in rows.items()}
    show(found)
    if arguments.json is not None:
        import psutil
        from machine import describe

        about = {"n": arguments.repeats, "slots": arguments.slots, "load": psutil.getloadavg()[0]}
        about |= {"prepared": arguments.prepared}
        about |= {"machine": describe("ray", "torch", "mlflow"), "seconds": found, "rows": rows}
        arguments.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--command"]:
        command(sys.argv[2], sys.argv[3:])
    else:
        main()
