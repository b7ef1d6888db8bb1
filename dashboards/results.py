"""What a sweep's runs have measured, read from the store alone.

`load_plan` reads plan.json; `load_results` reads the runs it names. The reader never fails on a
run: a damaged or half-written file makes the run (or its result) missing and is listed in
`Results.problems`. File formats: docs/architecture.md.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from dashboards.errors import ReportError
from dashboards.layout import (
    METRICS,
    ClaimItem,
    FigureItem,
    ReportItem,
    TableItem,
    unknown_fields,
)
from dashboards.seals import NoSealError, SealError, unseal_json
from dashboards.snapshots import Snapshot, read_snapshots
from dashboards.store import Store, read_evaluations

__all__ = [
    "Plan",
    "Point",
    "Results",
    "RunRecord",
    "Scale",
    "Snapshot",
    "is_used",
    "load_plan",
    "load_results",
]


class Point(BaseModel):
    """A grid point: one seed of one setting, and the run that answers it.

    run: None where a pilot cannot answer it (a teacher out of reach). settings: all fields of the
    point, those equal in the whole sweep included. scores: what its run selects by. snapshot:
    `<teacher run>/acc-<preset>`, what it learns from. horizon: last step asked by this point; the
    run may have gone further for another one. schedule: place in `Plan.schedules` of the steps at
    which this point asks for an evaluation; None where a plan does not say. actual: fields,
    `horizon` among them, whose value in the run is another one, because a scaled sweep keeps the
    full sweep's settings as its layout.
    """

    model_config = ConfigDict(frozen=True)

    run: str | None = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    settings: dict[str, JsonValue]
    scores: str | None = None
    snapshot: str | None = None
    horizon: int = Field(ge=1)
    schedule: int | None = Field(default=None, ge=0)
    actual: dict[str, JsonValue] = {}

    @property
    def seed(self) -> int:
        """The student's seed; 0 for a sweep that names none."""
        seed = self.settings.get("seed")
        return seed if isinstance(seed, int) else 0

    @property
    def actual_horizon(self) -> int:
        """The last step that the run is asked for."""
        horizon = self.actual.get("horizon")
        return horizon if isinstance(horizon, int) else self.horizon


class Scale(BaseModel):
    """How a pilot differs from the sweep whose layout it keeps. steps: actual step by nominal."""

    model_config = ConfigDict(frozen=True)

    name: str
    notes: tuple[str, ...] = ()
    steps: dict[int, int] = {}

    @property
    def label(self) -> str:
        """What titles say of a scaled sweep."""
        return "pilot" if self.name == "pilot" else f"pilot: {self.name}"


class Plan(BaseModel):
    """plan.json. fields: names that vary, in the sweep's order; settings: the others' values.
    include: sweeps a group stands for; a group has no points of its own. overrides: what the
    command line made another experiment of it with, `field=value` each. schedules: steps of
    evaluations, which points name by their place."""

    model_config = ConfigDict(frozen=True)

    sweep: str
    title: str = ""
    description: str = ""
    semantics: int = 1
    settings: dict[str, JsonValue] = {}
    fields: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    points: tuple[Point, ...]
    report: tuple[ReportItem, ...] = ()
    scale: Scale | None = None
    overrides: tuple[str, ...] = ()
    schedules: tuple[tuple[int, ...], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, plan: Any) -> Any:
        """Gives every point the settings that all points share."""
        if not isinstance(plan, dict):
            return plan
        shared = plan.get("settings") or {}
        points = [p | {"settings": shared | p.get("settings", {})} for p in plan.get("points", ())]
        return plan | {"points": points}

    @model_validator(mode="after")
    def _knows_its_schedules(self) -> Plan:
        last = max(
            (point.schedule for point in self.points if point.schedule is not None), default=-1
        )
        if last >= len(self.schedules):
            raise ValueError(f"schedules has no place {last}")
        return self

    @cached_property
    def items(self) -> tuple[TableItem | FigureItem, ...]:
        """Tables and figures, in the sweep's order."""
        return tuple(item for item in self.report if not isinstance(item, ClaimItem))

    @cached_property
    def claims(self) -> tuple[ClaimItem, ...]:
        """Claims, in the sweep's order."""
        return tuple(item for item in self.report if isinstance(item, ClaimItem))

    @cached_property
    def field_names(self) -> tuple[str, ...]:
        """Every setting of a point: those that vary, in the sweep's order, then the others."""
        names = dict.fromkeys((*self.fields, *self.settings))
        return tuple(names | dict.fromkeys(f for point in self.points for f in point.settings))

    @property
    def departure(self) -> str:
        """How it differs from the sweep whose layout it has; empty: not at all, and only then are
        its numbers tested against the paper's."""
        scale = ["pilot"] if self.scale else []
        return ", ".join(scale + ["other settings"] * bool(self.overrides))

    @cached_property
    def teacher_names(self) -> frozenset[str]:
        """Runs of the teachers that its points learn from."""
        asked = (point.snapshot.partition("/")[0] for point in self.points if point.snapshot)
        return frozenset(asked)

    @cached_property
    def run_names(self) -> tuple[str, ...]:
        """Every run that answers a point, once, sorted."""
        return tuple(sorted({point.run for point in self.points if point.run is not None}))

    def actual_step(self, step: int) -> int:
        """Where a run of this sweep stands when the full sweep's would stand at `step`."""
        return self.scale.steps.get(step, step) if self.scale else step


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What the store knows of a run beside its evaluations. state: complete (up to its own last
    request), partial (evaluations but no result), failed, absent; left out of a restricted report.
    teacher_digest: SHA-256 of the snapshot's weights, None without a teacher or when unknown.
    result: result.json, or empty. imported: environments that parts of it were made in elsewhere.
    """

    name: str
    state: str
    teacher_digest: str | None = None
    result: dict[str, Any]
    imported: tuple[dict[str, Any], ...] = ()

    @property
    def environments(self) -> list[dict[str, Any]]:
        """Those that the run was made in, as far as they are known; each once."""
        own = self.result.get("environment")
        every = [*([own] if own else []), *self.imported]
        return [one for index, one in enumerate(every) if one not in every[:index]]


_NO_RUN = RunRecord(name="", state="absent", result={})


@dataclass(frozen=True, kw_only=True)
class Results:
    """A sweep's measurements.

    evaluations: one row a (run, step), in any order: `run` (categorical over all planned runs),
        `step`, the metrics (percent, nats, fractions; NaN where the kind of run has none),
        `replayed`, `timestamp_ms`.
    runs: record by run name, for every run of the plan and every teacher it used.
    snapshots: those the sweep's runs used or made. problems: what could not be read, and why.
    restriction: what all its runs have in common, of a restricted report.
    """

    plan: Plan
    evaluations: pd.DataFrame
    runs: dict[str, RunRecord]
    snapshots: tuple[Snapshot, ...]
    problems: tuple[str, ...]
    restriction: str = ""

    @cached_property
    def points(self) -> pd.DataFrame:
        """One row a point, in the plan's order: `point`, `run`, `seed`, `horizon`, `complete`,
        `teacher_digest`, and a column a setting (prefix-free, the sweep file's dotted names)."""
        rows = []
        for index, point in enumerate(self.plan.points):
            record = self.record(point)
            fixed: dict[str, Any] = {
                "point": index,
                "run": point.run,
                "seed": point.seed,
                "horizon": point.actual_horizon,
                "complete": self.is_complete(point),
                "teacher_digest": record.teacher_digest,
            }
            rows.append({f: point.settings.get(f) for f in self.plan.field_names} | fixed)
        return pd.DataFrame(rows)

    def frame(self) -> pd.DataFrame:
        """One row a (point, step): the columns of `points` and of `evaluations`. Points that share
        a run appear each; steps beyond a point's horizon are left out."""
        points = self.points.assign(run=self.points["run"].astype(self.evaluations["run"].dtype))
        joined = points.merge(self.evaluations, on="run")
        return joined[joined["step"] <= joined["horizon"]].reset_index(drop=True)

    def record(self, point: Point) -> RunRecord:
        """What is known of the point's run; a record of nothing for a point without one."""
        return _NO_RUN if point.run is None else self.runs[point.run]

    def is_complete(self, point: Point) -> bool:
        """Whether the point's run is complete up to the point's horizon. A point without a run asks
        for nothing and is complete."""
        if point.run is None:
            return True
        record = self.runs[point.run]
        reached = int(record.result.get("step") or record.result.get("horizon") or 0)
        # a teacher ends when its presets are harvested, long before its search limit
        return record.state == "complete" and (
            reached >= point.actual_horizon or point.run.startswith("teacher-")
        )


def load_plan(store: str, sweep: str) -> Plan:
    """The plan of `sweep`. store: local path or pyarrow.fs URI.

    Raises ReportError: no such sweep, a plan that does not fit its format, or report items that
    name fields which no point has.
    """
    files = Store.open(store)
    path = f"sweeps/{sweep}/plan.json"
    try:
        plan = Plan.model_validate(unseal_json(json.loads(files.read(path))))
    except FileNotFoundError:
        remedy = f"sweeps of this store: {', '.join(files.sweeps()) or 'none'}"
        raise ReportError(f"{store} holds no sweep {sweep!r}", remedy) from None
    except NoSealError as error:
        raise ReportError(
            f"{path} in {store} has no seal: it was written before files had any, or is damaged",
            "seal an old store once: targetsweep store check --seal; else run the sweep again",
        ) from error
    except SealError as error:
        raise ReportError(
            f"{path} in {store} is damaged: {error}", "run the sweep again"
        ) from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ReportError(
            f"{path} in {store} is not a plan: {error}", "run the sweep again"
        ) from error
    _check_items(plan)
    return plan


def _check_items(plan: Plan) -> None:
    known = frozenset(plan.field_names)
    wrong = [
        f"{item.name}: {field}" for item in plan.items for field in unknown_fields(item, known)
    ]
    if wrong:
        problem = f"report items name fields that no point has: {'; '.join(wrong)}"
        raise ReportError(problem, f"fields: {', '.join(plan.field_names)}")


def load_results(store: str, plan: Plan) -> Results:
    """Everything the store holds of `plan`'s runs, and of the teachers they used. Missing runs and
    steps are absent. store: local path or pyarrow.fs URI."""
    files = Store.open(store)
    present = files.list_runs()
    problems: list[str] = []
    names = list(plan.run_names)
    evaluations = read_evaluations(files, [n for n in names if _has(present, n)], METRICS, problems)
    measured = set(evaluations["run"].unique())
    evaluations["run"] = evaluations["run"].cat.set_categories(names)
    snapshots, copies = read_snapshots(files, present, problems)
    records = _read_records(files, present, names, measured, problems)
    records = {name: _with_digest(files, r, snapshots) for name, r in records.items()}
    digests = {record.teacher_digest for record in records.values()}
    used = sorted(
        s
        for s in (*snapshots.values(), *(copy for copy in copies if copy.digest in digests))
        if is_used(s, plan, digests, records)
    )
    teachers = sorted({snapshot.run for snapshot in used} - set(records))
    records |= _read_records(files, present, teachers, set(teachers), problems)
    return Results(
        plan=plan,
        evaluations=evaluations,
        runs=records,
        snapshots=tuple(used),
        problems=tuple(sorted(problems)),
    )


def is_used(
    snapshot: Snapshot, plan: Plan, digests: Collection[str | None], runs: Collection[str]
) -> bool:
    """Whether the plan's runs made a snapshot, or learnt from it: digests, runs: of those runs.
    Teachers that differ in their data may share weights, untrained ones at least, with another
    accuracy."""
    if snapshot.run in runs:
        return True
    known = plan.teacher_names
    return snapshot.digest in digests and (not known or snapshot.run in known)


def _has(present: dict[str, set[str]], name: str) -> bool:
    return "metrics.parquet" in present.get(name, ())


def _read_records(
    files: Store,
    present: dict[str, set[str]],
    names: list[str],
    measured: set[str],
    problems: list[str],
) -> dict[str, RunRecord]:
    finished = [name for name in names if "result.json" in present.get(name, ())]
    results = files.read_json([f"runs/{name}/result.json" for name in finished], problems)
    brought = [name for name in names if "imported.json" in present.get(name, ())]
    imports = files.read_json([f"runs/{name}/imported.json" for name in brought], problems)
    records = {}
    for name in names:
        result = results.get(f"runs/{name}/result.json")
        failed = "failure.json" in present.get(name, ())
        if name not in measured:
            state = "failed" if failed else "absent"
        elif result is not None and result.get("status", "complete") == "complete":
            state = "complete"
        else:
            state = "failed" if failed else "partial"
        digest = (result or {}).get("teacher_digest")
        records[name] = RunRecord(
            name=name,
            state=state,
            teacher_digest=digest,
            result=result or {},
            imported=_environments(imports.get(f"runs/{name}/imported.json", {})),
        )
    return records


def _environments(imported: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Of the bundles that brought parts of a run."""
    entries = imported.get("bundles", [])
    return tuple(found for entry in entries if (found := entry.get("environment")))


def _with_digest(
    files: Store, record: RunRecord, snapshots: dict[tuple[str, str], Snapshot]
) -> RunRecord:
    """A run without a result says in run.json which snapshot it asked for: that one's digest."""
    if record.state not in ("partial", "failed") or record.teacher_digest:
        return record
    path = f"runs/{record.name}/run.json"
    teacher = (files.read_json([path], []).get(path, {}).get("spec") or {}).get("teacher") or {}
    try:
        key = (f"teacher-{teacher['key'][:16]}", f"{teacher['accuracy']:g}")
    except (KeyError, TypeError, ValueError):
        return record
    digest = snapshots[key].digest if key in snapshots else None
    return replace(record, teacher_digest=digest)
