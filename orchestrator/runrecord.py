"""All that a store says of a run, as one record: what bundles carry and importing compares."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from orchestrator import paths
from orchestrator.bundlesnapshots import SHA256, snapshot_fault
from orchestrator.errors import DamagedFileError
from orchestrator.identity import canonical, from_canonical, kind_of, run_key
from orchestrator.metricsfile import read_metrics
from orchestrator.store import Store
from orchestrator.units import ARTEFACTS
from trainers.spec import SEMANTICS

__all__ = ["RunRecord", "are_numbers", "are_rows", "read_record", "result_fault"]

_STATE = re.compile(r"step-(\d{8})\.ckpt")
_ROW_COLUMNS = {"step", "timestamp_ms"}  # what readers of a row cannot do without


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All that the store says of a run. spec: canonical. result: None while the run is not
    complete. snapshots: their JSON by preset name. table: metrics.parquet; None for soft targets.
    weights: by preset, of the snapshots whose weights are there; in a bundle file, digest, accuracy
    and dtype of each. state: the step of the last resumable state; in a bundle also its file and
    the digest of the snapshot it learnt from.
    """

    name: str
    key: str
    kind: str
    spec: Mapping[str, Any]
    label: str
    request: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    snapshots: Mapping[str, Mapping[str, Any]]
    table: pa.Table | None
    weights: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    state: Mapping[str, Any] | None = None

    @property
    def run_json(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "kind": self.kind,
            "semantics": SEMANTICS,
            "spec": dict(self.spec),
            "label": self.label,
        }

    @property
    def environment(self) -> Mapping[str, Any]:
        return (self.result or {}).get("environment") or {}


def read_record(
    store: Store, name: str, damaged: list[DamagedFileError] | None = None
) -> RunRecord | None:
    """The run as the store has it; None when nothing says what it is. A damaged result, snapshot or
    metrics file counts as absent, as everywhere, and is added to `damaged`; a result without its
    rows is none. Raises StoreError for a file that is there and cannot be read now."""
    damaged = [] if damaged is None else damaged
    run = _json(store, paths.run_json(name), damaged)
    try:
        spec = from_canonical(run["spec"]) if run else None
    except (KeyError, TypeError, AttributeError):
        return None
    if run is None or spec is None or run_key(spec) != run.get("key"):
        return None
    # Both before the rows, which are saved before either: a driver may be at work.
    state, result = _last_state(store, name), _json(store, paths.result(name), damaged)
    table = _read_table(store, name, damaged)
    if any(error.rel == paths.metrics(name) for error in damaged):
        result = None
    record = RunRecord(
        name=name,
        key=run["key"],
        kind=kind_of(spec),
        spec=canonical(spec),
        label=str(run.get("label", "")),
        request=_json(store, paths.request_json(name), damaged),
        result=result,
        snapshots={},
        table=table,
    )
    files = store.list(paths.snapshots_dir(name))
    snapshots = {
        file.removesuffix(".json").removeprefix("acc-"): content
        for file in files
        if file.startswith("acc-")
        and file.endswith(".json")
        and (content := _json(store, f"{paths.snapshots_dir(name)}/{file}", damaged))
    }
    sound = {
        preset: one
        for preset, one in snapshots.items()
        if snapshot_fault(record.key, preset, one) is None
    }
    return replace(
        record,
        snapshots=sound,
        result=record.result if record.result and result_fault(record) is None else None,
        weights={preset: {} for preset in sound if f"acc-{preset}.safetensors" in files},
        state=state if record.table is not None else None,
    )


def _last_state(store: Store, name: str) -> dict[str, Any] | None:
    found = [_STATE.fullmatch(file) for file in store.list(paths.checkpoint_dir(name))]
    steps = [int(match[1]) for match in found if match]
    return {"step": max(steps)} if steps else None


def _json(store: Store, rel: str, damaged: list[DamagedFileError]) -> dict[str, Any] | None:
    try:
        return store.read_json(rel)
    except DamagedFileError as error:
        damaged.append(error)
        return None


def _read_table(store: Store, name: str, damaged: list[DamagedFileError]) -> pa.Table | None:
    try:
        table = read_metrics(store, name)
    except DamagedFileError as error:
        damaged.append(error)
        return None
    if table is None or not len(table) or not are_rows(table):
        return None
    return table.sort_by("step")


def are_rows(table: pa.Table) -> bool:
    """One a step, numbers all; times are needed by those who read rows."""
    types = {name: table.schema.field(name).type for name in table.column_names}
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    if not all(any(is_one(found) for is_one in numbers) for found in types.values()):
        return False
    if not all(pa.types.is_integer(types.get(name, pa.null())) for name in _ROW_COLUMNS):
        return False
    steps = table["step"].to_pylist()
    return not table["timestamp_ms"].null_count and len(steps) == len({*steps} - {None})


def result_fault(record: RunRecord) -> str | None:
    result = record.result
    if result is None:
        return None
    stated = (result.get("key"), result.get("kind"), result.get("status"))
    if stated != (record.key, record.kind, "complete"):
        return "its result is another run's, or of none that is complete"
    if not isinstance(result.get("horizon"), int) or not isinstance(result.get("step"), int):
        return "its result does not say how far it came"
    digest = result.get("teacher_digest")
    if digest is not None and not SHA256.fullmatch(digest):
        return "its result names no snapshot's digest"
    parts = [("environment", dict), ("presets", dict), ("searched_to", int)]
    sound = all(isinstance(result[part], cls) for part, cls in parts if part in result)
    sound = sound and _are_presets(result.get("presets", {}))
    if not sound or not are_numbers([result.get("wall_time_s") or 0, *result.get("missing", [])]):
        return "its result is none of a run's"
    if record.kind not in ARTEFACTS and not (record.table is not None and len(record.table)):
        return "it has a result and no rows"
    return None


def _are_presets(presets: Mapping[str, Any]) -> bool:
    try:
        return all(math.isfinite(float(preset)) for preset in presets)
    except ValueError:
        return False


def are_numbers(values: Iterable[object]) -> bool:
    return all(isinstance(value, int | float) for value in values)
