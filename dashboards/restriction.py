"""A report of some of a sweep's runs: those made on one kind of hardware, or in one precision.

The plan stays, so that coverage says what is left of it; runs of other machines count as not there.
Teachers stay whatever they ran on: students name them by digest.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from dashboards.errors import ReportError
from dashboards.groups import Loaded, select
from dashboards.results import Results, RunRecord

__all__ = ["NothingLeftError", "Restriction", "restricted"]


class NothingLeftError(ReportError):
    """No run of the sweep is of that kind."""


@dataclass(frozen=True, kw_only=True)
class Restriction:
    """hardware: a name as result.json has it, or a pattern of it with * and ?, in any case.
    precision: fp32 or bf16. Empty: any."""

    hardware: str = ""
    precision: str = ""

    def __bool__(self) -> bool:
        return bool(self.hardware or self.precision)

    @property
    def text(self) -> str:
        """`hardware NVIDIA H200, precision fp32`."""
        return ", ".join(f"{name} {value}" for name, value in vars(self).items() if value)

    def accepts(self, record: RunRecord) -> bool:
        """Whether all of the run was made so; a run that tells nothing of it is left out."""
        made = record.environments
        return bool(made) and all(self._fits(one) for one in made)

    def _fits(self, environment: Mapping[str, Any]) -> bool:
        return all(
            fnmatchcase(str(environment.get(name, "")).lower(), value.lower())
            for name, value in vars(self).items()
            if value
        )


def restricted(loaded: Loaded, restriction: Restriction) -> Loaded:
    """The same without the other runs. Raises NothingLeftError where nothing is left."""
    if not restriction:
        return loaded
    planned = {name for own in loaded.sweeps.values() for name in own.plan.run_names}
    measured = [record for name, record in loaded.results.runs.items() if name in planned]
    made = [record for record in measured if record.environments]
    _refuse_unknown(loaded.plan.sweep, restriction, made)
    kept = {record.name for record in made if restriction.accepts(record)}
    results = _without(loaded.results, planned - kept, restriction.text)
    return replace(
        loaded,
        results=results,
        sweeps={
            name: replace(select(results, own.plan), restriction=restriction.text)
            for name, own in loaded.sweeps.items()
        },
    )


def _refuse_unknown(sweep: str, restriction: Restriction, made: list[RunRecord]) -> None:
    if any(restriction.accepts(record) for record in made):
        return
    for name, value in vars(restriction).items():
        if value and not any(Restriction(**{name: value}).accepts(record) for record in made):
            there = _values(made, name)
            near = difflib.get_close_matches(value, there, n=1, cutoff=0.4)
            remedy = f"nearest: {near[0]}; there are: " if near else "there are: "
            raise NothingLeftError(
                f"no run of {sweep} was made with {name} {value!r} throughout",
                remedy + (", ".join(there) or "none that say"),
            )
    raise NothingLeftError(
        f"no run of {sweep} was made with {restriction.text} throughout",
        "each of them fits other runs: give one of them",
    )


def _values(made: Iterable[RunRecord], name: str) -> list[str]:
    return sorted({str(one[name]) for r in made for one in r.environments if one.get(name)})


def _without(results: Results, dropped: set[str], text: str) -> Results:
    evaluations = results.evaluations[~results.evaluations["run"].isin(dropped)]
    runs = {
        name: RunRecord(name=name, state="left out", result={})
        if name in dropped and record.state != "absent"
        else record
        for name, record in results.runs.items()
    }
    return replace(
        results, evaluations=evaluations.reset_index(drop=True), runs=runs, restriction=text
    )
