"""Stores with a finished sweep of seconds, and bundles cut and bent for tests."""

from __future__ import annotations

import atexit
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pyarrow as pa

from dashboards.report import write_report
from orchestrator import paths
from orchestrator.bundle import pack, unpack
from orchestrator.bundleexport import export_bundle
from orchestrator.bundlefile import read_pack, write_pack
from orchestrator.bundleimport import Imported, import_bundles
from orchestrator.overrides import limit_sweeps, parse_limit
from orchestrator.plan import make_plan
from orchestrator.plandocument import plan_document
from orchestrator.runrecord import RunRecord
from orchestrator.spec import load_sweeps
from orchestrator.store import Store
from tests.driving import TINY, digits_store, drive_here, tiny_plan
from tests.sweep_files import write
from trainers.data.catalogue import OFFICIAL

REPORT = """\
report:
  - table: strategies
    rows: [step, strategy]
    columns: [teacher.accuracy]
    steps: [10, 20]
"""
GRIDS = """\
grids:
  - axes: {strategy: [A, B, C], teacher.accuracy: [20], seed: [0, 1]}
"""
SWEEP = TINY + GRIDS + REPORT
NAME = "tiny"


@cache
def reference() -> Store:
    """A finished store that all tests of a process share, and none changes."""
    folder = Path(mkdtemp(prefix="targetsweep-test-"))
    atexit.register(shutil.rmtree, folder)
    return finished_store(folder)


@cache
def reference_bundle() -> str:
    """Everything of it."""
    out = reference().root.parent / "bundle"
    export_bundle(reference(), str(out))
    return str(out)


def bring(store: Store, *bundles: str) -> Imported:
    """The last of what was imported."""
    return import_bundles(store, bundles)[-1]


def names(store: Store, kind: str) -> list[str]:
    return [name for name in store.list(paths.runs_dir()) if name.startswith(kind)]


def finished_store(folder: Path) -> Store:
    """A teacher, soft targets and six students, trained; with its plan."""
    folder.mkdir(parents=True, exist_ok=True)
    store = digits_store(folder / "store")
    drive_here(tiny_plan(folder, text=SWEEP), store)
    write_plan(folder, store)
    return store


def write_plan(folder: Path, store: Store, *limits: str) -> None:
    """plan.json as `run` writes it, of the points within limits."""
    (sweep,) = load_sweeps([write(folder, SWEEP)], OFFICIAL)
    (sweep,) = limit_sweeps([sweep], parse_limit(limits)) if limits else [sweep]
    document = plan_document(sweep, make_plan([sweep], OFFICIAL))
    store.write_json(paths.plan_json(NAME), document, in_order=True)


def part_of(store: Store, folder: Path, *limits: str) -> str:
    """A bundle of some points of a finished store."""
    folder.mkdir(parents=True)
    copied = copy_of(store, folder / "store")
    write_plan(folder, copied, *limits)
    export_bundle(copied, str(folder / "bundle"))
    return str(folder / "bundle")


def copy_of(store: Store, folder: Path) -> Store:
    shutil.copytree(store.root, folder)
    return Store(folder)


def bent(bundle: str, out: Path, bend: Callable[[RunRecord], RunRecord | None]) -> str:
    """A bundle with other records and right checksums. bend: None leaves a record out."""
    packed = read_pack(bundle)
    records, plans = unpack(packed)
    kept = [record for record in map(bend, records) if record is not None]
    about = {k: v for k, v in packed.manifest.items() if k not in ("files", "format", "semantics")}
    write_pack(str(out), pack(kept, plans), about)
    return str(out)


def shortened(record: RunRecord, horizon: int) -> RunRecord:
    """A student as it was when it had been asked for less."""
    if record.kind != "student":
        return record
    assert record.table is not None
    rows = [row for row in record.table.to_pylist() if row["step"] <= horizon]
    return replace(
        record,
        table=pa.Table.from_pylist(rows, schema=record.table.schema),
        request={**(record.request or {}), "horizon": horizon},
        result={**(record.result or {}), "horizon": horizon, "step": horizon},
    )


def with_cell(record: RunRecord, column: str, value: Any, row: int = 0) -> RunRecord:
    """One number of its rows replaced."""
    assert record.table is not None
    rows = record.table.to_pylist()
    rows[row][column] = value
    return replace(record, table=pa.Table.from_pylist(rows, schema=record.table.schema))


def rewrite_line(bundle: str, file: str, change: Callable[[Any], None], number: int = 0) -> None:
    """Changes one line of a bundle's JSON, checksums being made right again."""
    packed = read_pack(bundle)
    lines = packed.files[file].splitlines()
    content = json.loads(lines[number])
    change(content)
    lines[number] = json.dumps(content).encode()
    files = {**packed.files, file: b"\n".join(lines) + b"\n"}
    about = {k: v for k, v in packed.manifest.items() if k not in ("files", "format", "semantics")}
    write_pack(bundle, files, about)


def tables(store: Store) -> dict[str, bytes]:
    report = write_report(store.uri, NAME)
    folder = Path(report.index).parent / "tables"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def tree(store: Store) -> Mapping[str, bytes]:
    """Every file of a store but the lease's lock."""
    if not store.root.exists():
        return {}
    return {
        path.relative_to(store.root).as_posix(): path.read_bytes()
        for path in sorted(store.root.rglob("*"))
        if path.is_file() and path.name != ".lease.lock"
    }
