"""What data selection costs: the seconds of scoring beside those of the students that select."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import Any

from dashboards.groups import Loaded
from dashboards.store import Store

__all__ = ["scoring_costs"]


def scoring_costs(store: str, loaded: Loaded) -> list[dict[str, Any]]:
    """A record for each file of scores behind the report's runs, by name: `scores`, `method`,
    `wall_time_s` of scoring, `scorer` (who scores; None for random), `students` that select by it
    and are complete, and the median seconds of those, `student_s`, and of the complete students of
    the same sweeps that do not select, `plain_student_s`; `share`: scoring over the former. What a
    number needs and the store lacks makes it None. Seconds are those of the last attempts, of
    whatever machine, beside whatever else it did."""
    behind, plain = _students(loaded)
    files = Store.open(store)
    paths = [f"runs/{name}/{file}.json" for name in behind for file in ("run", "result")]
    there = files.list_runs() if behind else {}
    found = files.read_json([path for path in paths if _exists(path, there)], [])
    return [
        _record(
            name,
            found.get(f"runs/{name}/run.json", {}),
            found.get(f"runs/{name}/result.json", {}),
            _seconds(loaded, behind[name]),
            _seconds(loaded, plain),
        )
        for name in sorted(behind)
    ]


def _students(loaded: Loaded) -> tuple[dict[str, set[str]], set[str]]:
    """Runs by the scores they select by, and the other runs of sweeps in which some do."""
    behind: dict[str, set[str]] = defaultdict(set)
    plain: set[str] = set()
    for results in loaded.sweeps.values():
        points = [point for point in results.plan.points if point.run is not None]
        if not any(point.scores for point in points):
            continue
        for point in points:
            assert point.run is not None
            if point.scores:
                behind[point.scores].add(point.run)
            elif point.settings.get("strategy") != "A":
                plain.add(point.run)
    return behind, plain


def _exists(path: str, there: dict[str, set[str]]) -> bool:
    _, run, file = path.split("/")
    return file in there.get(run, ())


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
