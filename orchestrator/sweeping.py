"""`targetsweep run`: from files to tables, in one pass of verbs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dashboards.aggregates import aggregate
from dashboards.errors import ReportError
from dashboards.report import write_report
from dashboards.results import load_plan, load_results
from orchestrator import paths
from orchestrator.conclusion import InterruptedByUser, command, conclude, stopped_text
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
from orchestrator.errors import StoreInUseError, UserError
from orchestrator.inventory import read_inventory
from orchestrator.lease import Lease, holder
from orchestrator.measure import bind_presets, measuring_plan
from orchestrator.overrides import apply_overrides, limit_sweeps, parse_limit
from orchestrator.plan import Plan, make_plan
from orchestrator.plandocument import plan_document
from orchestrator.progress import Progress
from orchestrator.prune import prune_checkpoints
from orchestrator.resolve import PROVISIONAL
from orchestrator.scalefile import load_scale
from orchestrator.scaling import scale_sweep
from orchestrator.spec import Sweep, load_sweeps
from orchestrator.store import Store
from orchestrator.tracking import Tracker
from orchestrator.tracking_writer import TrackingWriter
from orchestrator.units import Unit
from trainers.data.info import DatasetInfo

__all__ = ["Asked", "bound", "limited", "publish", "read_asked", "run_sweeps", "store_plan"]

_CLOSE_S = 60.0
"""How long the end of a sweep waits for MLflow before it leaves the rest to `sync`."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asked: files, a scale file, restrictions, overrides, data folders."""

    files: Sequence[str]
    scale: str | None = None
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
    scale = load_scale(asked.scale) if asked.scale else None
    sweeps = load_sweeps(asked.files, known_infos(store, {}), located, scale)
    locations = locations_of(sweeps, asked.data)
    infos = known_infos(store, locations)
    sweeps = load_sweeps(asked.files, infos, located, scale)
    sweeps = [apply_overrides(sweep, list(asked.overrides), infos) for sweep in sweeps]
    check_locations(sweeps, locations, store)
    return [scale_sweep(sweep, infos) for sweep in sweeps], infos, locations


def limited(sweeps: Sequence[Sweep], asked: Asked) -> list[Sweep]:
    """The sweeps within `--limit`. Raises SpecError when nothing is left of them."""
    return limit_sweeps(sweeps, parse_limit(asked.limits)) if asked.limits else list(sweeps)


def store_plan(sweeps: Sequence[Sweep], infos: Mapping[str, DatasetInfo], store: Store) -> Plan:
    """The plan, less what the store holds."""
    plan = make_plan(sweeps, infos)
    return plan.subtract(read_inventory(store, plan.units))


def bound(
    sweeps: Sequence[Sweep], infos: Mapping[str, DatasetInfo], store: Store, *, assume: bool
) -> list[Sweep]:
    """The sweeps with the teacher columns of measured pilots mapped by what the store holds.
    assume: those of teachers that are not measured yet count as reached."""
    return bind_presets(sweeps, _measuring(sweeps, infos, store), assume=assume)


def _measuring(
    sweeps: Sequence[Sweep],
    infos: Mapping[str, DatasetInfo],
    store: Store,
    only: Sequence[Sweep] | None = None,
) -> Plan:
    teachers = measuring_plan(sweeps, infos, only=only).units
    if not teachers:
        return _EMPTY
    return measuring_plan(sweeps, infos, read_inventory(store, teachers), only)


_EMPTY = Plan(units=(), points={}, work={}, infos={})


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
    outcomes: list[Outcome] = []
    try:
        with Lease(store, " ".join(["targetsweep", *sys.argv[1:]])) as lease:
            store.sweep_temporaries()
            if _prepare(sweeps, infos, locations, store, console):
                sweeps, infos, locations = read_asked(asked, store)
            driving = _Driving(store, options, console, tracking_uri, lease)
            measuring = _measuring(sweeps, infos, store, limited(sweeps, asked))
            if measuring.left:
                _check_all(sweeps, infos, asked, options)
                _write_plans(bound(sweeps, infos, store, assume=False), infos, store)
                console.print("first the teachers, to see which columns they can fill")
                outcomes.append(driving.drive(measuring))
            sweeps = bound(sweeps, infos, store, assume=False)
            plan = store_plan(limited(sweeps, asked), infos, store)
            check_machine(plan.left, options)
            prune_checkpoints(store, plan)
            _write_plans(sweeps, infos, store, None if asked.limits else plan)
            if any(outcome.interrupted for outcome in outcomes):
                console.print("the students wait for their teachers")
            elif plan.left:
                outcomes.append(driving.drive(plan))
            else:
                console.print(f"nothing to train: {len(plan.units)} units are done or cannot be")
            _publish_all(sweeps, store, console, tracking_uri, is_free=driving.is_free)
    except KeyboardInterrupt:  # before the first trial, or after the last
        raise InterruptedByUser(stopped_text()) from None
    conclude(plan, outcomes)


def _check_all(
    sweeps: Sequence[Sweep],
    infos: Mapping[str, DatasetInfo],
    asked: Asked,
    options: DriveOptions,
) -> None:
    """Before the teachers are measured: nothing that comes after them may turn out not to fit."""
    teachers = measuring_plan(sweeps, infos)
    whole = make_plan(limited(bind_presets(sweeps, teachers, assume=True), asked), infos)
    check_machine(whole.left, options)


def _write_plans(
    sweeps: Sequence[Sweep],
    infos: Mapping[str, DatasetInfo],
    store: Store,
    whole: Plan | None = None,
) -> None:
    """What a report shows is the whole sweep, also where `--limit` trains a part of it. whole: the
    plan of all of them, if it is made already."""
    whole = make_plan(sweeps, infos) if whole is None else whole
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


@dataclass
class _Driving:
    """Drives one plan after the other. is_free: whether MLflow may be written to: a writer that
    hangs keeps it to itself."""

    store: Store
    options: DriveOptions
    console: Console
    tracking_uri: str | None
    lease: Lease
    is_free: bool = True

    def drive(self, plan: Plan) -> Outcome:
        """What became of the units.

        Raises StoreInUseError when the store was taken away meanwhile: nothing may be written then,
        not even a report.
        """
        store, lost = self.store, self.lease.lost
        done_before = sum(plan.work[unit.name].action == "done" for unit in plan.units)
        progress = Progress(self.console, done_before=done_before)
        self.console.print(
            f"{len(plan.left)} of {len(plan.units)} units to do, {done_before} done before"
        )
        listeners: list[_Tracking] = []
        if self.is_free:
            listeners.append(_Tracking(store, self.tracking_uri, progress.warned))
        try:
            outcome = drive(plan, store, self.options, progress, listeners, lost=lost)
        finally:
            self.is_free = self.is_free and all(tracking.close() for tracking in listeners)
        if lost.is_set():
            raise StoreInUseError(
                f"{store.uri} was taken over by {holder(store) or 'another driver'}"
            )
        return outcome


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
        publish(sweep.name, store, console)
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


def publish(sweep: str, store: Store, console: Console) -> None:
    """Writes a sweep's report, prints its tables and says where it is; of a group, whose tables are
    its sweeps', one line."""
    try:
        report = write_report(store.uri, sweep)
    except ReportError as error:
        console.print(f"warning: no report of {sweep}: {error}", style="yellow")
        return
    if report.summary:
        console.print(report.summary, soft_wrap=True, markup=False, highlight=False)
    for _, table in [] if report.summary else report.tables:
        console.print(table, soft_wrap=True, markup=False, highlight=False)
    for figure in [] if report.summary else report.figures:
        console.print(f"figure: {figure}", soft_wrap=True)
    for problem in report.problems:
        console.print(f"warning: {problem}", style="yellow", soft_wrap=True)
    console.print(f"report: {report.index}\n", soft_wrap=True)


def track_results(
    tracker: Tracker, store: Store, sweeps: Sequence[str], *, force: bool = False
) -> list[str]:
    """Brings MLflow up to the store: runs, aggregates, reports; what was repaired, line by line.
    Groups are no experiments: their members are."""
    plans = {name: store.read_json(paths.plan_json(name)) or {} for name in sweeps}
    sweeps = [name for name, plan in plans.items() if not plan.get("include")]
    found = tracker.sync(sweeps, force=force)
    for sweep in sweeps:
        tracker.aggregates(sweep, aggregate(load_results(store.uri, load_plan(store.uri, sweep))))
        if store.list(paths.report_dir(sweep)):
            tracker.log_report(sweep, Path(store.local(paths.report_dir(sweep))))
    return list(found.repaired)


def _tracking_command(verb: str, store: Store, uri: str | None) -> str:
    """uri: as given to this command; what the environment says, the next one reads there too."""
    given = [] if uri in (None, os.environ.get("MLFLOW_TRACKING_URI")) else ["--tracking-uri", uri]
    return command(verb, "--store", store.uri, *given)
