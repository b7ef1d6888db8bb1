"""How much of a sweep is there: runs complete, runs missing, settings that all share."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from dashboards.labels import Key, as_key, field_label, here_label, phrase
from dashboards.results import Results

__all__ = ["coverage_text", "missing_runs", "shared_settings"]

_SHORTER = "shorter than asked"
"""Of a run that is complete, but to an earlier step."""


def missing_runs(results: Results) -> list[dict[str, str]]:
    """Runs of the plan that are not complete up to what the sweep asks: name, state, label."""
    values = {
        name: {as_key(point.settings.get(name)) for point in results.plan.points} - {None}
        for name in results.plan.fields
    }
    telling = [name for name in results.plan.fields if len(values[name]) > 1]
    missing: dict[str, dict[str, str]] = {}
    for point in results.plan.points:
        if point.run is None or point.run in missing or results.is_complete(point):
            continue
        state = results.record(point).state
        settings = {name: as_key(point.settings.get(name)) for name in telling}
        texts = [phrase(name, v) for name, v in settings.items() if v is not None]
        missing[point.run] = {
            "name": point.run,
            "state": _SHORTER if state == "complete" else state,
            "label": ", ".join(texts),
        }
    return list(missing.values())


def coverage_text(runs: int, missing: Collection[Mapping[str, str]]) -> str:
    """`12 of 90 runs complete, 60 more to an earlier step than is asked`. missing: as
    `missing_runs` gives them."""
    text = f"{runs - len(missing)} of {runs} runs complete"
    shorter = sum(run["state"] == _SHORTER for run in missing)
    return f"{text}, {shorter} more to an earlier step than is asked" if shorter else text


def shared_settings(results: Results) -> str:
    """`Data set CIFAR-10; Strategy B`: what is equal in all points. A pilot's runs may have
    other values than its layout: `Batch size 128 (here 16)`."""
    actual: dict[str, dict[Key, None]] = {}
    for point in results.plan.points:
        for name, value in point.actual.items():
            actual.setdefault(name, {})[as_key(value)] = None
    texts = [
        f"{field_label(name)} "
        + here_label(name, as_key(value), list(actual[name]) if name in actual else None)
        for name, value in results.plan.settings.items()
        if value is not None
    ]
    return "; ".join(texts)
