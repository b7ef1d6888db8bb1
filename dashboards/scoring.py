"""What data selection costs: the seconds of scoring beside those of the students that select."""

from __future__ import annotations

import json
from collections import defaultdict
from statistics import median
from typing import Any

from dashboards.groups import Loaded
from dashboards.results import Point
from dashboards.store import Store

__all__ = ["scoring_costs"]


def scoring_costs(store: str, loaded: Loaded) -> list[dict[str, Any]]:
    """A record for each file of scores behind the report's runs, by name: `scores`, `method`,
    `wall_time_s` of scoring, `scorer` (who scores; None for random), `students` that select by it
    and are complete, and the median seconds of those, `student_s`, and of complete students that
    differ in their selection alone, `plain_student_s`; `share`: scoring over the former. What a
    number needs and the store lacks makes it None. Seconds are those of the last attempts, of
    whatever machine, beside whatever else it did."""
    behind, plain = _students(loaded)
    paths = [f"runs/{name}/{file}.json" for name in behind for file in ("run", "result")]
    found = Store.open(store).read_json(paths, [])  # scores that were not made are no problem
    return [
        _record(
            name,
            found.get(f"runs/{name}/run.json", {}),
            found.get(f"runs/{name}/result.json", {}),
            _seconds(loaded, behind[name]),
            _seconds(loaded, plain[name]),
        )
        for name in sorted(behind)
    ]


def _students(loaded: Loaded) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Runs by the scores they select by, and, by scores, the runs that differ from those in their
    selection (and perhaps their seed) alone."""
    behind: dict[str, set[str]] = defaultdict(set)
    kinds: dict[str, set[str]] = defaultdict(set)
    plain: dict[str, set[str]] = defaultdict(set)
    for results in loaded.sweeps.values():
        for point in (point for point in results.plan.points if point.run is not None):
            assert point.run is not None
            kind = _but_selection(point)
            if point.scores:
                behind[point.scores].add(point.run)
                kinds[point.scores].add(kind)
            else:
                plain[kind].add(point.run)
    alike = {name: set().union(*(plain[kind] for kind in kinds[name])) for name in behind}
    return behind, alike


def _but_selection(point: Point) -> str:
    """What two students must have in common to be compared by their seconds."""
    left = {
        name: value
        for name, value in point.settings.items()
        if name != "seed" and not name.startswith("selection.")
    }
    return json.dumps(left, sort_keys=True)


def _seconds(loaded: Loaded, runs: set[str]) -> list[float]:
    """Of the complete ones."""
    records = (loaded.results.runs[name] for name in sorted(runs))
    complete = (record.result for record in records if record.state == "complete")
    return [float(one["wall_time_s"]) for one in complete if one.get("wall_time_s")]


def _record(
    name: str,
    run: dict[str, Any],
    result: dict[str, Any],
    selecting: list[float],
    plain: list[float],
) -> dict[str, Any]:
    scoring = (run.get("spec") or {}).get("scoring") or {}
    key = (scoring.get("student") or {}).get("key")
    seconds = result.get("wall_time_s")
    student = median(selecting) if selecting else None
    return {
        "scores": name,
        "method": scoring.get("method"),
        "wall_time_s": seconds,
        "scorer": f"student-{key[:16]}" if key else None,
        "students": len(selecting),
        "student_s": student,
        "plain_student_s": median(plain) if plain else None,
        "share": seconds / student if seconds is not None and student else None,
    }
