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
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from orchestrator import paths
from orchestrator.bundlefile import Packed, bundle_error, parse_json
from orchestrator.bundlesnapshots import SHA256, snapshot_fault
from orchestrator.errors import StoreError
from orchestrator.identity import canonical, from_canonical, kind_of, run_key
from orchestrator.runrecord import RunRecord, are_numbers, are_rows, result_fault
from trainers.spec import SEMANTICS

__all__ = ["machine_name", "pack", "portable", "unpack"]

_RUNS, _PLANS = "runs.jsonl", "plans.jsonl"
_HOST = re.compile(r"host-[0-9a-f]{12}")


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
        if not are_rows(table) or (steps := table["step"].to_pylist()) != sorted(steps):
            raise ValueError(f"the rows of {name} are not rows of a run")
    record = RunRecord(
        name=name, key=key, kind=kind, spec=canonical(spec), label=str(run["label"]),
        request=line["request"], result=line["result"], snapshots=dict(line["snapshots"]),
        table=table, weights=_weights(line), state=_state(line),
    )  # fmt: skip
    faults = [snapshot_fault(record.key, *one) for one in record.snapshots.items()]
    for fault in (result_fault(record), _request_fault(record), *faults):
        if fault is not None:
            raise ValueError(f"{name}: {fault}")
    return record


def _request_fault(record: RunRecord) -> str | None:
    request = record.request
    if request is None:
        return None
    whole = (request["horizon"], request["validate_every"])
    lists = (*request["evaluate_at"], *request["presets"])
    sound = all(isinstance(value, int) for value in whole) and are_numbers(lists)
    return None if sound else "its request is not a request"


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
