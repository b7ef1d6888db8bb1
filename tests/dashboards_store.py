"""Writes small synthetic stores in the documented format (docs/architecture.md), so that the report
is tested against the contract and not against the code that will write it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dashboards.seals import seal_json, seal_parquet, unseal_json

STEPS = (10, 20, 50, 100, 200, 300)
TEACHER = "teacher-00000000000000aa"

Settings = dict[str, Any]


def run_name(settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True)
    return f"student-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def digest_of(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def top1(settings: Mapping[str, Any], step: int) -> float:
    """A made-up accuracy in percent that depends on every setting, the seed and the step."""
    noise = int(digest_of((sorted(settings.items(), key=str), step))[:6], 16) / 16**6
    ceiling = {"A": 70.0, "B": 60.0, "C": 65.0}.get(str(settings.get("strategy")), 50.0)
    return (
        ceiling * (1 - np.exp(-step / 80)) + 0.1 * (settings.get("teacher.accuracy") or 0) + noise
    )


def grid(
    strategies: Iterable[str] = ("A", "B", "C"),
    teachers: Iterable[float] = (30.0, 60.0),
    seeds: Iterable[int] = range(5),
    **others: Iterable[Any],
) -> list[Settings]:
    """Points of strategies × teachers × others × seeds, strategy A once without a teacher."""
    combinations: list[Settings] = [{}]
    for name, values in others.items():
        combinations = [c | {name: value} for c in combinations for value in values]
    return [
        {"strategy": strategy, "teacher.accuracy": teacher, **c, "seed": seed}
        for strategy in strategies
        for teacher in ((None,) if strategy == "A" else tuple(teachers))
        for c in combinations
        for seed in seeds
    ]


def write_plan(
    store: Path,
    points: list[Settings],
    report: list[dict[str, Any]],
    horizon: int = 300,
    settings: Settings | None = None,
    sweep: str = "demo",
    scale: dict[str, Any] | None = None,
    actual: Callable[[Settings], Settings | None] = lambda _: {},
    overrides: list[str] | None = None,
) -> None:
    """actual: of each point of a scaled sweep what its run has instead; None: it has no run."""
    plan = {
        "sweep": sweep,
        "title": "A small study",
        "description": "Teachers & <students>.",
        "semantics": 1,
        "settings": settings or {"dataset": "digits"},
        "fields": list(points[0]) if points else [],
        "points": [_point(p, horizon, actual(p)) for p in points],
        "report": report,
        "scale": scale,
        **({"overrides": overrides} if overrides else {}),
    }
    write_json(store / "sweeps" / sweep / "plan.json", plan)


def _point(settings: Settings, horizon: int, actual: Settings | None) -> dict[str, Any]:
    run = None if actual is None else run_name(settings)
    return {"run": run, "settings": settings, "horizon": horizon, "actual": actual or {}}


def write_run(
    store: Path,
    settings: Settings,
    *,
    steps: Iterable[int] = STEPS,
    digest: str | None = None,
    complete: bool = True,
    score: Callable[[Mapping[str, Any], int], float] = top1,
    order: np.random.Generator | None = None,
) -> None:
    """One student. order: shuffles the rows of its file when given."""
    folder = store / "runs" / run_name(settings)
    steps = list(steps)
    rows = [_row(settings, step, score) for step in steps]
    if order is not None:
        rows = [rows[i] for i in order.permutation(len(rows))]
    metrics = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), metrics)
    _write(folder / "metrics.parquet", seal_parquet(metrics.getvalue()))
    accuracy = settings.get("teacher.accuracy")
    teacher = (
        None if accuracy is None else {"key": "0" * 14 + "aa" + "f" * 48, "accuracy": accuracy}
    )
    spec = {"seed": settings.get("seed", 0), "teacher": teacher}
    write_json(folder / "run.json", {"kind": "student", "spec": spec})
    if complete:
        default = None if accuracy is None else digest_of(accuracy)
        result = {
            "kind": "student",
            "status": "complete",
            "horizon": steps[-1],
            "step": steps[-1],
            "teacher_digest": digest or default,
            "replayed": False,
            "environment": {"torch": "2.11", "device": "cpu", "hostname": "secret-host"},
            "wall_time_s": 3.5,
        }
        write_json(folder / "result.json", result)


def write_snapshot(store: Path, preset: float, digest: str | None = None) -> None:
    folder = store / "runs" / TEACHER
    record = {
        "preset": preset,
        "step": int(10 * preset),
        "accuracy": preset + 0.25,
        "alpha": 1.0,
        "digest": digest or digest_of(preset),
        "teacher": "0" * 62 + "aa",
    }
    write_json(folder / f"snapshots/acc-{preset:g}.json", record)
    result = {"kind": "teacher", "status": "complete", "step": 900, "wall_time_s": 9.0}
    write_json(folder / "result.json", result)


def _row(
    settings: Settings, step: int, score: Callable[[Mapping[str, Any], int], float]
) -> Settings:
    value = score(settings, step)
    return {
        "step": step,
        "epoch": step / 390,
        "top1_h": value,
        "top1_g": 0.9 * value,
        "correct_h": round(value * 100),
        "count": 10_000,
        "train_kl": float(np.exp(-step / 100)),
        "train_ce": 2.0,
        "target_entropy": 1.5,
        "teacher_agreement": 0.5,
        "images_per_s": 1000.0,
        "wall_time_s": step / 100,
        "timestamp_ms": 1_760_000_000_000 + step,
        "replayed": False,
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Sealed, as the store writes it."""
    _write(path, json.dumps(seal_json(dict(content))).encode())


def read_json(path: Path) -> dict[str, Any]:
    return unseal_json(json.loads(path.read_text()))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
