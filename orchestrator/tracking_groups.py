"""Aggregates over seeds as MLflow runs, and digests that say whether anything changed. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

__all__ = [
    "Aggregate",
    "cell",
    "content_digest",
    "digest",
    "name",
    "params",
    "rows",
    "tree_digest",
    "varying",
]

_STATISTICS = ("mean", "std", "n", "ci_low", "ci_high")


class Aggregate(Protocol):
    """One cell group over its seeds (dashboards/aggregates.py). series: metric -> rows of (step,
    mean, std, n, ci_low, ci_high); a statistic that does not exist is None or NaN."""

    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def series(self) -> Mapping[str, Sequence[Sequence[Any]]]: ...


def cell(group: Aggregate) -> str:
    """Which group it is, whatever its numbers."""
    return digest(group.settings)[:16]


def content_digest(group: Aggregate) -> str:
    series = {metric: [list(row) for row in group.series[metric]] for metric in group.series}
    return digest([group.settings, series])


def varying(found: Iterable[Aggregate]) -> tuple[str, ...]:
    """Fields in which the groups differ, in their order: what a name must say. That a field does
    not apply to a group (a teacher under strategy A) is no difference of its own."""
    values: dict[str, set[str]] = {}
    for group in found:
        for key, value in group.settings.items():
            if value is not None:
                values.setdefault(key, set()).add(str(value))
    return tuple(key for key, seen in values.items() if len(seen) > 1)


def name(group: Aggregate, fields: Iterable[str]) -> str:
    """`mean B t60 ipc10 std`: the group's values of `fields`, where they apply."""
    values = ((key, group.settings.get(key)) for key in fields)
    parts = [_part(key, value) for key, value in values if value is not None]
    return " ".join(["mean", *parts])


def _part(key: str, value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if key in ("strategy", "augmentation") or text == "full":
        return text
    short = f"{'t.' if key.startswith('teacher.') else ''}{key.rpartition('.')[2]}="
    prefix = {"teacher.accuracy": "t", "ipc": "ipc"}.get(key, short)
    return f"{prefix}{text}"


def params(group: Aggregate) -> dict[str, str]:
    return {key: str(value) for key, value in group.settings.items() if value is not None}


def rows(group: Aggregate, timestamp_ms: int) -> Iterator[tuple[int, int, dict[str, float]]]:
    """(step, timestamp_ms, values) by step, the metrics of one step together."""
    by_step: dict[int, dict[str, float]] = {}
    for metric, series in group.series.items():
        for step, *statistics in series:
            for statistic, value in zip(_STATISTICS, statistics, strict=True):
                if value is not None and math.isfinite(value):
                    by_step.setdefault(step, {})[f"{metric}.{statistic}"] = float(value)
    for step in sorted(by_step):
        yield step, timestamp_ms, by_step[step]


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def tree_digest(folder: Path) -> str:
    """Of the names and contents of all files below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    contents = [
        (path.relative_to(folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest())
        for path in files
    ]
    return digest(contents)
