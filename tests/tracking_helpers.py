"""Runs as a driver leaves them in the store, and what a fresh MLflow client reads back."""

from __future__ import annotations

import atexit
import shutil
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dashboards.seals import seal_parquet
from orchestrator import paths
from orchestrator.store import Store
from orchestrator.tracking import Tracker
from orchestrator.tracking_client import connect
from orchestrator.tracking_view import is_kept
from orchestrator.units import snapshot_token

SWEEP = "demo"
T0 = 1_750_000_000_000


STEPS = [1, 9, 10, 55, 99, 100, 101, 110, 123, 200, 205, 300]


@cache
def empty_database() -> Path:
    """Making MLflow's tables takes 2 s, copying them none."""
    path = Path(mkdtemp(prefix="targetsweep-test-")) / "mlflow.db"
    atexit.register(shutil.rmtree, path.parent)
    connect(f"sqlite:///{path}").search_experiments()
    return path


def new_store(root: Path) -> Store:
    root.mkdir()
    shutil.copy(empty_database(), root / "mlflow.db")
    return Store(root)


def lose_database(store: Store) -> None:
    """Puts an empty one in its place."""
    shutil.copy(empty_database(), store.root / "new.db")
    (store.root / "new.db").replace(store.root / "mlflow.db")


def key(number: int) -> str:
    return f"{number:064x}"[::-1]


def name(number: int, kind: str = "student") -> str:
    return paths.run_name(kind, key(number))


def write_run(store: Store, number: int, *, steps: list[int], horizon: int = 300, **options: Any):
    """A student as the driver and its worker leave it. options: done, failed, teacher."""
    unit = name(number)
    teacher = options.get("teacher")
    spec: dict[str, Any] = {"strategy": "B" if teacher else "A", "seed": number}
    spec |= {"dataset": {"name": "digits", "ipc": 10}, "augmentation": {"crop_scale": [0.08, 1]}}
    if teacher:
        spec["teacher"] = {"key": key(teacher), "accuracy": 60.0}
    run = {"key": key(number), "kind": "student", "semantics": 1, "spec": spec}
    store.write_json(paths.run_json(unit), {**run, "label": f"seed{number}"})
    store.write_json(paths.request_json(unit), {"horizon": horizon, "evaluate_at": [123]})
    write_rows(store, unit, steps)
    if options.get("failed"):
        store.write_json(paths.failure(unit), {"error": "boom"})
    if options.get("done"):
        finish(store, unit, number, horizon)
    return unit


def write_rows(store: Store, unit: str, steps: list[int], shift_ms: int = 0) -> None:
    rows = [
        {"step": step, "epoch": step / 10, "top1_h": step / 7, "top1_g": 50.0}
        | {"train_kl": float("nan") if step == steps[0] else 1.0 / step, "count": 360}
        | {"wall_time_s": step / 100, "timestamp_ms": T0 + 10 * step + shift_ms, "replayed": False}
        for step in steps
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    store.write_bytes(paths.metrics(unit), seal_parquet(sink.getvalue().to_pybytes()))


def finish(store: Store, unit: str, number: int, horizon: int = 300) -> None:
    environment = {"workers": 1, "device": "cpu"}
    result = {"key": key(number), "kind": "student", "horizon": horizon, "step": horizon}
    store.write_json(paths.result(unit), {**result, "environment": environment})


def write_plan(store: Store, numbers: list[int], teacher: int | None = None) -> None:
    token = None if teacher is None else snapshot_token(name(teacher, "teacher"), 60.0)
    points = [
        {"run": name(n), "settings": {"seed": n}, "snapshot": token, "horizon": 300}
        for n in numbers
    ]
    plan = {"sweep": SWEEP, "title": "A demo", "points": points}
    store.write_json(paths.plan_json(SWEEP), plan)


@dataclass
class Seen:
    """What a fresh client reads back."""

    uri: str
    sweep: str = SWEEP
    client: Any = field(init=False)

    def __post_init__(self) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(self.uri)

    def runs(self, kind: str = "student") -> list[Any]:
        experiment = self.client.get_experiment_by_name(self.sweep)
        found = self.client.search_runs([experiment.experiment_id], max_results=1000)
        return [run for run in found if run.data.tags.get("targetsweep.kind") == kind]

    def one(self, unit: str) -> Any:
        (run,) = [r for r in self.runs() if unit.endswith(r.data.tags["run_key"][:16])]
        return run

    def points(self, unit: str, metric: str = "top1_h") -> list[tuple[int, int, float]]:
        history = self.client.get_metric_history(self.one(unit).info.run_id, metric)
        return sorted((point.step, point.timestamp, point.value) for point in history)


def assert_agrees(store: Store, tracker: Tracker, unit: str) -> None:
    """No run twice; no point twice, missing or different from its stored row."""
    seen = Seen(tracker.uri)
    rows = pq.read_table(store.local(paths.metrics(unit))).to_pylist()
    kept = [row for row in rows if is_kept(row["step"], (123, 300))]
    assert seen.points(unit) == [(r["step"], r["timestamp_ms"], r["top1_h"]) for r in kept]
    kl = [(r["step"], r["timestamp_ms"], r["train_kl"]) for r in kept[1:]]
    assert seen.points(unit, "train_kl") == kl  # the first is NaN
    assert len(seen.runs("sweep")) == 1
