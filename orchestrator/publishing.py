"""The end of a sweep: reports from the store, MLflow brought up to it.

Tables and figures load scipy, pandas and matplotlib: only what ends a sweep imports this.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from dashboards.aggregates import aggregate
from dashboards.errors import ReportError
from dashboards.report import write_report
from dashboards.results import load_plan, load_results
from orchestrator import paths
from orchestrator.conclusion import command
from orchestrator.damage import damage_text
from orchestrator.errors import DamagedFileError, StoreError, UserError
from orchestrator.spec import Sweep
from orchestrator.store import Store, store_errors
from orchestrator.tracking import OutOfTimeError, SyncReport, Tracker

__all__ = ["publish", "publish_all", "track_results"]


def publish_all(
    sweeps: Sequence[Sweep],
    store: Store,
    console: Console,
    tracking_uri: str | None,
    *,
    is_free: bool,
    has_time: Callable[[], bool] = lambda: True,
) -> list[StoreError]:
    """What kept reports from being written. is_free: nobody else writes to MLflow. Two writers
    might both make one run. has_time: asked when the reports are written, and again before each
    run, whether MLflow may take more of it."""
    unwritten = []
    for sweep in sweeps:
        try:
            publish(sweep.name, store, console)
        except StoreError as error:
            unwritten.append(error)
            console.print(f"warning: {error.problem}", style="yellow", soft_wrap=True)
    if not is_free:
        sync = _tracking_command("sync", store, tracking_uri)
        console.print(
            f"warning: MLflow does not answer; to bring it up to the store, run:\n  {sync}",
            style="yellow",
            soft_wrap=True,
        )
        return unwritten
    try:
        tracker = Tracker(store, tracking_uri, has_time)
        found = track_results(tracker, store, [sweep.name for sweep in sweeps])
    except OutOfTimeError:
        sync = _tracking_command("sync", store, tracking_uri)
        console.print(
            f"no time left for MLflow; to bring it up to the store:\n  {sync}", soft_wrap=True
        )
        return unwritten
    except UserError as error:
        console.print(
            f"warning: MLflow is behind, `targetsweep sync` repairs it: {error}", style="yellow"
        )
        return unwritten
    for line in damage_text(found.damaged):
        console.print(f"warning: {line}", style="yellow", soft_wrap=True, markup=False)
    console.print(f"MLflow: {_tracking_command('ui', store, tracking_uri)}", soft_wrap=True)
    return unwritten


def publish(sweep: str, store: Store, console: Console) -> bool:
    """Writes a sweep's report, prints its tables and says where it is; of a group, whose tables are
    its sweeps', one line. False where what is stored allows none, and it said so. Raises StoreError
    when it cannot be written."""
    try:
        with store_errors("write", f"the report of {sweep}"):
            report = write_report(store.uri, sweep)
    except ReportError as error:
        console.print(f"warning: no report of {sweep}: {error}", style="yellow")
        return False
    if report.summary:
        console.print(report.summary, soft_wrap=True, markup=False, highlight=False)
    for _, table in [] if report.summary else report.tables:
        console.print(table, soft_wrap=True, markup=False, highlight=False)
    for figure in [] if report.summary else report.figures:
        console.print(f"figure: {figure}", soft_wrap=True)
    for problem in report.problems:
        console.print(f"warning: {problem}", style="yellow", soft_wrap=True)
    console.print(f"report: {report.index}\n", soft_wrap=True)
    return True


def track_results(
    tracker: Tracker, store: Store, sweeps: Sequence[str], *, force: bool = False
) -> SyncReport:
    """Brings MLflow up to the store: runs, aggregates, reports. Groups are no experiments: their
    members are; sweeps whose plan is damaged are left out and named. force: as in
    `Tracker.sync`."""
    plans: dict[str, Any] = {}
    damaged: list[DamagedFileError] = []
    for name in sweeps:
        try:
            plans[name] = store.read_json(paths.plan_json(name)) or {}
        except DamagedFileError as error:
            damaged.append(error)
    sweeps = [name for name, plan in plans.items() if not plan.get("include")]
    found = tracker.sync(sweeps, force=force)
    found = replace(found, damaged=(*found.damaged, *damaged))
    for sweep in sweeps:
        results = load_results(store.uri, load_plan(store.uri, sweep))
        tracker.aggregates(sweep, aggregate(results), force=force)
        if store.list(paths.report_dir(sweep)):
            tracker.log_report(sweep, Path(store.local(paths.report_dir(sweep))), force=force)
    return found


def _tracking_command(verb: str, store: Store, uri: str | None) -> str:
    """uri: as given to this command; what the environment says, the next one reads there too."""
    given = [] if uri in (None, os.environ.get("MLFLOW_TRACKING_URI")) else ["--tracking-uri", uri]
    return command(verb, "--store", store.uri, *given)
