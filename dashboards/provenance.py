"""Where a report's numbers come from: times, machines, versions. None of it reaches a table."""

from __future__ import annotations

import json
import platform
from collections import Counter, defaultdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dashboards.raw import teacher_records
from dashboards.results import Results, RunRecord

__all__ = ["provenance"]

_PACKAGES = ("targetsweep", "numpy", "pandas", "scipy", "pyarrow", "statsmodels", "seaborn")


def provenance(results: Results, store: str, files: list[str]) -> dict[str, Any]:
    """Content of provenance.json. files: paths of the report relative to its folder; the next
    report removes those of them that it no longer writes."""
    planned = {point.run for point in results.plan.points}
    rows = results.evaluations
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "store": store,
        "sweep": results.plan.sweep,
        "semantics": results.plan.semantics,
        "reported_on": {"host": platform.node(), "platform": platform.platform()},
        "versions": {"python": platform.python_version()} | _versions(),
        "runs": dict(sorted(Counter(results.runs[name].state for name in planned).items())),
        "evaluations": {
            "rows": len(rows),
            "replayed": int(rows["replayed"].eq(True).sum()),
            "first": _when(rows["timestamp_ms"].min()),
            "last": _when(rows["timestamp_ms"].max()),
        },
        "environments": _environments(list(results.runs.values())),
        "teachers": teacher_records(results),
        "problems": list(results.problems),
        "files": files,
    }


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


def _environments(records: list[RunRecord]) -> list[dict[str, Any]]:
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
