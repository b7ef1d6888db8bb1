"""`targetsweep run`: from files to tables, in one pass of verbs."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dashboards.aggregates import aggregate
from dashboards.errors import ReportError
from dashboards.report import ReportPaths, write_report
from dashboards.results import load_plan, load_results
from orchestrator import paths
from orchestrator.conductor import Listener
from orchestrator.datasets import (
    Location,
    known_infos,
    locations_of,
    prepare_dataset,
    wanted_datasets,
)
from orchestrator.driver import DriveOptions, Outcome, drive
from orchestrator.errors import RunsFailedError, TargetsweepError, UserError
from orchestrator.inventory import read_inventory
from orchestrator.lease import Lease
from orchestrator.ledger import Entry
from orchestrator.overrides import apply_overrides, limit_sweeps, parse_limit
from orchestrator.plan import Plan, make_plan
from orchestrator.plandocument import plan_document
from orchestrator.progress import Progress
from orchestrator.prune import prune_checkpoints
from orchestrator.resolve import PROVISIONAL
from orchestrator.spec import Sweep, load_sweeps
from orchestrator.store import Store
from orchestrator.tracking import Tracker
from orchestrator.tracking_writer import TrackingWriter
from orchestrator.units import Unit
from trainers.data.info import DatasetInfo

__all__ = ["Asked", "limited", "publish", "read_asked", "run_sweeps", "store_plan"]

_CLOSE_S = 60.0
"""How long the end of a sweep waits for MLflow before it leaves the rest to `sync`."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asked: files, restrictions, overrides, data folders."""

    files: Sequence[str]
    limits: Sequence[str] = ()
    overrides: Sequence[str] = ()
    data: Sequence[str] = ()


def read_asked(
    asked: Asked, store: Store
) -> tuple[list[Sweep], dict[str, DatasetInfo], dict[str, Location]]:
    """The sweeps, checked against everything that is known of their data sets.

    Raises SpecError with every problem of every file.
    """
    located = [option.partition("=")[0] for option in asked.data]
    sweeps = load_sweeps(asked.files, known_infos(store, {}), located)
    locations = locations_of(sweeps, asked.data)
    infos = known_infos(store, locations)
    sweeps = load_sweeps(asked.files, infos, located)
    sweeps = [apply_overrides(sweep, list(asked.overrides), infos) for sweep in sweeps]
    return sweeps, infos, locations


def limited(sweeps: Sequence[Sweep], asked: Asked) -> list[Sweep]:
    """The sweeps within `--limit`. Raises SpecError when nothing is left of them."""
    return limit_sweeps(sweeps, parse_limit(asked.limits)) if asked.limits else list(sweeps)


def store_plan(sweeps: Sequence[Sweep], infos: Mapping[str, DatasetInfo], store: Store) -> Plan:
    """The plan, less what the store holds."""
    plan = make_plan(sweeps, infos)
    return plan.subtract(read_inventory(store, plan.units))


def run_sweeps(
    asked: Asked, store: Store, options: DriveOptions, console: Console, *, tracking_uri: str | None
) -> None:
    """Runs what is left of the sweeps, reports and tracks it.

    Raises UserError before anything starts, RunsFailedError after everything that could be done is,
    KeyboardInterrupt when it was asked to stop.
    """
    sweeps, infos, locations = read_asked(asked, store)
    limited(sweeps, asked)
    with Lease(store, " ".join(["targetsweep", *sys.argv[1:]])):
        store.sweep_temporaries()
        if _prepare(sweeps, infos, locations, store, console):
            sweeps, infos, locations = read_asked(asked, store)
        plan = store_plan(limited(sweeps, asked), infos, store)
        prune_checkpoints(store, plan)
        _write_plans(sweeps, make_plan(sweeps, infos) if asked.limits else plan, store)
        outcome = None
        if plan.left:
            outcome = _drive(plan, store, options, console, tracking_uri)
        else:
            console.print(f"nothing to train: {len(plan.units)} units are done or known to fail")
        _publish_all(sweeps, store, console, tracking_uri)
    _conclude(plan, outcome)


def _write_plans(sweeps: Sequence[Sweep], whole: Plan, store: Store) -> None:
    """What a report shows is the whole sweep, also where `--limit` trains a part of it."""
    for sweep in sweeps:
        document = json.dumps(plan_document(sweep, whole), indent=1)  # in the file's order
        store.write_bytes(paths.plan_json(sweep.name), document.encode())


def _prepare(
    sweeps: Sequence[Sweep],
    infos: Mapping[str, DatasetInfo],
    locations: Mapping[str, Location],
    store: Store,
    console: Console,
) -> bool:
    """Decodes the data sets that the store lacks; whether any was."""
    new = False
    for name in wanted_datasets(sweeps):
        if store.exists(f"{paths.dataset_dir(name)}/meta.json"):
            continue
        console.print(f"preparing data set {name}")
        prepare_dataset(store, name, locations.get(name), console)
        new = new or name not in infos or infos[name].fingerprint == PROVISIONAL
    return new


def _drive(
    plan: Plan, store: Store, options: DriveOptions, console: Console, tracking_uri: str | None
) -> Outcome:
    done_before = sum(plan.work[unit.name].action == "done" for unit in plan.units)
    progress = Progress(console, done_before=done_before)
    console.print(f"{len(plan.left)} of {len(plan.units)} units to do, {done_before} done before")
    tracking = _Tracking(store, tracking_uri, progress.warned)
    try:
        return drive(plan, store, options, progress, [tracking])
    finally:
        tracking.close()


class _Tracking(Listener):
    """Tells MLflow's writer about every change in the store. Where there is no MLflow to write to,
    says so once."""

    def __init__(self, store: Store, uri: str | None, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._writer: TrackingWriter | None = None
        try:
            self._writer = TrackingWriter(Tracker(store, uri), warn)
        except UserError as error:
            warn(f"no tracking: {error}")

    def changed(self, unit: Unit) -> None:
        if self._writer is not None:
            for sweep in unit.sweeps:
                self._writer.notify(sweep, unit.name)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close(_CLOSE_S)
            if self._writer.state:
                self._warn(self._writer.state)


# -- the end ------------------------------------------------------------------------------------


def _publish_all(
    sweeps: Sequence[Sweep], store: Store, console: Console, tracking_uri: str | None
) -> None:
    for sweep in sweeps:
        report = publish(sweep.name, store, console)
        if report is not None:
            console.print(f"report: {report.index}\n", soft_wrap=True)
    try:
        tracker = Tracker(store, tracking_uri)
        track_results(tracker, store, [sweep.name for sweep in sweeps])
    except UserError as error:
        console.print(
            f"warning: MLflow is behind, `targetsweep sync` repairs it: {error}", style="yellow"
        )
        return
    console.print(f"MLflow: {_command('ui', '--store', store.uri)}", soft_wrap=True)


def publish(sweep: str, store: Store, console: Console) -> ReportPaths | None:
    """Writes a sweep's report and prints its tables."""
    try:
        report = write_report(store.uri, sweep)
    except ReportError as error:
        console.print(f"warning: no report of {sweep}: {error}", style="yellow")
        return None
    for _, table in report.tables:
        console.print(table, soft_wrap=True, markup=False, highlight=False)
    for figure in report.figures:
        console.print(f"figure: {figure}", soft_wrap=True)
    for problem in report.problems:
        console.print(f"warning: {problem}", style="yellow", soft_wrap=True)
    return report


def track_results(
    tracker: Tracker, store: Store, sweeps: Sequence[str], *, force: bool = False
) -> list[str]:
    """Brings MLflow up to the store: runs, aggregates, reports; what was repaired, line by line."""
    found = tracker.sync(sweeps, force=force)
    for sweep in sweeps:
        tracker.aggregates(sweep, aggregate(load_results(store.uri, load_plan(store.uri, sweep))))
        if store.list(paths.report_dir(sweep)):
            tracker.log_report(sweep, Path(store.local(paths.report_dir(sweep))))
    return list(found.repaired)


def _command(*arguments: str) -> str:
    """A command line that works from here, also without the environment activated."""
    name = "targetsweep" if shutil.which("targetsweep") else sys.argv[0]
    return shlex.join([name, *arguments])


def _conclude(plan: Plan, outcome: Outcome | None) -> None:
    """The exit status, as an exception; silence means success."""
    again = _command(*sys.argv[1:])
    if outcome is not None and outcome.interrupted:
        raise InterruptedByUser(f"stopped; nothing is lost. To go on:\n  {again}")
    known = [unit for unit in plan.units if plan.work[unit.name].action in ("exhausted", "blocked")]
    if outcome is None:
        if known:
            raise RunsFailedError(_known_text(known))
        return
    if outcome.failed or outcome.blocked or outcome.stopped_early or known or outcome.left:
        raise RunsFailedError(_failed_text(outcome, known, again))


class InterruptedByUser(TargetsweepError):
    exit_status = 130


def _known_text(known: Sequence[Unit]) -> str:
    names = "\n".join(f"  {unit.label}" for unit in known[:10])
    return (
        f"{len(known)} units cannot be done, because a teacher's accuracy was searched in vain:\n"
        f"{names}\n  raise teacher.max_steps, or ask for another accuracy"
    )


def _failed_text(outcome: Outcome, known: Sequence[Unit], again: str) -> str:
    lines = [f"{len(outcome.failed)} failed, {len(outcome.blocked) + len(known)} blocked"]
    if outcome.stopped_early:
        lines.append(f"stopped early: the first runs all failed alike ({outcome.stopped_early})")
    lines += [f"  {_failure_line(entry)}" for entry in outcome.failed[:10]]
    lines += [f"everything else is finished and kept; to try again:\n  {again}"]
    return "\n".join(lines)


def _failure_line(entry: Entry) -> str:
    failures = entry.attempts.failures
    last = failures[-1].message.splitlines()[0] if failures and failures[-1].message else "?"
    return f"{entry.task.name}: {last} (runs/{entry.task.name}/failure.json)"
