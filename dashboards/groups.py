"""Several sweeps in one report: their plans together, every run's files read once.

A group is a plan with `include`, the names of the sweeps it stands for, and no points of its own.
A sweep that was never planned in this store is named as absent; the others are reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow.fs as pafs

from dashboards.errors import ReportError
from dashboards.results import Plan, Results, is_used, load_plan, load_results
from dashboards.store import Store

__all__ = ["Loaded", "load", "select"]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a report is about.

    plan: the sweep's or the group's own. sweeps: results by name, in the group's order; a sweep
    that is no group stands for itself. absent: included sweeps without a plan in this store.
    problems: plans and files that could not be read, and why. results: of all sweeps together.
    """

    plan: Plan
    sweeps: dict[str, Results]
    absent: tuple[str, ...]
    problems: tuple[str, ...]
    results: Results

    @property
    def is_group(self) -> bool:
        """Whether it stands for other sweeps."""
        return bool(self.plan.include)


def load(store: str, name: str) -> Loaded:
    """The sweep or group `name`. store: local path or pyarrow.fs URI. Raises ReportError when it
    was never planned, or its own plan cannot be read."""
    plan = load_plan(store, name)
    if not plan.include:
        results = load_results(store, plan)
        return Loaded(
            plan=plan,
            sweeps={name: results},
            absent=(),
            problems=results.problems,
            results=results,
        )
    plans: dict[str, Plan] = {}
    absent, problems = [], []
    for included in plan.include:
        if not _is_planned(store, included):
            absent.append(included)
            continue
        try:
            plans[included] = load_plan(store, included)
        except ReportError as error:
            problems.append(str(error))
    union = load_results(store, _union(name, list(plans.values())))
    return Loaded(
        plan=plan,
        sweeps={included: select(union, own) for included, own in plans.items()},
        absent=tuple(absent),
        problems=(*problems, *union.problems),
        results=union,
    )


def _is_planned(store: str, sweep: str) -> bool:
    files = Store.open(store)
    info = files.filesystem.get_file_info(files.path(f"sweeps/{sweep}/plan.json"))
    return bool(info.type == pafs.FileType.File)


def _union(name: str, plans: list[Plan]) -> Plan:
    """A plan with the points of all; its settings tell nothing, since the sweeps differ in them."""
    points = tuple(point for plan in plans for point in plan.points)
    return Plan.model_construct(sweep=name, points=points)


def select(results: Results, plan: Plan) -> Results:
    """What `results`, of several sweeps, hold of one of them."""
    names = list(plan.run_names)
    kept = results.evaluations["run"].isin(names)
    evaluations = results.evaluations[kept].reset_index(drop=True)
    evaluations["run"] = evaluations["run"].cat.set_categories(names)
    records = {name: results.runs[name] for name in names}
    digests = {record.teacher_digest for record in records.values()}
    used = tuple(s for s in results.snapshots if is_used(s, plan, digests, records))
    teachers = {s.run: results.runs[s.run] for s in used if s.run in results.runs}
    return Results(
        plan=plan, evaluations=evaluations, runs=teachers | records, snapshots=used, problems=()
    )
