"""Which MLflow run shows a run of the store, without importing MLflow.

The store's own database answers for the moment; `sweeps/<name>/tracking.json`, written when the
tracking server was last brought up to date, answers where the database is a server or gone.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pyarrow.fs as pafs

from dashboards.seals import unseal_json
from dashboards.store import Store

__all__ = ["RunIds", "tracking_ids"]

RunIds = dict[str, dict[str, str]]
"""MLflow run id by sweep (its experiment) and run name; a run that two sweeps share has two."""

_QUERY = """
SELECT experiments.name, kind.value, run_key.value, runs.run_uuid
FROM runs
JOIN experiments ON experiments.experiment_id = runs.experiment_id
JOIN tags AS run_key ON run_key.run_uuid = runs.run_uuid AND run_key.key = 'run_key'
JOIN tags AS kind ON kind.run_uuid = runs.run_uuid AND kind.key = 'targetsweep.kind'
WHERE runs.lifecycle_stage = 'active'
ORDER BY runs.start_time
"""
_BUSY_S = 2.0  # a driver may be writing


def tracking_ids(store: str, sweeps: Iterable[str]) -> RunIds:
    """Run ids of `sweeps`; what nobody knows is left out. Never fails: ids are a courtesy."""
    files = Store.open(store)
    of_database = _from_database(files)
    found: RunIds = {}
    for sweep in sweeps:
        found[sweep] = _from_record(files, sweep) | of_database.get(sweep, {})
    return found


def _from_database(files: Store) -> RunIds:
    path = Path(files.path("mlflow.db"))
    if not isinstance(files.filesystem, pafs.LocalFileSystem) or not path.is_file():
        return {}
    found: RunIds = {}
    try:
        address = f"file:{quote(str(path))}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=_BUSY_S)) as database:
            # of two copies of one run the older one counts: it is the one that tracking keeps
            for sweep, kind, key, run_id in database.execute(_QUERY):
                found.setdefault(sweep, {}).setdefault(f"{kind}-{key[:16]}", run_id)
    except sqlite3.Error:
        return found
    return found


def _from_record(files: Store, sweep: str) -> dict[str, str]:
    try:
        entries = unseal_json(json.loads(files.read(f"sweeps/{sweep}/tracking.json")))
        ids: dict[str, str] = {}
        for entry in entries.values():
            ids |= {str(name): str(run_id) for name, run_id in entry.get("ids", {}).items()}
    except (OSError, ValueError, AttributeError):
        return {}
    return ids
