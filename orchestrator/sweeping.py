"""`targetsweep run`: from files to tables, in one pass of verbs."""

from __future__ import annotations

import json
import os
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
    check_locations,
    check_sources,
    is_prepared,
    known_infos,
    locations_of,
    prepare_dataset,
    wanted_datasets,
)
from orchestrator.driver import DriveOptions, Outcome, check_machine, check_options, drive
from orchestrator.errors import RunsFailedError, StoreInUseError, TargetsweepError, UserError
from orchestrator.inventory import read_inventory
from orchestrator.lease import Lease, holder
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

    Raises SpecError with every problem of every file, UserError where the store holds another data
    set of an asked name.
    """
    located = [option.partition("=")[0] for option in asked.data]
    sweeps = load_sweeps(asked.files, known_infos(store, {}), located)
    locations = locations_of(sweeps, asked.data)
    infos = known_infos(store, locations)
    sweeps = load_sweeps(asked.files, infos, located)
    sweeps = [apply_overrides(sweep, list(asked.overrides), infos) for sweep in sweeps]
    check_locations(sweeps, locations, store)
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
    check_options(options)
    check_sources(sweeps, locations, store)
    outcome, is_free = None, True
    try:
        with Lease(store, " ".join(["targetsweep", *sys.argv[1:]])) as lease:
            store.sweep_temporaries()
            if _prepare(sweeps, infos, locations, store, console):
                sweeps, infos, locations = read_asked(asked, store)
            plan = store_plan(limited(sweeps, asked), infos, store)
            check_machine(plan.left, options)
            prune_checkpoints(store, plan)
            _write_plans(sweeps, make_plan(sweeps, infos) if asked.limits else plan, store)
            if plan.left:
                outcome, is_free = _drive(plan, store, options, console, tracking_uri, lease)
            else:
                console.print(f"nothing to train: {len(plan.units)} units are done or cannot be")
            _publish_all(sweeps, store, console, tracking_uri, is_free=is_free)
    except KeyboardInterrupt:  # before the first trial, or after the last
        raise InterruptedByUser(_stopped_text()) from None
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
        if is_prepared(store, name):
            continue
        console.print(f"preparing data set {name}")
        prepare_dataset(store, name, locations.get(name), console)
        new = new or name not in infos or infos[name].fingerprint == PROVISIONAL
    return new


def _drive(
    plan: Plan,
    store: Store,
    options: DriveOptions,
    console: Console,
    tracking_uri: str | None,
    lease: Lease,
) -> tuple[Outcome, bool]:
    """What became of the units, and whether MLflow may be written to.

    Raises StoreInUseError when the store was taken away meanwhile: nothing may be written then, not
    even a report.
    """
    done_before = sum(plan.work[unit.name].action == "done" for unit in plan.units)
    progress = Progress(console, done_before=done_before)
    console.print(f"{len(plan.left)} of {len(plan.units)} units to do, {done_before} done before")
    tracking = _Tracking(store, tracking_uri, progress.warned)
    try:
        outcome = drive(plan, store, options, progress, [tracking], lost=lease.lost)
    finally:
        is_free = tracking.close()
    if lease.lost.is_set():
        raise StoreInUseError(f"{store.uri} was taken over by {holder(store) or 'another driver'}")
    return outcome, is_free


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

    def close(self) -> bool:
        """Whether MLflow may be written to: not while the writer hangs in the middle of a run."""
        if self._writer is None:
            return True
        self._writer.close(_CLOSE_S)
        if self._writer.state:
            self._warn(self._writer.state)
        return not self._writer.is_writing


# -- the end ------------------------------------------------------------------------------------


def _publish_all(
    sweeps: Sequence[Sweep],
    store: Store,
    console: Console,
    tracking_uri: str | None,
    *,
    is_free: bool,
) -> None:
    """is_free: nobody else writes to MLflow. Two writers might both make one run."""
    for sweep in sweeps:
        report = publish(sweep.name, store, console)
        if report is not None:
            console.print(f"report: {report.index}\n", soft_wrap=True)
    if not is_free:
        sync = _tracking_command("sync", store, tracking_uri)
        console.print(
            f"warning: MLflow does not answer; to bring it up to the store, run:\n  {sync}",
            style="yellow",
            soft_wrap=True,
        )
        return
    try:
        tracker = Tracker(store, tracking_uri)
        track_results(tracker, store, [sweep.name for sweep in sweeps])
    except UserError as error:
        console.print(
            f"warning: MLflow is behind, `targetsweep sync` repairs it: {error}", style="yellow"
        )
        return
    console.print(f"MLflow: {_tracking_command('ui', store, tracking_uri)}", soft_wrap=True)


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


def _tracking_command(verb: str, store: Store, uri: str | None) -> str:
    """uri: as given to this command; what the environment says, the next one reads there too."""
    given = [] if uri in (None, os.environ.get("MLFLOW_TRACKING_URI")) else ["--tracking-uri", uri]
    return _command(verb, "--store", store.uri, *given)


def _command(*arguments: str) -> str:
    """A command line that works from here, also without the environment activated."""
    name = "targetsweep" if shutil.which("targetsweep") else sys.argv[0]
    return shlex.join([name, *arguments])


def _conclude(plan: Plan, outcome: Outcome | None) -> None:
    """The exit status, as an exception; silence means success."""
    if outcome is not None and outcome.interrupted:
        raise InterruptedByUser(_stopped_text())
    known = [unit for unit in plan.units if plan.work[unit.name].action in ("exhausted", "blocked")]
    if outcome is None:
        if known:
            raise RunsFailedError(_known_text(known))
        return
    if outcome.failed or outcome.blocked or outcome.stopped_early or known or outcome.left:
        raise RunsFailedError(_failed_text(outcome, known))


class InterruptedByUser(TargetsweepError):
    exit_status = 130


def _known_text(known: Sequence[Unit]) -> str:
    names = "\n".join(f"  {unit.label}" for unit in known[:10])
    if len(known) > 10:
        names += f"\n  … and {len(known) - 10} more"
    return (
        f"{len(known)} units cannot be done, because a teacher's accuracy was searched in vain:\n"
        f"{names}\n  raise teacher.max_steps, or ask for another accuracy"
    )


def _stopped_text() -> str:
    return f"stopped; nothing is lost. To go on:\n  {_command(*sys.argv[1:])}"


def _failed_text(outcome: Outcome, known: Sequence[Unit]) -> str:
    blocked = len(outcome.blocked) + len(known)
    left = f", {outcome.left} not done" if outcome.left else ""
    lines = [f"{len(outcome.failed)} failed, {blocked} blocked{left}"]
    if outcome.stopped_early:
        lines.append(f"stopped early: the first runs all failed alike ({outcome.stopped_early})")
    lines += [f"  {_failure_line(entry)}" for entry in outcome.failed[:10]]
    if len(outcome.failed) > 10:
        lines.append(f"  … and {len(outcome.failed) - 10} more")
    rest = "what is finished is kept" if outcome.left else "everything else is finished and kept"
    lines.append(f"{rest}; to try again:\n  {_command(*sys.argv[1:])}")
    return "\n".join(lines)


def _failure_line(entry: Entry) -> str:
    failures = entry.attempts.failures
    last = failures[-1].message.splitlines()[0] if failures and failures[-1].message else "?"
    label = entry.task.label if isinstance(entry.task, Unit) else entry.task.name
    return f"{label}: {last} ({paths.failure(entry.task.name)})"
