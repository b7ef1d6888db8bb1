"""What a bundle holds: the records of runs, without paths or host names.

    runs.jsonl               a line a run, by name: run.json, request.json, result.json, snapshots
    metrics-<kind>.parquet   the rows of all runs of a kind: a column `run`, then metrics.parquet's
    plans.jsonl              a line a sweep: its plan.json
    snapshot-<digest16>.safetensors, state-<run>.ckpt    where asked (bundleweights)

A line a run and a file a kind, rather than the store's tree: a thousand runs are three files of a
megabyte, which git shows as lines added and pyarrow opens as they are. Equal records give equal
bytes. Execution columns (time stamps, images/s) stay, for MLflow and for provenance.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from orchestrator import paths
from orchestrator.bundlefile import Packed, bundle_error, parse_json
from orchestrator.bundlesnapshots import SHA256, snapshot_fault
from orchestrator.errors import DamagedFileError, StoreError
from orchestrator.identity import canonical, from_canonical, kind_of, run_key
from orchestrator.metricsfile import read_metrics
from orchestrator.store import Store
from orchestrator.units import ARTEFACTS
from trainers.spec import SEMANTICS

__all__ = ["RunRecord", "machine_name", "pack", "portable", "read_record", "unpack"]

_RUNS, _PLANS = "runs.jsonl", "plans.jsonl"
_HOST = re.compile(r"host-[0-9a-f]{12}")
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


# -- from a store -------------------------------------------------------------------------------


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
        result=record.result if record.result and _result_fault(record) is None else None,
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
    if table is None or not len(table) or not _are_rows(table):
        return None
    return table.sort_by("step")


def _are_rows(table: pa.Table) -> bool:
    """One a step, numbers all; times are needed by those who read rows."""
    types = {name: table.schema.field(name).type for name in table.column_names}
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    if not all(any(is_one(found) for is_one in numbers) for found in types.values()):
        return False
    if not all(pa.types.is_integer(types.get(name, pa.null())) for name in _ROW_COLUMNS):
        return False
    steps = table["step"].to_pylist()
    return not table["timestamp_ms"].null_count and len(steps) == len({*steps} - {None})


def portable(record: RunRecord) -> RunRecord:
    """Without what belongs to one machine: the attempt that wrote it, and the host's name."""
    request = {k: v for k, v in (record.request or {}).items() if k != "attempt"}
    result = dict(record.result) if record.result else None
    if result and (host := record.environment.get("hostname")):
        result["environment"] = {**record.environment, "hostname": machine_name(str(host))}
    return replace(record, request=request or None, result=result)


def machine_name(host: str) -> str:
    """Tells machines apart without naming them: `host-` and 12 digits of the name's SHA-256."""
    if _HOST.fullmatch(host):
        return host  # imported from a bundle before
    return f"host-{hashlib.sha256(host.encode()).hexdigest()[:12]}"


# -- to files -----------------------------------------------------------------------------------


def pack(records: Sequence[RunRecord], plans: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """The files of a bundle."""
    records = sorted(records, key=lambda record: record.name)
    files = {
        _RUNS: _lines(_record_line(record) for record in records),
        _PLANS: b"".join(_line(plans[name], sort=False) for name in sorted(plans)),
    }
    for kind in sorted({record.kind for record in records if record.table is not None}):
        tables = [
            record.table.add_column(0, "run", pa.array([record.name] * len(record.table)))
            for record in records
            if record.kind == kind and record.table is not None
        ]
        buffer = io.BytesIO()
        together = pa.concat_tables(tables, promote_options="permissive").replace_schema_metadata()
        pq.write_table(together, buffer, compression="zstd")
        files[f"metrics-{kind}.parquet"] = buffer.getvalue()
    return files


def _lines(objects: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(map(_line, objects))


def _line(content: Mapping[str, Any], *, sort: bool = True) -> bytes:
    """A plan's order is its sweep file's, and means something; a run's does not."""
    text = json.dumps(content, sort_keys=sort, separators=(",", ":"), allow_nan=False)
    return f"{text}\n".encode()


def _record_line(record: RunRecord) -> dict[str, Any]:
    return {
        "run": record.run_json,
        "request": record.request,
        "result": record.result,
        "snapshots": record.snapshots,
        "columns": None if record.table is None else record.table.column_names,
        **({"weights": record.weights} if record.weights else {}),
        **({"state": record.state} if record.state else {}),
    }


# -- from files ---------------------------------------------------------------------------------


def unpack(packed: Packed) -> tuple[list[RunRecord], dict[str, dict[str, Any]]]:
    """Runs, and plans by sweep. UserError for anything that is not what a store would hold: keys
    and names are computed again from the specifications."""
    tables = _tables(packed)
    records = []
    for number, line in _parsed_lines(packed, _RUNS):
        try:
            records.append(_record(line, tables))
        except (ValueError, KeyError, TypeError, AttributeError, StoreError) as error:
            reason = error.problem if isinstance(error, StoreError) else error
            raise bundle_error(packed.place, f"{_RUNS}, line {number}: {reason}") from error
    names = {record.name for record in records}
    if len(names) != len(records) or tables.keys() - names:
        raise bundle_error(packed.place, f"{_RUNS} does not name each run of the metrics once")
    plans = {}
    for number, line in _parsed_lines(packed, _PLANS):
        try:
            plans[_plan_name(line)] = line
        except (ValueError, KeyError, TypeError, AttributeError, StoreError) as error:
            raise bundle_error(packed.place, f"{_PLANS}, line {number}: {error}") from error
    return records, plans


def _parsed_lines(packed: Packed, name: str) -> Iterator[tuple[int, Any]]:
    if name not in packed.files:
        raise bundle_error(packed.place, f"it has no {name}")
    for number, line in enumerate(packed.files[name].split(b"\n")[:-1], 1):
        try:
            yield number, parse_json(line)
        except ValueError as error:
            raise bundle_error(packed.place, f"{name}, line {number}: {error}") from error


def _tables(packed: Packed) -> dict[str, pa.Table]:
    """Rows by run; runs lie one after the other, their steps rising."""
    found: dict[str, pa.Table] = {}
    for file, data in packed.files.items():
        if not file.startswith("metrics-"):
            continue
        try:
            together = pq.read_table(io.BytesIO(data))
            ends = pc.run_end_encode(together["run"].combine_chunks())
            start = 0
            for name, end in zip(ends.values.to_pylist(), ends.run_ends.to_pylist(), strict=True):
                if name in found:
                    raise ValueError(f"the rows of {name} are not together")
                found[name] = together.slice(start, end - start).drop_columns("run")
                start = end
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            raise bundle_error(packed.place, f"{file}: {error}") from error
    return found


def _record(line: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> RunRecord:
    run = line["run"]
    spec = from_canonical(run["spec"])
    key, kind = run_key(spec), kind_of(spec)
    if run["key"] != key or run["kind"] != kind:
        raise ValueError(f"run key {str(run['key'])[:16]} does not fit its specification")
    name = paths.run_name(kind, key)
    table = None
    if line["columns"] is not None:
        table = tables[name].select(line["columns"])
        if not _are_rows(table) or (steps := table["step"].to_pylist()) != sorted(steps):
            raise ValueError(f"the rows of {name} are not rows of a run")
    record = RunRecord(
        name=name, key=key, kind=kind, spec=canonical(spec), label=str(run["label"]),
        request=line["request"], result=line["result"], snapshots=dict(line["snapshots"]),
        table=table, weights=_weights(line), state=_state(line),
    )  # fmt: skip
    faults = [snapshot_fault(record.key, *one) for one in record.snapshots.items()]
    for fault in (_result_fault(record), _request_fault(record), *faults):
        if fault is not None:
            raise ValueError(f"{name}: {fault}")
    return record


def _result_fault(record: RunRecord) -> str | None:
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
    if not sound or not _are_numbers([result.get("wall_time_s") or 0, *result.get("missing", [])]):
        return "its result is none of a run's"
    if record.kind not in ARTEFACTS and not (record.table is not None and len(record.table)):
        return "it has a result and no rows"
    return None


def _request_fault(record: RunRecord) -> str | None:
    request = record.request
    if request is None:
        return None
    whole = (request["horizon"], request["validate_every"])
    lists = (*request["evaluate_at"], *request["presets"])
    sound = all(isinstance(value, int) for value in whole) and _are_numbers(lists)
    return None if sound else "its request is not a request"


def _are_presets(presets: Mapping[str, Any]) -> bool:
    try:
        return all(math.isfinite(float(preset)) for preset in presets)
    except ValueError:
        return False


def _are_numbers(values: Iterable[object]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _weights(line: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What they are is checked where they are read (bundleweights)."""
    return {
        preset: {
            "file": str(entry["file"]),
            "digest": str(entry["digest"]),
            "accuracy": float(entry["accuracy"]),
            "dtype": str(entry["dtype"]),
        }
        for preset, entry in line.get("weights", {}).items()
    }


def _state(line: Mapping[str, Any]) -> dict[str, Any] | None:
    state = line.get("state")
    if state is None:
        return None
    digest = state["teacher_digest"]
    if digest is not None and not SHA256.fullmatch(digest):
        raise ValueError("a checkpoint names no snapshot's digest")
    return {"file": str(state["file"]), "step": int(state["step"]), "teacher_digest": digest}


_UNIT = re.compile(r"[a-z]+-[0-9a-f]{16}")


def _plan_name(plan: Mapping[str, Any]) -> str:
    from dashboards.results import Plan  # takes pandas along, which few commands need

    if plan["semantics"] != SEMANTICS:
        raise ValueError(f"a plan of semantics {plan['semantics']}")
    for name in plan.get("include", ()):
        paths.safe_name(name)
    if not isinstance(plan["settings"], dict) or not isinstance(plan["fields"], list):
        raise ValueError("its settings or fields are none")
    for point in plan["points"]:
        if point["run"] is not None and not _UNIT.fullmatch(point["run"]):
            raise ValueError(f"{point['run']!r} cannot be a run")
        if not isinstance(point["horizon"], int) or not isinstance(point["settings"], dict):
            raise ValueError(f"a point of {point['run']} is none")
    try:
        Plan.model_validate(plan)  # as reports read it
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']} (a plan of another version?)") from error
    return paths.safe_name(plan["sweep"])
