"""What was projected where: `sweeps/<name>/tracking.json`, so that nothing is projected twice.

    {"<tracking URI without password>": {"parent": MLflow run id, "runs": digest,
                                         "aggregates": digest, "report": digest,
                                         "ids": {"student-<key16>": MLflow run id}}}

A hint, never a truth: without it a projection only takes longer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from typing import Any
from urllib.parse import quote

from orchestrator import paths
from orchestrator.errors import StoreError
from orchestrator.store import Store
from orchestrator.tracking_client import redacted

__all__ = ["Record"]


class Record:
    def __init__(self, store: Store, uri: str) -> None:
        self._store = store
        self._uri = uri

    def read(self, sweep: str, what: str) -> str | None:
        """The digest of what was last projected, None when it is unknown or no longer there."""
        entry = self._entry(sweep)
        if what not in entry or not _is_there(self._uri, str(entry.get("parent"))):
            return None
        return str(entry[what])

    def write(
        self, sweep: str, what: str, digest: str, *, parent: str, ids: Mapping[str, str]
    ) -> None:
        """parent: the sweep's run. Another one means a new database, of which nothing is known.
        ids: of all runs by their names, for a report's provenance."""
        content = self._content(sweep)
        entry = self._entry(sweep)
        if entry.get("parent") != parent:
            entry = {"parent": parent}
        content[redacted(self._uri)] = {**entry, what: digest, "ids": dict(ids)}
        self._store.write_json(paths.tracking_json(sweep), content)

    def forget(self, sweep: str, what: str) -> None:
        entry = self._entry(sweep)
        if entry.pop(what, None) is not None:
            content = {**self._content(sweep), redacted(self._uri): entry}
            self._store.write_json(paths.tracking_json(sweep), content)

    def _entry(self, sweep: str) -> dict[str, Any]:
        entry = self._content(sweep).get(redacted(self._uri))
        return entry if isinstance(entry, dict) else {}

    def _content(self, sweep: str) -> dict[str, Any]:
        try:
            return self._store.read_json(paths.tracking_json(sweep)) or {}
        except StoreError:
            return {}


def _is_there(uri: str, run_id: str) -> bool:
    """Whether an SQLite database still has the run (it may have been deleted or replaced). Costs
    1 ms and no import of MLflow; a server is believed, `targetsweep sync --force` asks it."""
    if not uri.startswith("sqlite:///"):
        return True
    path = quote(uri.removeprefix("sqlite:///"))
    query = "SELECT 1 FROM runs WHERE run_uuid = ? AND lifecycle_stage = 'active'"
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return database.execute(query, (run_id,)).fetchone() is not None
    except sqlite3.Error:
        return False
