"""`targetsweep store export`: what a store measured, without weights, as a bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pyarrow.compute as pc

from orchestrator import clock, paths
from orchestrator.bundle import RunRecord, pack, portable, read_record
from orchestrator.bundlefile import write_pack
from orchestrator.damage import refuse_unsealed
from orchestrator.errors import UserError, nearest
from orchestrator.identity import canonical_json
from orchestrator.store import Store

__all__ = ["Exported", "export_bundle"]

_THREADS = 16
_PACKAGES = ("targetsweep", "torch", "numpy", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """digest: of the bundle. runs: in it, by kind. left_out: runs of its plans that are not
    complete (no fault), damaged: those that cannot be read, by name."""

    digest: str
    sweeps: tuple[str, ...]
    runs: Mapping[str, int]
    left_out: int
    damaged: tuple[str, ...]


def export_bundle(store: Store, out: str, sweeps: Sequence[str] = ()) -> Exported:
    """Writes the complete runs of the sweeps (none: of all) to `out`, a folder or a .zip file, with
    the teachers and soft targets behind them. Reads only: a driver may be at work."""
    plans = _plans(store, sweeps)
    records, absent, damaged = _records(store, plans)
    if not any(record.result for record in records):
        raise UserError(
            f"{store.uri} has no complete run of {', '.join(plans)}", "run the sweep first"
        )
    runs = dict(sorted(Counter(record.kind for record in records).items()))
    asked = [part for name in sweeps for part in ("--sweep", name)]
    about = {
        "created": clock.now_utc().isoformat(timespec="seconds"),
        "command": " ".join(["targetsweep store export", *asked]),
        "sweeps": sorted(plans),
        "runs": runs,
        "hardware": _hardware(records),
        "software": {name: _version(name) for name in _PACKAGES},
    }
    digest = write_pack(out, pack(records, plans), about)
    return Exported(
        digest=digest, sweeps=tuple(sorted(plans)), runs=runs, left_out=absent, damaged=damaged
    )


def _plans(store: Store, asked: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Plans by sweep; a group brings the sweeps it stands for."""
    refuse_unsealed(store)
    there = [name for name in store.list(paths.sweeps_dir()) if store.exists(paths.plan_json(name))]
    if not there:
        raise UserError(f"{store.uri} holds no sweep", "give --store, or run a sweep file first")
    waiting = list(asked or there)
    plans: dict[str, dict[str, Any]] = {}
    while waiting:
        name = waiting.pop()
        if name in plans:
            continue
        if name not in there:
            remedy = f"nearest: {nearest(name, there) or ', '.join(there)}"
            raise UserError(f"the store has no sweep {name!r}", remedy)
        plans[name] = store.read_json(paths.plan_json(name)) or {}
        waiting += [member for member in plans[name].get("include", []) if member in there]
    return plans


# -- runs ---------------------------------------------------------------------------------------


def _records(
    store: Store, plans: Mapping[str, Mapping[str, Any]]
) -> tuple[list[RunRecord], int, tuple[str, ...]]:
    """What goes in, how many are not complete, and which are damaged. Runs name what they came
    from (a probe its student, a student its teacher), so the search goes on until all is found."""
    there = set(store.list(paths.runs_dir()))
    waiting = set(_planned(plans.values()))
    left_out, damaged, seen = 0, [], set()
    found: dict[str, RunRecord] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        while waiting:
            seen |= waiting
            names = sorted(waiting & there)
            left_out += len(waiting) - len(names)
            waiting = set()
            for name, record in zip(
                names, pool.map(lambda n: read_record(store, n), names), strict=True
            ):
                if record is None or (record.result is None and store.exists(paths.result(name))):
                    damaged.append(name)
                elif record.result is None and not record.snapshots:
                    left_out += 1
                else:
                    found[name] = portable(_settled(record))
                    waiting |= set(_ancestors(record.spec)) - seen
            if not waiting:
                waiting = _targets_of(there, found) - seen
    return list(found.values()), left_out, tuple(sorted(damaged))


def _planned(plans: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for plan in plans:
        for point in plan["points"]:
            if point["run"] is not None:
                yield point["run"]


def _ancestors(spec: Mapping[str, Any]) -> Iterator[str]:
    """Runs that a specification names by key."""
    for kind in ("teacher", "student"):
        if kind in spec:
            yield paths.run_name(kind, spec[kind]["key"])


def _targets_of(there: Iterable[str], found: Mapping[str, RunRecord]) -> set[str]:
    """Soft targets lie between a teacher and its students, who do not name them."""
    if not any(record.kind == "teacher" for record in found.values()):
        return set()
    return {name for name in there if name.startswith("targets-")}


def _settled(record: RunRecord) -> RunRecord:
    """Without rows beyond the result of a run that is being extended now."""
    if record.kind == "teacher" or record.result is None or record.table is None:
        return record
    return replace(
        record,
        table=record.table.filter(pc.less_equal(record.table["step"], record.result["horizon"])),
    )


# -- about it -----------------------------------------------------------------------------------


def _hardware(records: Iterable[RunRecord]) -> list[dict[str, Any]]:
    """Distinct environments, with runs and seconds of wall time."""
    walls: dict[str, list[float]] = {}
    environments: dict[str, dict[str, Any]] = {}
    for record in records:
        if record.environment and record.result:
            text = canonical_json(record.environment)
            environments[text] = dict(record.environment)
            walls.setdefault(text, []).append(float(record.result.get("wall_time_s") or 0.0))
    return [
        environments[text] | {"runs": len(walls[text]), "wall_time_s": round(sum(walls[text]), 3)}
        for text in sorted(walls)
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # a source tree that was never installed
        return None
