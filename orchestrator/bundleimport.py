"""`targetsweep store import`: bundles into a store, so that many machines make one table.

First everything is verified, of all bundles: a damaged one changes nothing. Then, under the store's
lease, each run is written in the order in which a worker writes it (its result last), so that an
import that is killed is finished by importing again.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow.parquet as pq

from dashboards.seals import seal_parquet
from orchestrator import clock, paths
from orchestrator.bundle import unpack
from orchestrator.bundlefile import Packed, bundle_error, read_pack
from orchestrator.bundlemerge import Merged, merge, merge_plans
from orchestrator.bundlesnapshots import forms
from orchestrator.bundleweights import decoded, state_fault, weights_fault
from orchestrator.damage import refuse_unsealed
from orchestrator.errors import DamagedFileError
from orchestrator.lease import Lease
from orchestrator.runrecord import RunRecord, read_record
from orchestrator.store import Store

__all__ = ["Imported", "import_bundles"]

_UNKNOWN = {"hardware": "not recorded"}
"""Of a run that is not complete: results say it."""

_THREADS = 16
"""Each file waits for the disk twice."""


@dataclass
class Imported:
    """What one bundle brought. manifest: what it says of itself. runs: counts by new, grown, same,
    conflict. conflicts: a line each. notes: what else a person should know."""

    place: str
    digest: str
    manifest: Mapping[str, Any] = field(repr=False)
    runs: Counter[str] = field(default_factory=Counter)
    conflicts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def import_bundles(store: Store, places: Sequence[str]) -> list[Imported]:
    """Raises UserError before anything is written where a bundle is damaged or foreign or the store
    is driven. Conflicts are no error here: they are in what is returned, and nothing of theirs is
    written."""
    refuse_unsealed(store)
    bundles = [read_pack(place) for place in places]
    contents = [unpack(packed) for packed in bundles]
    for packed, (records, _) in zip(bundles, contents, strict=True):
        _check_large(packed, records)
    with Lease(store, "targetsweep store import"):
        return [
            _import(store, packed, *content)
            for packed, content in zip(bundles, contents, strict=True)
        ]


def _check_large(packed: Packed, records: Sequence[RunRecord]) -> None:
    """UserError unless weights and checkpoints are those that the records speak of."""

    def read(name: str) -> bytes:
        if name not in packed.large:
            raise bundle_error(packed.place, f"it has no {name}")
        return packed.read(name)

    for record in records:
        faults = [weights_fault(record, preset, read) for preset in record.weights]
        faults += [state_fault(record, read)] if record.state else []
        for fault in filter(None, faults):
            raise bundle_error(packed.place, f"{record.name}: {fault}")


def _import(
    store: Store, packed: Packed, records: Sequence[RunRecord], plans: dict[str, dict[str, Any]]
) -> Imported:
    done = Imported(packed.place, packed.digest, packed.manifest)
    there = set(store.list(paths.runs_dir()))
    kin = _kin(store, records)

    def one(record: RunRecord) -> Merged:
        damaged: list[DamagedFileError] = []
        ours = read_record(store, record.name, damaged) if record.name in there else None
        if ours is None and record.name in there:
            # What run.json says follows from the run's key; with it the other files are read.
            done.notes += [_set_aside(store, error) for error in damaged]
            store.write_json(paths.run_json(record.name), record.run_json)
            ours = read_record(store, record.name, damaged := [])
        merged = merge(ours, record, kin)
        if merged.action in ("new", "grown"):
            done.notes += [_set_aside(store, error) for error in damaged]
            _write(store, ours, merged, record, packed)
        return merged

    teachers = [record for record in records if record.kind == "teacher"]
    others = [record for record in records if record.kind != "teacher"]
    with ThreadPoolExecutor(_THREADS) as pool:
        _count(done, teachers, pool.map(one, teachers))
        fitting = _that_go_on(store, others, done)  # once it is known what teachers there are
        _count(done, fitting, pool.map(one, fitting))
    done.notes += _other_teachers(store, records)
    for name, theirs in sorted(plans.items()):
        done.notes += _import_plan(store, name, theirs)
    return done


def _set_aside(store: Store, error: DamagedFileError) -> str:
    """Before anything takes its place."""
    kept = store.set_aside(error.rel, error.reason)
    return f"damaged: {error.rel} ({error.reason}), set aside as {kept}"


def _count(done: Imported, records: Sequence[RunRecord], found: Iterable[Merged]) -> None:
    for record, merged in zip(records, found, strict=True):
        done.runs[merged.action] += 1
        if merged.reason:
            done.conflicts.append(f"{record.name} ({record.label}): {merged.reason}")


def _that_go_on(store: Store, records: Sequence[RunRecord], done: Imported) -> list[RunRecord]:
    """Without checkpoints of students that would go on here with another teacher than they began
    with, or with one that is yet to be trained: no row would say so. Of a student that is not
    complete nothing is left then."""
    kept, count = [], 0
    for record in records:
        if record.state is not None and not _same_teacher(store, record):
            count += 1
            if record.result is None:
                continue
            record = replace(record, state=None)
        kept.append(record)
    if count:
        done.notes.append(
            f"{count} checkpoints were left out: this store does not have the snapshots that their "
            "students learnt from (store export --teachers brings them), or has other weights"
        )
    return kept


def _same_teacher(store: Store, record: RunRecord) -> bool:
    assert record.state is not None
    teacher = record.spec.get("teacher")
    if not teacher:
        return True
    name = paths.run_name("teacher", teacher["key"])
    preset = float(teacher["accuracy"])
    snapshot = store.read_json(paths.snapshot_json(name, preset)) or {}
    is_same = snapshot.get("digest") == record.state["teacher_digest"]
    return is_same and store.exists(paths.snapshot_weights(name, preset))


def _kin(store: Store, records: Sequence[RunRecord]) -> dict[str, str]:
    """The original's digest by each form's, of the bundle's teachers as either side knows them."""
    kin: dict[str, str] = {}
    for record in records:
        if record.kind != "teacher":
            continue
        ours = read_record(store, record.name)
        for one in (record, *([ours] if ours else [])):
            for preset, snapshot in one.snapshots.items():
                arriving = one.weights.get(preset, {}).get("digest")
                known = {*forms(snapshot), *([arriving] if arriving else [])}
                kin |= {digest: snapshot.get("of", snapshot["digest"]) for digest in known}
    return kin


def _write(
    store: Store, ours: RunRecord | None, merged: Merged, theirs: RunRecord, packed: Packed
) -> None:
    record = merged.record
    name = record.name
    if ours is None:
        store.write_json(paths.run_json(name), record.run_json)
    if record.request is not None:
        store.write_json(paths.request_json(name), dict(record.request))
    if record.table is not None:
        if ours is not None and ours.table is None:
            _drop_what_rests_on_rows(store, name)
        buffer = io.BytesIO()
        pq.write_table(record.table.replace_schema_metadata(), buffer, compression="zstd")
        store.write_bytes(paths.metrics(name), seal_parquet(buffer.getvalue()))
    _write_snapshots(store, ours, record, packed)
    if record.state is not None and "file" in record.state:
        rel = paths.checkpoint(name, paths.step_name(int(record.state["step"])))
        store.write_bytes(rel, packed.read(record.state["file"]))
    _remember(store, merged, theirs, packed)
    if record.result is not None:
        store.write_json(paths.result(name), dict(record.result))
        store.delete(paths.failure(name))


def _drop_what_rests_on_rows(store: Store, name: str) -> None:
    """Where those are gone, before others come: a result, which says that they are there, and
    states, which no row would lead to. A file without a row is there: none is gone."""
    if store.exists(paths.metrics(name)):
        return
    if store.exists(paths.result(name)):
        store.set_aside(paths.result(name), "its rows are damaged or gone")
    store.delete_tree(paths.checkpoint_dir(name))


def _write_snapshots(
    store: Store, ours: RunRecord | None, record: RunRecord, packed: Packed
) -> None:
    """A record that is to speak of other weights goes first: at no moment do the two not fit."""
    for preset, content in record.snapshots.items():
        rel = paths.snapshot_json(record.name, float(preset))
        before = ours.snapshots.get(preset) if ours else None
        arriving = record.weights.get(preset, {})
        if "file" in arriving:
            if before is not None and before != content:
                store.delete(rel)
            data = decoded(packed.read(arriving["file"]), arriving["dtype"])
            store.write_bytes(paths.snapshot_weights(record.name, float(preset)), data)
        if before != content:
            store.write_json(rel, dict(content))


def _remember(store: Store, merged: Merged, theirs: RunRecord, packed: Packed) -> None:
    """imported.json: which bundles brought parts of the run, and on what those were trained;
    result.json tells only the last attempt's machine, which may later be this one."""
    rel = paths.imported_json(theirs.name)
    try:
        before = (store.read_json(rel) or {}).get("bundles", [])
    except DamagedFileError as error:
        _set_aside(store, error)
        before = []
    entry = {
        "bundle": packed.digest,
        "created": packed.manifest.get("created"),
        "imported": clock.now_utc().isoformat(timespec="seconds"),
        "brought": merged.action,
        "horizon": (theirs.result or {}).get("horizon"),
        "environment": dict(theirs.environment) or _UNKNOWN,
    }
    others = [one for one in before if one.get("bundle") != packed.digest]
    store.write_json(rel, {"bundles": [*others, entry]})


def _other_teachers(store: Store, records: Sequence[RunRecord]) -> list[str]:
    """Students of the bundle that learnt from other weights than the store's snapshot now is."""
    snapshots: dict[str, Mapping[str, Any]] = {}
    strangers, others = 0, 0
    for record in records:
        teacher = record.spec.get("teacher")
        digest = (record.result or {}).get("teacher_digest")
        if record.kind != "student" or not teacher or digest is None:
            continue
        name = paths.run_name("teacher", teacher["key"])
        rel = paths.snapshot_json(name, float(teacher["accuracy"]))
        if rel not in snapshots:
            snapshots[rel] = store.read_json(rel) or {}
        if snapshots[rel].get("digest") not in (None, digest):
            is_kin = digest in forms(snapshots[rel])
            strangers, others = strangers + (not is_kin), others + is_kin
    notes = []
    if strangers:
        notes.append(
            f"{strangers} students learnt from snapshots that differ from this store's of the same "
            "name (trained on other hardware); their results name the digest"
        )
    if others:
        notes.append(
            f"{others} students learnt from the other form (original or 16-bit copy) of snapshots "
            "of this store; their results name the digest, and tables over both say so"
        )
    return notes


def _import_plan(store: Store, name: str, theirs: dict[str, Any]) -> list[str]:
    """Writes the sweep's plan with the points of both; a note where that cannot be."""
    ours = store.read_json(paths.plan_json(name))
    merged = merge_plans(ours, theirs)
    if merged is None:
        return [
            f"sweep {name} is planned otherwise in this store, whose plan stays; a run of the "
            "sweep file writes it anew, and finds the runs that were imported"
        ]
    if merged != ours:
        store.write_json(paths.plan_json(name), dict(merged), in_order=True)  # as `run` writes it
    return []
