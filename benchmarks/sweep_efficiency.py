"""How much of a sweep's time is training: ours, Ray Tune with Ray Train, and a shell loop.

    python benchmarks/sweep_efficiency.py [--runs 40] [--seconds 10] [--slots 2] [--rounds 1]
        [--ways ours,tune,shell] [--json sweep_efficiency.json]

Every way trains the same short students (digits, ResNet-18, strategy A, one thread each), `--slots`
at a time: *ours* is `targetsweep run`, store, MLflow and all; *tune* is Ray's own recipe of 2.60, a
Tune trial that fits a TorchTrainer of one worker, which reports each evaluation and keeps nothing;
*shell* is `xargs -P` over one python process a run. Runs say themselves when their first step began
and when the evaluation of their last step was over.

solo_s: the same run in a warm process with nothing around it, `quiet` alone on the machine, `busy`
with the other slots training too (measured before and after each way; cores share caches, memory
and clock). efficiency: runs × solo_s / (slots × wall_s), with wall_s from the first step of all to
the last. overhead_s: slots × wall_s − runs × solo_s. gap_s: from a run's end to the next first step
on its slot. whole_s: the command from its start to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from short_runs import STAMPS, sweep_text

HERE = Path(__file__).resolve()
RUN = str(HERE.with_name("short_runs.py"))


# -- the three ways, each in a process of its own ------------------------------------------------


def ours(asked: argparse.Namespace) -> None:
    """The real command; its trials stamp."""
    import orchestrator.cli
    import orchestrator.trial

    orchestrator.trial.run_trial = stamped_trial
    sweep = Path(asked.folder) / "short.yaml"
    sweep.write_text(sweep_text(asked.width, asked.steps, asked.runs))
    arguments = ["run", str(sweep), "--store", asked.store, "--concurrency", str(asked.slots)]
    if asked.device != "cpu":
        arguments += ["--gpus-per-run", f"{1 / asked.slots:g}"]
    sys.argv = ["targetsweep", *arguments]
    orchestrator.cli.main()


def stamped_trial(config: dict[str, Any]) -> None:
    """Tune's trainable; it travels by value, since this file is the command's `__main__`."""
    import short_runs

    import orchestrator.trial as real
    import orchestrator.worker

    short_runs.watch_steps()
    worker: Any = orchestrator.worker
    if not hasattr(worker, "plain_train_student"):
        worker.plain_train_student = worker.train_student
        worker.train_student = short_runs.stamping(worker.train_student)
    real.run_trial(config)


def tune(asked: argparse.Namespace) -> None:
    """Ray's recipe. Its Ray is started as ours is, on the loopback address, with a CPU for each
    trial's driver and one for its worker."""
    from orchestrator.raycluster import connect

    with connect(None, 2 * asked.slots):
        import ray.tune

        ray.tune.Tuner(
            train_driver,
            param_space={"seed": ray.tune.grid_search(list(range(asked.runs))), **vars(asked)},
            tune_config=ray.tune.TuneConfig(max_concurrent_trials=asked.slots),
            run_config=ray.tune.RunConfig(storage_path=asked.folder, verbose=0),
        ).fit()


def train_driver(config: dict[str, Any]) -> None:
    """A Tune trial: launches one Ray Train run."""
    import ray.train.torch
    import ray.tune
    from ray.tune.integration.ray_train import TuneReportCallback

    is_gpu = config["device"] != "cpu"
    ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=1,
            use_gpu=is_gpu,
            resources_per_worker={"GPU": 1 / config["slots"]} if is_gpu else None,
        ),
        run_config=ray.train.RunConfig(
            name=f"train-trial_id={ray.tune.get_context().get_trial_id()}",
            storage_path=config["folder"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def train_worker(config: dict[str, Any]) -> None:
    """On Ray Train's worker."""
    import ray.train
    import short_runs

    data = short_runs.load_data(config["data"], config["device"])
    for row in short_runs.rows(
        data, config["seed"], config["width"], config["steps"], config["device"]
    ):
        ray.train.report(row)


def shell(asked: argparse.Namespace) -> None:
    """A line of shell."""
    one = [sys.executable, RUN, "--data", asked.data, "--steps", str(asked.steps)]
    one += ["--width", str(asked.width), "--device", asked.device, "--seed"]
    line = f"seq 0 {asked.runs - 1} | xargs -P {asked.slots} -n 1 {shlex.join(one)}"
    subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], check=True)


WAYS = {"ours": ours, "tune": tune, "shell": shell}


# -- measuring -----------------------------------------------------------------------------------


def environment(**more: str) -> dict[str, str]:
    """This process's, less what would point the command elsewhere."""
    strangers = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "TARGETSWEEP_STORE")
    kept = {name: value for name, value in os.environ.items() if name not in strangers}
    places = [str(HERE.parents[1]), str(HERE.parent)]
    return kept | {"PYTHONPATH": os.pathsep.join(places)} | more


def prepare_data(folder: Path) -> str:
    from trainers.data.prepare import prepare

    prepare("digits", out=folder / "digits")
    return str(folder / "digits")


def solo_times(asked: argparse.Namespace, steps: int, processes: int) -> list[float]:
    """Of so many warm processes at once."""
    command = [sys.executable, RUN, "--data", asked.data, "--steps", str(steps)]
    command += ["--width", str(asked.width), "--device", asked.device]
    command += ["--repeats", str(asked.repeats)]
    started = [
        subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    texts = [process.communicate()[0] for process in started]
    return [seconds for text in texts for seconds in json.loads(text)]


def drive_way(way: str, asked: argparse.Namespace) -> dict[str, Any]:
    """One sweep: its runs' moments and its own."""
    with tempfile.TemporaryDirectory(prefix=f"sweep-{way}-") as name:
        folder = Path(name)
        stamps = folder / "stamps.jsonl"
        stamps.touch()
        values = {**vars(asked), "folder": name, "store": str(folder / "store")}
        command = [sys.executable, str(HERE), "--way", way, json.dumps(values)]
        began = time.time()
        with open(folder / "log", "w") as log:
            done = subprocess.run(
                command, env=environment(**{STAMPS: str(stamps)}),
                stdout=log, stderr=subprocess.STDOUT, cwd=folder, check=False,
            )  # fmt: skip
        whole_s = time.time() - began
        if done.returncode:
            raise SystemExit(f"{way} failed:\n" + (folder / "log").read_text()[-4000:])
        moments = [json.loads(line) for line in stamps.read_text().splitlines()]
    return {"whole_s": whole_s, "spans": spans_of(moments)}


def spans_of(moments: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(first step, end) of each run, by first step. Every run has both, once."""
    first = {one["seed"]: one["at"] for one in moments if one["name"] == "first"}
    last = {one["seed"]: one["at"] for one in moments if one["name"] == "last"}
    assert first.keys() == last.keys()
    assert len(moments) == 2 * len(first)
    return sorted((first[seed], last[seed]) for seed in first)


def gaps_of(spans: Sequence[tuple[float, float]], slots: int) -> list[float]:
    """Seconds between runs of one slot: each run takes the slot that has been free the longest."""
    ends: list[float] = []
    gaps = []
    for first, last in spans:
        if len(ends) == slots:
            gaps.append(first - ends.pop(0))
        ends = sorted([*ends, last])
    return gaps


def judge(found: Mapping[str, Any], solo: Mapping[str, float], slots: int) -> dict[str, Any]:
    """The columns of one sweep. solo: seconds of a run by `quiet` and `busy`."""
    spans = found["spans"]
    wall_s = max(last for _, last in spans) - spans[0][0]
    gaps = gaps_of(spans, slots) or [0.0]
    room_s = slots * wall_s
    return {
        "runs": len(spans),
        "wall_s": round(wall_s, 2),
        "whole_s": round(found["whole_s"], 2),
        "efficiency_busy": round(len(spans) * solo["busy"] / room_s, 4),
        "efficiency_quiet": round(len(spans) * solo["quiet"] / room_s, 4),
        "overhead_s": round(room_s - len(spans) * solo["busy"], 2),
        "gap_median_s": round(statistics.median(gaps), 3),
        "gap_max_s": round(max(gaps), 3),
        "run_median_s": round(statistics.median(last - first for first, last in spans), 3),
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "n": len(values),
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """All ways in turns, a solo measurement with busy neighbours around each."""
    asked.steps = 100
    asked.steps = max(20, round(100 * asked.seconds / min(solo_times(asked, 100, asked.slots))))
    quiet = solo_times(asked, asked.steps, 1)
    busy = solo_times(asked, asked.steps, asked.slots)
    sweeps: dict[str, list[dict[str, Any]]] = {way: [] for way in asked.ways}
    for _ in range(asked.rounds):
        for way in asked.ways:
            sweeps[way].append(drive_way(way, asked))
            busy += solo_times(asked, asked.steps, asked.slots)
    quiet += solo_times(asked, asked.steps, 1)
    solo = {"quiet": statistics.median(quiet), "busy": statistics.median(busy)}
    return {
        "steps_a_run": asked.steps,
        "solo_s": {"quiet": spread(quiet), "busy": spread(busy)},
        "ways": {
            way: [judge(found, solo, asked.slots) for found in done] for way, done in sweeps.items()
        },
    }


def show(found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    solo = found["solo_s"]
    title = f"{found['steps_a_run']} steps a run; solo {solo['quiet']['median']} s quiet, "
    table = Table(title=title + f"{solo['busy']['median']} s with busy neighbours")
    columns = list(next(iter(found["ways"].values()))[0])
    for column in ["way", *columns]:
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, sweeps in found["ways"].items():
        for sweep in sweeps:
            table.add_row(way, *(f"{sweep[column]:g}" for column in columns))
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a run, about")
    parser.add_argument("--slots", type=int, default=2, help="runs at once")
    parser.add_argument("--rounds", type=int, default=1, help="sweeps of each way")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each solo measurement")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; slots share one GPU")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--json", type=Path, default=None, help="write rows and machine there too")
    asked = parser.parse_args()
    out, asked.json = asked.json, None
    asked.ways = asked.ways.split(",")
    with tempfile.TemporaryDirectory(prefix="sweep-data-") as folder:
        asked.data = prepare_data(Path(folder))
        load = os.getloadavg()[0]
        found = measure(asked)
    show(found)
    if out is not None:
        from machine import describe

        about = {
            "n": asked.rounds,
            "runs": asked.runs,
            "slots": asked.slots,
            "device": asked.device,
        }
        about |= {"load_before": round(load, 1), "machine": describe("torch", "ray", "mlflow")}
        out.write_text(json.dumps(about | found, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--way"]:
        WAYS[sys.argv[2]](argparse.Namespace(**json.loads(sys.argv[3])))
    else:
        main()
