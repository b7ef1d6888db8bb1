"""Drives the units of a plan through Ray Tune until nothing is left, or until it is stopped."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import psutil

from dashboards.filesystem import child_uri
from orchestrator.admission import Capacity, Rooms, Shape
from orchestrator.budget import Limit
from orchestrator.bulletin import posting
from orchestrator.clusterview import ClusterView, Picture, read_cluster
from orchestrator.conductor import Conductor, TrialSettings
from orchestrator.devices import WAIT_S, Accelerator, choose_gpus, own_gpus, seen_by
from orchestrator.errors import MachineError, StoreError
from orchestrator.estimate import Pace, measured_rates
from orchestrator.following import ClusterLostError, Follower
from orchestrator.interrupts import beginning, heed_flag, stopping
from orchestrator.ledger import Entry, Ledger, State, Task
from orchestrator.listener import Listener
from orchestrator.pacing import Pacing
from orchestrator.plan import Plan
from orchestrator.progress import Progress
from orchestrator.raycluster import check_address, connect
from orchestrator.rayprocesses import end_process, survive_memory_monitor
from orchestrator.retry import Failure
from orchestrator.shapes import refuse_unfit, shape_of
from orchestrator.sharing import Sharing, most_runs, shipped_table
from orchestrator.stopping import forget, forget_others, watching
from orchestrator.store import Store
from orchestrator.timebox import Timebox
from orchestrator.tuning import Tuning, repeating
from orchestrator.units import Unit
from orchestrator.worth import Worth
from trainers.spec import Runtime

__all__ = ["DriveOptions", "Outcome", "check_machine", "check_options", "drive"]

_LOOK_S = 0.2
_LEAVE_S = 10.0
_LEAVE_SOON_S = 2.0
"""Twenty rounds of Tune's loop: it is best outside of Ray's calls when Ray shuts down."""


@dataclass(frozen=True, kw_only=True)
class DriveOptions:
    """How to use the machine; nothing here changes a number.

    accelerator: what runs train on. concurrency: runs at once; None is as many as there are GPUs
    (or CPU cores) for. workers_per_run: overrides every run's `scaling.workers`. gpus_per_run:
    overrides `scaling.gpus_per_worker`: a fraction lets runs share a GPU, a whole number makes each
    run that many workers. ray_address: an existing cluster; None starts Ray here. hang_after_s:
    seconds without a step, or without a word, after which a trial counts as hung. metrics_port,
    metrics_host: where Prometheus may read; None is nowhere.
    """

    accelerator: Accelerator = "auto"
    concurrency: int | None = None
    workers_per_run: int | None = None
    gpus_per_run: float | None = None
    ray_address: str | None = None
    threads: int | None = None
    compile: bool = False
    cuda_graphs: bool = True
    checkpoint_every_s: float = 60.0
    hang_after_s: float = 900.0
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the units ended. interrupted: a person (or a signal) stopped the sweep. stopped_early:
    the failure that would have been everybody's. redo: names of units left for another plan, since
    something they learn from was damaged. done: names of those that ended well. spent: the time
    limit left some. cut_off: the step at which each run was saved that it cut off, by name.
    asked_at: when it asked for that, on time.monotonic's clock."""

    failed: Sequence[Entry]
    blocked: Sequence[Entry]
    interrupted: bool
    stopped_early: Failure | None
    left: int
    redo: tuple[str, ...] = ()
    done: frozenset[str] = frozenset()
    spent: bool = False
    cut_off: Mapping[str, int] = field(default_factory=dict)
    asked_at: float | None = None


def drive(
    plan: Plan,
    store: Store,
    options: DriveOptions,
    progress: Progress,
    listeners: Sequence[Listener] = (),
    lost: threading.Event | None = None,
    limit: Limit | None = None,
    *,
    driver: str,
) -> Outcome:
    """Runs what is left of a plan, as far as needs are or become met, or until the limit of its
    time. lost: once set, the store is another driver's, and nothing more is begun. driver: the
    lease's id.

    Raises ClusterLostError when the cluster's head is gone; what was saved is in the store.
    """
    forget_others(store, driver)
    check_options(options)
    is_shared = options.ray_address is not None
    with (
        beginning() as check_interrupted,
        connect(options.ray_address, _local_slots(options)),
        _scratch(store, driver) as (local, shared),
    ):
        survive_memory_monitor()
        view = ClusterView(lambda: seen_by(options.accelerator, read_cluster(is_shared=is_shared)))
        use_gpu, capacity, limit = _capacity(view, options, progress, limit)
        shape_of = _shapes(plan, options, view.picture, progress, use_gpu, capacity.total)
        ledger = _ledger(plan, capacity, shape_of, limit)
        timebox = _timebox(limit, plan, _pace(store, plan, view.picture, shape_of), progress)
        conductor = Conductor(
            ledger,
            store,
            _settings(store, driver, shared, options, use_gpu=use_gpu),
            [progress, *listeners],
            lost,
            kill=end_process,
            is_node_gone=view.is_gone,
            timebox=timebox,
        )
        for listener in (progress, *listeners):
            listener.watch(conductor)
        follower = Follower(view, conductor, progress, store, use_gpu=use_gpu, is_shared=is_shared)
        check_interrupted()
        with (
            progress,
            stopping(conductor, progress) as interrupted,
            watching(store, driver, partial(heed_flag, conductor, progress, interrupted)),
            repeating(partial(_look, conductor, progress), progress.warned),
            posting(progress, store, driver),
            view.watching(),
        ):
            _tune(Tuning(conductor, local), follower, conductor)
    spent = timebox if timebox is not None and timebox.spent and not interrupted else None
    is_lost = lost is not None and lost.is_set()
    # Else a flag just now is for the next round.
    if interrupted or spent or is_lost or ledger.stopped_early:
        forget(store, driver)
    return _outcome(ledger, bool(interrupted), spent)


def _ledger(
    plan: Plan, capacity: Capacity, shape_of: Callable[[Task], Shape], limit: Limit | None
) -> Ledger:
    return Ledger(
        plan.left,
        capacity,
        held=plan.held_tokens,
        costs=plan.costs_left,
        shape_of=shape_of,
        worth=_worth(plan, limit),
    )


def _worth(plan: Plan, limit: Limit | None) -> Worth | None:
    """Who goes first: by priority, and under a limit by means. None: nobody asked for an order."""
    if limit is None and not plan.priorities:
        return None
    return Worth(plan.left, plan.priorities, None if limit is None else plan.means)


def _pace(store: Store, plan: Plan, picture: Picture, shape_of: Callable[[Task], Shape]) -> Pace:
    rates = measured_rates(store, plan, picture.gpu_models, only_left=True)
    return Pace(rates, plan.infos, shape_of)


def _timebox(limit: Limit | None, plan: Plan, pace: Pace, progress: Progress) -> Timebox | None:
    """Now that all is ready for the first run."""
    progress.expect(pace, plan.infos)
    if limit is None:
        return None
    limit = limit.ready(time.monotonic())
    units = {unit.name: unit for unit in plan.left}
    return Timebox(limit, Pacing(pace, plan.infos, plan.costs_left), units)


def _look(conductor: Conductor, progress: Progress) -> None:
    """About once a second: at silent trials, and at the limit of the time."""
    conductor.look()
    if conductor.heed_limit():
        progress.noted("the time is nearly over: running trials save a checkpoint")


def _tune(tuning: Tuning, follower: Follower, conductor: Conductor) -> None:
    """Until nothing is left, or a second Ctrl-C, or the end of the cluster or of the time."""
    tuning.start()
    patience_s = _LEAVE_S
    try:
        while not tuning.wait(_LOOK_S):
            follower.follow()
            if conductor.must_leave:
                patience_s = _LEAVE_SOON_S
                break
    except ClusterLostError:
        patience_s = 0.0  # Ray's calls do not come back
        raise
    finally:
        tuning.leave(patience_s)
        follower.end()


def _outcome(ledger: Ledger, interrupted: bool, spent: Timebox | None) -> Outcome:
    """spent: the time limit, where it is why nothing more was begun."""
    left = ledger.count(State.READY) + ledger.count(State.WAITING) + ledger.count(State.RUNNING)
    return Outcome(
        failed=ledger.in_state(State.FAILED),
        blocked=ledger.in_state(State.BLOCKED),
        interrupted=interrupted,
        stopped_early=ledger.stopped_early,
        left=left,
        redo=tuple(entry.task.name for entry in ledger.in_state(State.REDO)),
        done=frozenset(entry.task.name for entry in ledger.in_state(State.DONE)),
        spent=bool(spent and left),
        cut_off=spent.cut_off if spent and left else {},
        asked_at=spent.asked_at if spent and left else None,
    )


def _settings(
    store: Store, driver: str, scratch: str, options: DriveOptions, *, use_gpu: bool
) -> TrialSettings:
    runtime = Runtime(
        device="cuda" if use_gpu else "cpu",
        threads=options.threads,
        compile=options.compile,
        cuda_graphs=options.cuda_graphs,
        checkpoint_every_s=options.checkpoint_every_s,
    )
    return TrialSettings(
        store_uri=store.uri,
        scratch=scratch,
        use_gpu=use_gpu,
        driver=driver,
        runtime=runtime,
        hang_after_s=options.hang_after_s,
    )


# -- what there is, and what fits ------------------------------------------------------------------


def check_options(options: DriveOptions) -> None:
    """Raises MachineError for what is wrong with them whatever the plan and the machine."""
    check_address(options.ray_address)
    gpus = options.gpus_per_run
    if gpus is not None and gpus > 1 and gpus % 1:
        raise MachineError(
            f"--gpus-per-run {gpus:g} is neither a fraction nor a whole number",
            "give 0.5 to share a GPU, or 4 for four workers of one GPU each",
        )


def check_machine(units: Iterable[Unit], options: DriveOptions) -> None:
    """Raises MachineError for runs that this machine cannot take, before Ray is started on it. Of a
    cluster elsewhere nothing is known yet; `drive` looks then."""
    if options.ray_address is None:
        gpus = own_gpus(options.accelerator)
        total = float(gpus or _local_slots(options))
        _refuse_unfit(units, total, options, use_gpu=bool(gpus))


def _refuse_unfit(
    units: Iterable[Unit], total: float, options: DriveOptions, *, use_gpu: bool
) -> None:
    pairs = ((unit, _shape(unit, options, use_gpu, total)) for unit in units)
    refuse_unfit(pairs, total, use_gpu=use_gpu)


def _auto_shares(plan: Plan, picture: Picture, progress: Progress) -> dict[str, float]:
    """By unit, what it takes of a GPU if the sweep leaves that to `auto`, by what is there at the
    start: nodes that join later are shared alike."""
    sharing = Sharing(shipped_table(), picture.gpu_models, plan.infos)
    students = sum(unit.gpus_auto and unit.kind == "student" for unit in plan.left)
    at_most = most_runs(students, [(node.gpus, node.cpus) for node in picture.nodes])
    for choice in sharing.choices(plan.left):
        if min(choice.runs, at_most) > 1:
            progress.noted(f"{min(choice.runs, at_most)} runs of {choice.load} share a GPU")
    return {unit.name: sharing.share(unit, at_most) for unit in plan.left}


def _shapes(
    plan: Plan,
    options: DriveOptions,
    picture: Picture,
    progress: Progress,
    use_gpu: bool,
    devices: float,
) -> Callable[[Task], Shape]:
    """What a unit of the plan takes. Raises MachineError for a unit that nothing here can take."""
    _refuse_unfit(plan.left, devices, options, use_gpu=use_gpu)
    shares = _auto_shares(plan, picture, progress)
    widest = picture.widest(use_gpu=use_gpu) or devices

    def shape(task: Task) -> Shape:
        return _shape(task, options, use_gpu, widest, shares.get(task.name, 1.0))

    if use_gpu and (short := picture.short_of_cpus(_smallest(plan, shape))):
        progress.warned(short)
    if options.gpus_per_run not in (None, 1) and not use_gpu:
        progress.warned("runs train on CPUs: --gpus-per-run is ignored")
    return shape


def _smallest(plan: Plan, shape_of: Callable[[Task], Shape]) -> float:
    """What a one-worker run takes of a GPU, at the least."""
    shapes = map(shape_of, plan.left)
    return min((one.devices_per_worker for one in shapes if one.workers == 1), default=1.0)


def _shape(
    task: Task, options: DriveOptions, use_gpu: bool, devices: float, auto_share: float = 1.0
) -> Shape:
    assert isinstance(task, Unit)
    return shape_of(
        task,
        use_gpu=use_gpu,
        devices=devices,
        workers_per_run=options.workers_per_run,
        gpus_per_run=options.gpus_per_run,
        auto_share=auto_share,
    )


def _local_slots(options: DriveOptions) -> int:
    """CPU slots of a Ray that is started here; more than there are cores if somebody says so, and
    two at least, so that any machine can try a distributed run."""
    return max(os.cpu_count() or 1, options.concurrency or 1, options.workers_per_run or 1, 2)


def _capacity(
    view: ClusterView, options: DriveOptions, progress: Progress, limit: Limit | None
) -> tuple[bool, Capacity, Limit | None]:
    """(whether trials train on GPUs, devices in all, the limit without what was waited for them,
    which tells nothing of how long the end takes)."""
    began = time.monotonic()
    wait_s = WAIT_S if limit is None else min(WAIT_S, limit.stop_at - began)
    is_shared = options.ray_address is not None
    use_gpu = choose_gpus(
        view, options.accelerator, progress.noted, is_shared=is_shared, wait_s=wait_s
    )
    if limit is not None:
        limit = replace(limit, began_s=limit.began_s + time.monotonic() - began)
    total = view.picture.total(use_gpu=use_gpu)
    # What others hold, the first look does not tell from what is on its way (`ClusterView.taken`).
    rooms = Rooms(view.rooms(use_gpu=use_gpu, is_shared=False))
    return use_gpu, Capacity(total, most_runs=options.concurrency, rooms=rooms), limit


# -- scratch and signals ---------------------------------------------------------------------------

_SCRATCH = "targetsweep-driver-"
_SHARED = ".ray"


def _sweep_scratch() -> None:
    """Removes the folders of drivers that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*-*"):
        pid = folder.name.removeprefix(_SCRATCH).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _scratch(store: Store, driver: str) -> Iterator[tuple[str, str]]:
    """Folders for what Tune and Train insist on writing: Tune's here, Train's where all nodes see
    it. Nothing in them is needed again."""
    _sweep_scratch()
    local = tempfile.mkdtemp(prefix=f"{_SCRATCH}{os.getpid()}-")
    own = f"{_SHARED}/{driver}"
    with suppress(StoreError):
        store.delete_tree(_SHARED)  # a killed driver's
    try:
        yield local, child_uri(store.uri, own)
    finally:
        shutil.rmtree(local, ignore_errors=True)
        with suppress(StoreError):
            store.delete_tree(own)  # of a driver that took the store over nothing
            if not store.list(_SHARED):
                store.delete_tree(_SHARED)
