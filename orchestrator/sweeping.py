"""`targetsweep run`: from files to tables, in one pass of verbs."""

from __future__ import annotations

import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from rich.console import Console

from orchestrator import clock, paths
from orchestrator.asked import Asked, bound, limited, measuring, read_asked, store_plan
from orchestrator.budget import Limit
from orchestrator.bundling import BundleExport, check_place, export_so_far
from orchestrator.conclusion import InterruptedByUser, conclude, stopped_text
from orchestrator.damage import Mender
from orchestrator.datasets import (
    Location,
    check_sources,
    is_prepared,
    prepare_dataset,
    wanted_datasets,
)
from orchestrator.driver import DriveOptions, Outcome, check_machine, check_options, drive
from orchestrator.errors import StoreError, StoreTakenError, TargetsweepError, UserError
from orchestrator.following import ClusterLostError
from orchestrator.interrupts import beginning
from orchestrator.jobrecord import note_job
from orchestrator.lease import Lease, holder
from orchestrator.listener import Listener, Live
from orchestrator.measure import bind_presets, measuring_plan
from orchestrator.metrics import Metrics, exporting
from orchestrator.overheads import Overheads, write_overheads
from orchestrator.plan import Plan, make_plan
from orchestrator.plandocument import plan_document
from orchestrator.progress import Progress
from orchestrator.prune import prune_checkpoints
from orchestrator.redo import drive_until_sound
from orchestrator.resolve import PROVISIONAL
from orchestrator.spec import Sweep
from orchestrator.store import Store
from orchestrator.tracking import Tracker
from orchestrator.tracking_writer import TrackingWriter
from orchestrator.tuning import TuneGaveUpError
from orchestrator.units import Unit
from trainers.data.info import DatasetInfo

__all__ = ["run_sweeps"]

_CLOSE_S = 60.0
"""How long the end of a sweep waits for MLflow before it leaves the rest to `sync`."""


def run_sweeps(
    asked: Asked,
    store: Store,
    options: DriveOptions,
    console: Console,
    *,
    tracking_uri: str | None,
    limit: Limit | None = None,
    export: BundleExport | None = None,
) -> None:
    """Runs what is left of the sweeps, reports and tracks it. limit: of the time of all that.
    export: the bundle that is written at the end.

    Raises UserError before anything starts, RunsFailedError after everything that could be done is,
    BudgetSpentError where the limit left some of it,
    ClusterLostError where Ray's head is gone, KeyboardInterrupt when it was asked to stop.
    """
    sweeps, infos, locations = read_asked(asked, store)
    check_options(options)
    if export is not None:
        check_place(export.out)
    watch = _Stopwatch()
    within = limited(sweeps, asked)
    check_sources(within, locations, store)
    outcomes: list[Outcome] = []
    try:
        with (
            Lease(store, shlex.join(["targetsweep", *sys.argv[1:]])) as lease,
            exporting(options.metrics_port, options.metrics_host) as metrics,
        ):
            store.sweep_temporaries()
            note_job(store)
            preparing = time.monotonic()
            if _prepare(within, infos, locations, store, console):
                sweeps, infos, locations = read_asked(asked, store)
            if limit is not None:  # images tell nothing of how long a report takes
                limit = replace(limit, began_s=limit.began_s + time.monotonic() - preparing)
            driving = _Driving(store, options, console, tracking_uri, lease, metrics, limit, watch)
            publish = partial(_publish, driving, sweeps, _has_time(limit), export)
            with _publishing_first(watch, publish):
                sweeps, plan = _train(driving, sweeps, infos, asked, outcomes)
            unwritten = _publish(driving, sweeps, _has_time(limit), export)
            write_overheads(store, watch.overheads(outcomes))
    except KeyboardInterrupt:  # before the first trial, or after the last
        raise InterruptedByUser(stopped_text()) from None
    except ClusterLostError as error:
        raise ClusterLostError(f"{error}; {stopped_text()}") from None
    conclude(plan, outcomes, "" if limit is None else limit.said)
    if unwritten:  # the runs are done: exit status 1, not 2
        raise TargetsweepError(str(unwritten[0]))


@contextmanager
def _publishing_first(watch: _Stopwatch, publish: Callable[[], object]) -> Iterator[None]:
    """What ends the block once something was trained, whatever it is, waits until what was finished
    is exported and shown; and nobody is told then that nothing was started (exit status 2)."""
    try:
        yield
    except StoreTakenError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        if not (watch.has_begun or isinstance(error, ClusterLostError | TuneGaveUpError)):
            raise
        with suppress(Exception):  # that it was not published, too, is less than what happened
            publish()
        if isinstance(error, UserError):
            raise TargetsweepError(str(error)) from error
        raise


def _train(
    driving: _Driving,
    sweeps: Sequence[Sweep],
    infos: Mapping[str, DatasetInfo],
    asked: Asked,
    outcomes: list[Outcome],
) -> tuple[list[Sweep], Plan]:
    """Teachers of measured pilots first, then all that is left. Gives the sweeps, bound to what the
    teachers reached, and their plan; what became of each driving is added to `outcomes` at once,
    since what comes after it may raise."""
    store, console, options = driving.store, driving.console, driving.options
    mender = Mender(store, console)
    mender.plans(sweep.name for sweep in sweeps)

    def measure() -> Plan:
        return measuring(sweeps, infos, mender.inventory, limited(sweeps, asked))

    teachers = measure()
    if teachers.left:
        _check_all(sweeps, infos, asked, options)
        _write_plans(bound(sweeps, infos, store, assume=False), infos, store)
        console.print("first the teachers, to see which columns they can fill")
        outcomes.append(driving.drive(teachers, measure))
    measured = bound(sweeps, infos, store, assume=False)

    def plan_again() -> Plan:
        return store_plan(limited(measured, asked), infos, mender.inventory)

    plan = plan_again()
    check_machine(plan.left, options)
    prune_checkpoints(store, plan)
    _write_plans(measured, infos, store, None if asked.limits else plan)
    if any(one.interrupted or one.spent or one.stopped_early for one in outcomes):
        console.print("the students wait for their teachers")
    elif plan.left:
        outcomes.append(driving.drive(plan, plan_again))
    else:
        console.print(f"nothing to train: {len(plan.units)} units are done or cannot be")
    return measured, plan


def _publish(
    driving: _Driving,
    sweeps: Sequence[Sweep],
    has_time: Callable[[], bool],
    export: BundleExport | None,
) -> list[UserError]:
    """What kept the bundle or reports from being written. The bundle comes first: it may be all
    that leaves a machine which is about to be taken away."""
    store, console = driving.store, driving.console
    unwritten: list[UserError] = []
    if export is not None:
        failed = export_so_far(console, store, export, [sweep.name for sweep in sweeps])
        unwritten += [failed] if failed is not None else []
    from orchestrator.publishing import publish_all  # tables and figures cost two seconds

    unwritten += publish_all(
        sweeps, store, console, driving.tracking_uri, is_free=driving.is_free, has_time=has_time
    )
    return unwritten


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
        store.write_json(paths.plan_json(sweep.name), plan_document(sweep, whole), in_order=True)


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
    metrics: Metrics | None
    limit: Limit | None
    watch: _Stopwatch
    is_free: bool = True

    def drive(self, plan: Plan, again: Callable[[], Plan]) -> Outcome:
        """What became of the units, those included that had to wait for damaged files to be made
        again. again: the plan, less what the store holds by then."""
        if self.limit is not None and time.monotonic() >= self.limit.stop_at:
            return _nothing_begun(plan)

        def say(line: str) -> None:
            self.console.print(line, style="yellow", soft_wrap=True, markup=False)

        outcome = drive_until_sound(self._drive, plan, again, self.store, say)
        with suppress(StoreError):
            self.store.sweep_temporaries()  # of trials that were killed while they wrote
        return outcome

    def _drive(self, plan: Plan) -> Outcome:
        """What became of the units.

        Raises StoreTakenError when the store was taken away meanwhile: nothing may be written then,
        not even a report.
        """
        store, lost = self.store, self.lease.lost
        done_before = sum(plan.work[unit.name].action == "done" for unit in plan.units)
        progress = Progress(self.console, done_before=done_before)
        with beginning() as check_interrupted:  # MLflow is loaded here, and may swallow a signal
            self.console.print(
                f"{len(plan.left)} of {len(plan.units)} units to do, {done_before} done before"
            )
            is_free, warn = self.is_free, progress.warned
            tracking = _Tracking(store, self.tracking_uri, warn) if is_free else None
            check_interrupted()
        listeners: list[Listener] = [self.watch, *([] if tracking is None else [tracking])]
        if self.metrics is not None:
            self.metrics.begin(_done_by_kind(plan), tracking.behind if tracking else None)
            listeners.append(self.metrics)
        try:
            outcome = drive(
                plan, store, self.options, progress, listeners, lost=lost, limit=self.limit,
                driver=self.lease.id,
            )  # fmt: skip
        finally:
            self.is_free = tracking is not None and tracking.close(_patience_s(self.limit))
        if self.limit is not None:  # getting ready for the students begins here
            self.limit = replace(self.limit, began_s=time.monotonic())
        if lost.is_set():
            raise StoreTakenError(
                f"{store.uri} is no longer held by this driver: "
                f"{holder(store) or 'its lease is gone'}"
            )
        return outcome


def _nothing_begun(plan: Plan) -> Outcome:
    return Outcome(
        failed=(),
        blocked=(),
        interrupted=False,
        stopped_early=None,
        left=len(plan.left),
        spent=True,
    )


def _patience_s(limit: Limit | None) -> float:
    """How long the end of a driving may wait for MLflow."""
    if limit is None:
        return _CLOSE_S
    return min(_CLOSE_S, max(1.0, 0.3 * (limit.end_s - time.monotonic())))


def _has_time(limit: Limit | None) -> Callable[[], bool]:
    """Whether there is time for what can be done later as well: a quarter of what was kept."""
    return lambda: limit is None or limit.end_s - time.monotonic() > 0.25 * limit.reserve_s


class _Stopwatch(Listener):
    """Measures what lies around the training."""

    def __init__(self) -> None:
        self._began = time.monotonic() - clock.process_age_s()
        self._first: float | None = None
        self._last: float | None = None

    def started(self, unit: Unit, first_step: int) -> None:
        self._first = self._first or time.monotonic()

    def changed(self, unit: Unit) -> None:
        self._last = time.monotonic()

    def finished(self, unit: Unit, live: Live) -> None:
        self._last = time.monotonic()

    @property
    def has_begun(self) -> bool:
        """Whether anything was trained."""
        return self._first is not None

    def overheads(self, outcomes: Sequence[Outcome]) -> Overheads:
        """Until now. Nothing where nothing was trained."""
        if self._first is None or self._last is None:
            return Overheads()
        asked = [one.asked_at for one in outcomes if one.cut_off and one.asked_at is not None]
        return Overheads(
            opening_s=self._first - self._began,
            stopping_s=max(0.0, self._last - asked[-1]) if asked else None,
            closing_s=time.monotonic() - self._last,
        )


def _done_by_kind(plan: Plan) -> Mapping[str, int]:
    return Counter(unit.kind for unit in plan.units if plan.work[unit.name].action == "done")


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

    def behind(self) -> int:
        """Runs of which MLflow lacks the latest state."""
        return 0 if self._writer is None else self._writer.behind

    def close(self, patience_s: float) -> bool:
        """Whether MLflow may be written to: not while the writer hangs in the middle of a run."""
        if self._writer is None:
            return True
        self._writer.close(patience_s)
        if self._writer.state:
            self._warn(self._writer.state)
        return not self._writer.is_writing
