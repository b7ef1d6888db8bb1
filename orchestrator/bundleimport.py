"""`targetsweep store import`: bundles into a store, so that many machines make one table.

First everything is verified, of all bundles: a damaged one changes nothing. Then, under the store's
lease, each run is written in the order in which a worker writes it (its result last), so that an
import that is killed is finished by importing again.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from dashboards.seals import seal_parquet
from orchestrator import clock, paths
from orchestrator.bundle import RunRecord, read_record, unpack
from orchestrator.bundlefile import Packed, read_pack
from orchestrator.bundlemerge import Merged, merge, merge_plans
from orchestrator.damage import refuse_unsealed
from orchestrator.lease import Lease
from orchestrator.store import Store

__all__ = ["Imported", "import_bundles"]

_THREADS = 16
"""Each file waits for the disk twice."""


@dataclass
class Imported:
    """What one bundle brought. runs: counts by new, grown, same, conflict. conflicts: a line each.
    notes: what else a person should know."""

    place: str
    digest: str
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
    with Lease(store, "targetsweep store import"):
        return [
            _import(store, packed, *content)
            for packed, content in zip(bundles, contents, strict=True)
        ]


def _import(
    store: Store, packed: Packed, records: Sequence[RunRecord], plans: dict[str, dict[str, Any]]
) -> Imported:
    done = Imported(packed.place, packed.digest)
    there = set(store.list(paths.runs_dir()))

    def one(record: RunRecord) -> Merged:
        ours = read_record(store, record.name) if record.name in there else None
        merged = merge(ours, record)
        if merged.action in ("new", "grown"):
            _write(store, ours, merged, record, packed)
        return merged

    with ThreadPoolExecutor(_THREADS) as pool:
        for record, merged in zip(records, pool.map(one, records), strict=True):
            done.runs[merged.action] += 1
            if merged.reason:
                done.conflicts.append(f"{record.name} ({record.label}): {merged.reason}")
    done.notes += _other_teachers(store, records)
    for name, theirs in sorted(plans.items()):
        done.notes += _import_plan(store, name, theirs)
    return done


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
        buffer = io.BytesIO()
        pq.write_table(record.table.replace_schema_metadata(), buffer, compression="zstd")
        store.write_bytes(paths.metrics(name), seal_parquet(buffer.getvalue()))
    for preset, content in record.snapshots.items():
        if ours is None or preset not in ours.snapshots:
            store.write_json(paths.snapshot_json(name, float(preset)), dict(content))
    _remember(store, merged, theirs, packed)
    if record.result is not None:
        store.write_json(paths.result(name), dict(record.result))
        store.delete(paths.failure(name))


def _remember(store: Store, merged: Merged, theirs: RunRecord, packed: Packed) -> None:
    """imported.json: which bundles brought parts of the run, and on what those were trained;
    result.json tells only the last attempt's machine, which may later be this one."""
    rel = paths.imported_json(theirs.name)
    before = (store.read_json(rel) or {}).get("bundles", [])
    entry = {
        "bundle": packed.digest,
        "created": packed.manifest.get("created"),
        "imported": clock.now_utc().isoformat(timespec="seconds"),
        "brought": merged.action,
        "horizon": (theirs.result or {}).get("horizon"),
        "environment": dict(theirs.environment),
    }
    others = [one for one in before if one.get("bundle") != packed.digest]
    store.write_json(rel, {"bundles": [*others, entry]})


def _other_teachers(store: Store, records: Sequence[RunRecord]) -> list[str]:
    """Students of the bundle that learnt from other weights than the store's snapshot now is."""
    digests: dict[str, Any] = {}
    strangers = 0
    for record in records:
        teacher = record.spec.get("teacher")
        digest = (record.result or {}).get("teacher_digest")
        if record.kind != "student" or not teacher or digest is None:
            continue
        name = paths.run_name("teacher", teacher["key"])
        rel = paths.snapshot_json(name, float(teacher["accuracy"]))
        if rel not in digests:
            digests[rel] = (store.read_json(rel) or {}).get("digest")
        strangers += digests[rel] not in (None, digest)
    if not strangers:
        return []
    return [
        f"{strangers} students learnt from snapshots that differ from this store's of the same "
        "name (trained on other hardware); their results name the digest"
    ]


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
