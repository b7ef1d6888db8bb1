"""Where a report's numbers come from: runs, times, machines, versions. Nothing for a table."""

from __future__ import annotations

import json
import platform
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dashboards.groups import Loaded
from dashboards.raw import teacher_records
from dashboards.results import RunRecord
from dashboards.sources import Source, source_records
from dashboards.tracking_ids import RunIds

__all__ = ["Sources", "environments", "provenance"]

Sources = Mapping[str, Mapping[str, Sequence[Source]]]
"""What stands behind each number, by sweep (or the group, for its claims) and item."""

_PACKAGES = ("targetsweep", "numpy", "pandas", "scipy", "pyarrow", "statsmodels", "seaborn")


def provenance(
    loaded: Loaded,
    store: str,
    files: list[str],
    sources: Sources,
    ids: RunIds,
    scoring: list[dict[str, Any]],
) -> str:
    """Content of provenance.json. files: paths of the report relative to its folder; the next
    report removes those of them that it no longer writes. scoring: `scoring.scoring_costs`. The
    cells, one a line, come last."""
    results = loaded.results
    names = {name for own in loaded.sweeps.values() for name in own.plan.run_names}
    rows = results.evaluations
    about = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "store": store,
        "sweep": loaded.plan.sweep,
        "include": list(loaded.plan.include),
        "never_planned": list(loaded.absent),
        "restriction": results.restriction or None,
        "semantics": loaded.plan.semantics,
        "reported_on": {"host": platform.node(), "platform": platform.platform()},
        "versions": {"python": platform.python_version()} | _versions(),
        "runs": dict(sorted(Counter(results.runs[name].state for name in names).items())),
        "evaluations": {
            "rows": len(rows),
            "replayed": int(rows["replayed"].eq(True).sum()),
            "first": _when(rows["timestamp_ms"].min()),
            "last": _when(rows["timestamp_ms"].max()),
        },
        "environments": environments(list(results.runs.values())),
        "teachers": teacher_records(results),
        "scoring": scoring,
        "problems": list(loaded.problems),
        "files": files,
    }
    head = json.dumps(about, indent=2, allow_nan=False)
    return f'{head[:-2]},\n  "cells": {_cells(sources, ids)}\n}}\n'


def _cells(sources: Sources, ids: RunIds) -> str:
    lines = [
        json.dumps({"sweep": sweep, "item": item} | record, separators=(",", ":"), allow_nan=False)
        for sweep, items in sources.items()
        for item, found in items.items()
        for record in source_records(found, ids.get(sweep, {}))
    ]
    return "[\n    " + ",\n    ".join(lines) + "\n  ]" if lines else "[]"


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a source tree that was never installed
            found[package] = None
    return found


def _when(timestamp_ms: float) -> str | None:
    """UTC time of a stored time stamp; None for NaN."""
    if timestamp_ms != timestamp_ms:
        return None
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC).isoformat(timespec="seconds")


def environments(records: list[RunRecord]) -> list[dict[str, Any]]:
    """Distinct (kind of run, environment) with number of runs and wall time in seconds."""
    walls: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record.result:
            kind = record.name.partition("-")[0]
            about = {"kind": kind, "environment": record.result.get("environment") or {}}
            key = json.dumps(about, sort_keys=True)
            walls[key].append(float(record.result.get("wall_time_s") or 0))
    return [
        json.loads(key)
        | {"runs": len(times), "wall_time_s": sum(times), "longest_run_s": max(times)}
        for key, times in sorted(walls.items())
    ]
