"""What MLflow should show of one run, as a pure function of the store. No MLflow in here.

The rules that keep a projection repeatable: parameters are key fields alone (MLflow refuses a
changed parameter), points carry the stored row's time stamp (a second write of a point is then the
same point), and whether a row is sent depends on its step, not on when the projection runs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from dashboards import layout_types
from orchestrator import paths
from orchestrator.behind import scorer
from orchestrator.inventory import READERS
from orchestrator.metricsfile import parse_metrics
from orchestrator.store import Store
from orchestrator.units import ARTEFACTS, provider

__all__ = ["METRICS", "Point", "RunView", "Status", "fingerprint", "is_kept", "units", "view"]

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

METRICS = (*layout_types.METRICS, "epoch", "images_per_s", "wall_time_s")
"""Columns of metrics.parquet that become MLflow metrics. The UI slows with their number."""

_MAX_PARAMS = 100  # MLflow's limit for one batch
_MAX_VALUE = 6000  # and for one value


@dataclass(frozen=True, kw_only=True)
class Point:
    """One kept evaluation. timestamp_ms: the stored row's."""

    step: int
    timestamp_ms: int
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class RunView:
    """rows: step -> timestamp_ms of every stored row, kept or not. curve: SHA-256 of a finished
    run's metrics.parquet, which is then attached whole."""

    key: str
    label: str
    status: Status
    params: dict[str, str] = field(repr=False)
    tags: dict[str, str]
    points: list[Point] = field(repr=False)
    rows: dict[int, int] = field(repr=False)
    start_ms: int
    end_ms: int
    curve: str | None

    @property
    def leading_metric(self) -> str:
        """The metric that every row of this run has."""
        return "top1" if self.tags["targetsweep.kind"] == "teacher" else "top1_h"


def view(store: Store, name: str, *, live: bool) -> RunView | None:
    """name: `student-0123456789abcdef`. live: a driver is at work, so an unfinished run is running
    rather than killed. None for a unit that is no run, or that was never asked for."""
    run = store.read_json(paths.run_json(name))
    request = store.read_json(paths.request_json(name))
    result = store.read_json(paths.result(name))
    if run is None or run["kind"] in ARTEFACTS or (request is None and result is None):
        return None
    data = store.read_bytes(paths.metrics(name)) if store.exists(paths.metrics(name)) else None
    rows = [] if data is None else parse_metrics(data, paths.metrics(name)).to_pylist()
    status = _status(store, name, request or {}, result, live=live)
    start_ms, end_ms = _period(store, name, rows)
    return RunView(
        key=run["key"],
        label=run.get("label") or name,
        status=status,
        params=_params(run.get("spec", {})),
        tags=_tags(run, request or {}, result or {}, status),
        points=list(_points(rows, request or {}, result or {})),
        rows={row["step"]: row["timestamp_ms"] for row in rows},
        start_ms=start_ms,
        end_ms=end_ms,
        curve=hashlib.sha256(data).hexdigest() if data and status == "FINISHED" else None,
    )


def is_kept(step: int, always: Container[int] = ()) -> bool:
    """Two significant digits of the step: 1 to 99 all, 100, 110, ... 1,000, 1,100, ... 10,000.
    At most 90 points per power of ten, whatever the run's length."""
    if step < 1 or step in always:
        return True
    return bool(step % 10 ** max(0, len(str(step)) - 2) == 0)


def units(store: Store, plan: Mapping[str, Any]) -> list[str]:
    """The runs a plan's points name, and the teachers, probed students and students behind scores
    that those need, each once, in plan order."""
    names: dict[str, None] = {}
    scorers: dict[str, str | None] = {}
    for point in plan.get("points", []):
        if (scores := point.get("scores")) is not None and scores not in scorers:
            scorers[scores] = scorer(store, scores)
        tokens = (point.get("snapshot"), point.get("weights"), scorers.get(scores))
        for token in filter(None, tokens):
            names[provider(token)] = None
        if point["run"] is not None:
            names[point["run"]] = None
    return list(names)


def fingerprint(store: Store, plan: Mapping[str, Any], names: Iterable[str]) -> str:
    """Changes when anything a projection reads changed. Costs one listing a run, and reads none."""
    names = list(names)
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda name: store.stamps(paths.run_dir(name)), names)
        stamps = dict(zip(names, found, strict=True))
    text = json.dumps([plan, stamps], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _status(
    store: Store,
    name: str,
    request: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    *,
    live: bool,
) -> Status:
    if result is not None and _covers(result, request):
        missing = {*result.get("missing", [])} if not request.get("measures") else set()
        return "FAILED" if missing.intersection(request.get("presets", [])) else "FINISHED"
    failed = store.modified(paths.failure(name))
    # A request newer than the failure is the retry under way.
    retried = live and (store.modified(paths.request_json(name)) or 0.0) > (failed or 0.0)
    if failed is not None and not retried:
        return "FAILED"
    return "RUNNING" if live else "KILLED"


def _covers(result: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    """The stored result answers the latest request."""
    if int(result.get("horizon", 0)) < int(request.get("horizon", 0)):
        return False
    known = {*result.get("presets", {}), *map(paths.preset_name, result.get("missing", []))}
    return known >= {paths.preset_name(preset) for preset in request.get("presets", [])}


def _params(spec: object) -> dict[str, str]:
    """Nested key fields as dotted names; what is not text as JSON."""
    flat = dict(_flatten(spec, ""))
    return {name: flat[name][:_MAX_VALUE] for name in sorted(flat)[:_MAX_PARAMS]}


def _flatten(value: object, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, str):
        yield name, value
    else:
        yield name, json.dumps(value)


def _tags(
    run: Mapping[str, Any], request: Mapping[str, Any], result: Mapping[str, Any], status: Status
) -> dict[str, str]:
    environment = result.get("environment", {})
    tags = {
        "run_key": run["key"],
        "targetsweep.kind": run["kind"],
        "label": run.get("label"),
        "horizon": max(request.get("horizon", 0), result.get("horizon", 0)),
        "workers": environment.get("workers", request.get("workers")),
        "device": environment.get("device"),
        "state": status.lower(),
    }
    return {name: str(value) for name, value in tags.items() if value is not None}


def _points(
    rows: list[dict[str, Any]], request: Mapping[str, Any], result: Mapping[str, Any]
) -> Iterator[Point]:
    always = {*request.get("evaluate_at", []), request.get("horizon"), result.get("step")}
    for row in rows:
        if is_kept(row["step"], always):
            values = {name: row[name] for name in METRICS if _is_number(row.get(name))}
            yield Point(step=row["step"], timestamp_ms=row["timestamp_ms"], values=values)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _period(store: Store, name: str, rows: list[dict[str, Any]]) -> tuple[int, int]:
    """First and last moment, in ms since the epoch."""
    asked = store.modified(paths.request_json(name)) or store.modified(paths.run_json(name)) or 0.0
    if not rows:
        return int(asked * 1000), int(asked * 1000)
    first, last = rows[0], rows[-1]
    began = first["timestamp_ms"] - int(1000 * (first.get("wall_time_s") or 0.0))
    return began, max(began, last["timestamp_ms"])
