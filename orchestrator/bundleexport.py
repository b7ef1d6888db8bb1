"""`targetsweep store export`: what a store measured as a bundle; with weights where asked."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from orchestrator import clock, paths
from orchestrator.bundle import pack, portable
from orchestrator.bundlefile import write_pack
from orchestrator.bundleweights import Carried, Limits, StateGoneError, carry
from orchestrator.damage import refuse_unsealed
from orchestrator.errors import DamagedFileError, UserError, nearest
from orchestrator.identity import canonical_json, from_canonical, run_key
from orchestrator.runrecord import RunRecord, read_record
from orchestrator.store import Store
from trainers.spec import StudentSpec, scores_spec

__all__ = ["Exported", "export_bundle"]

_THREADS = 16
_TRIES = 3
_NOTHING = Limits()
_PACKAGES = ("targetsweep", "torch", "numpy", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """digest: of the bundle. runs: in it, by kind. left_out: runs of its plans that are not
    complete (no fault), damaged: those, and plans, that cannot be read, by name. weights,
    checkpoints: how many went along; unfit: of those that were to, a line each for what did not."""

    digest: str
    sweeps: tuple[str, ...]
    runs: Mapping[str, int]
    left_out: int
    damaged: tuple[str, ...]
    weights: int = 0
    checkpoints: int = 0
    unfit: tuple[str, ...] = ()


def export_bundle(
    store: Store, out: str, sweeps: Sequence[str] = (), limits: Limits = _NOTHING, note: str = ""
) -> Exported:
    """Writes the complete runs of the sweeps (none: of all) to `out`, a folder or a .zip file, with
    the teachers and soft targets behind them. Reads only: a driver may be at work. limits: what
    else goes along: weights of the snapshots that students of the sweeps learn from, complete or
    not, and checkpoints, then of incomplete runs too. note: how the runs were made, for people."""
    plans, damaged = _plans(store, sweeps)
    learnt = _learnt_from(plans.values()) if limits.teacher_mb is not None else {}
    found = _Search(store, with_states=limits.checkpoint_mb is not None)
    found.look({*_planned(plans.values()), *learnt})
    for record in found.records:
        for name, preset in _teacher_of(record.spec):
            learnt.setdefault(name, set()).add(preset)
    with Carried(_beside(out)) as carried:
        taken = [
            _with_weights(store, record, frozenset(learnt.get(record.name, ())), limits, carried)
            for record in found.records
        ]
        records = [record for record in taken if record.result or record.snapshots or record.state]
        if not any(record.result or record.weights or record.state for record in records):
            raise UserError(
                f"{store.uri} has no complete run of {', '.join(plans)}", "run the sweep first"
            )
        runs = dict(sorted(Counter(record.kind for record in records).items()))
        about = {
            "created": clock.now_utc().isoformat(timespec="seconds"),
            "command": _command(sweeps, limits),
            "sweeps": sorted(plans),
            "runs": runs,
            "hardware": _hardware(records),
            "software": {name: _version(name) for name in _PACKAGES},
            **({"note": note} if note else {}),
        }
        digest = write_pack(out, {**pack(records, plans), **carried.files}, about)
    return Exported(
        digest=digest,
        sweeps=tuple(sorted(plans)),
        runs=runs,
        left_out=found.left_out + len(taken) - len(records),
        damaged=tuple(sorted([*damaged, *found.damaged])),
        weights=sum(len(record.weights) for record in records),
        checkpoints=sum(record.state is not None for record in records),
        unfit=tuple(carried.left_out),
    )


def _with_weights(
    store: Store, record: RunRecord, presets: frozenset[str], limits: Limits, carried: Carried
) -> RunRecord:
    """`carry`, of a run that may be at work: where it has saved a later state, as it is by then."""
    for _ in range(_TRIES):
        try:
            return carry(store, record, presets, limits, carried)
        except StateGoneError:
            later = read_record(store, record.name)
            record = _settled(later, with_state=True) if later is not None else record
    carried.left_out.append(f"checkpoint of {record.name}: replaced as often as it was read")
    return carry(store, replace(record, state=None), presets, limits, carried)


def _beside(out: str) -> Path | None:
    """A folder on the bundle's disk; None for a bucket, or where none may be written to."""
    place = Store(out)
    if not place.is_local:
        return None
    found = place.root.parent
    while not os.path.isdir(found):  # a Path's own raises where nobody may look
        found = found.parent
    return found if os.access(found, os.W_OK) else None


def _command(sweeps: Sequence[str], limits: Limits) -> str:
    parts = ["targetsweep store export", *(f"--sweep {name}" for name in sweeps)]
    if limits.teacher_mb is not None:
        parts.append(f"--teachers --max-teacher-mb {limits.teacher_mb:g}")
    if limits.checkpoint_mb is not None:
        parts.append(f"--checkpoints --max-checkpoint-mb {limits.checkpoint_mb:g}")
    return " ".join(parts)


def _plans(store: Store, asked: Sequence[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Plans by sweep; a group brings the sweeps it stands for. Those that are damaged, which nobody
    asked for by name, are named beside."""
    refuse_unsealed(store)
    there = [name for name in store.list(paths.sweeps_dir()) if store.exists(paths.plan_json(name))]
    if not there:
        raise UserError(f"{store.uri} holds no sweep", "give --store, or run a sweep file first")
    waiting = list(asked or there)
    plans: dict[str, dict[str, Any]] = {}
    damaged: list[str] = []
    while waiting:
        name = waiting.pop()
        if name in plans or name in damaged:
            continue
        if name not in there:
            remedy = f"nearest: {nearest(name, there) or ', '.join(there)}"
            raise UserError(f"the store has no sweep {name!r}", remedy)
        try:
            plans[name] = store.read_json(paths.plan_json(name)) or {}
        except DamagedFileError:
            if name in asked or len(damaged) + 1 == len(there):
                raise
            damaged.append(name)
            continue
        waiting += [member for member in plans[name].get("include", []) if member in there]
    return plans, damaged


# -- runs ---------------------------------------------------------------------------------------


class _Search:
    """What goes in. Runs name what they came from (a probe its student, a student its teacher), so
    it goes on until all is found. records: those found. left_out: how many are not complete, and
    have no checkpoint either where `with_states`. damaged: names."""

    def __init__(self, store: Store, *, with_states: bool) -> None:
        self.records: list[RunRecord] = []
        self.left_out = 0
        self.damaged: list[str] = []
        self._store = store
        self._with_states = with_states
        self._there = set(store.list(paths.runs_dir()))

    def look(self, names: set[str]) -> None:
        waiting, seen = set(names), set[str]()
        with ThreadPoolExecutor(_THREADS) as pool:
            while waiting:
                seen |= waiting
                here = sorted(waiting & self._there)
                self.left_out += len(waiting) - len(here)
                read = pool.map(lambda name: read_record(self._store, name), here)
                waiting = {
                    ancestor
                    for name, record in zip(here, read, strict=True)
                    if (taken := self._take(name, record)) is not None
                    for ancestor in _ancestors(taken.spec)
                } - seen
                if not waiting:
                    waiting = _targets_of(self._there, self.records) - seen

    def _take(self, name: str, record: RunRecord | None) -> RunRecord | None:
        if record is None or (record.result is None and self._store.exists(paths.result(name))):
            self.damaged.append(name)
            return None
        settled = _settled(record, with_state=self._with_states)
        if settled.result is None and not settled.snapshots:
            if not self._with_states or settled.state is None:
                self.left_out += 1
                return None
        self.records.append(settled)
        return settled


def _learnt_from(plans: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Presets, as in file names, by teacher, of every snapshot behind a point; probes' too."""
    found: dict[str, set[str]] = {}
    for plan in plans:
        for point in plan["points"]:
            teacher, _, preset = (point.get("snapshot") or "").partition("/acc-")
            if preset:
                found.setdefault(teacher, set()).add(preset)
    return found


def _planned(plans: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for plan in plans:
        for point in plan["points"]:
            if point["run"] is not None:
                yield point["run"]


def _ancestors(spec: Mapping[str, Any]) -> Iterator[str]:
    """Runs that a specification names by key."""
    for part in (spec, spec.get("scoring", {})):
        for kind in ("teacher", "student"):
            if kind in part:
                yield paths.run_name(kind, part[kind]["key"])
    if "selection" in spec:
        student = from_canonical(spec)
        assert isinstance(student, StudentSpec)
        assert student.selection is not None
        scores = scores_spec(student.dataset, student.selection.scoring)
        yield paths.run_name("scores", run_key(scores))


def _teacher_of(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The snapshot that a run names, by teacher and preset."""
    if teacher := spec.get("teacher"):
        preset = paths.preset_name(float(teacher["accuracy"]))
        yield paths.run_name("teacher", teacher["key"]), preset


def _targets_of(there: Iterable[str], found: Iterable[RunRecord]) -> set[str]:
    """Soft targets lie between a teacher and its students, who do not name them."""
    if not any(record.kind == "teacher" for record in found):
        return set()
    return {name for name in there if name.startswith("targets-")}


def _settled(record: RunRecord, *, with_state: bool) -> RunRecord:
    """Portable, and without rows beyond the result of a run that is being extended now, and beyond
    the state from which it goes on elsewhere; a state before every row is of no use."""
    if record.kind == "teacher" or record.table is None:
        return portable(record)
    state = int(record.state["step"]) if with_state and record.state is not None else 0
    last = max(int((record.result or {}).get("horizon", 0)), state)
    table = record.table.filter(pc.less_equal(record.table["step"], last))
    if not len(table):
        return portable(replace(record, table=None, state=None))
    return portable(replace(record, table=table))


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
