"""Drives the units of a plan through Ray Tune until nothing is left, or until it is stopped."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from dashboards.store import child_uri
from orchestrator import paths
from orchestrator.admission import Capacity, Shape
from orchestrator.conductor import Conductor, Listener, TrialSettings
from orchestrator.errors import MachineError, TargetsweepError
from orchestrator.ledger import Entry, Ledger, State, Task
from orchestrator.plan import Plan
from orchestrator.progress import Progress
from orchestrator.store import Store
from orchestrator.units import Unit
from trainers.spec import Runtime

__all__ = ["DriveOptions", "Outcome", "check_machine", "check_options", "drive"]


@dataclass(frozen=True, kw_only=True)
class DriveOptions:
    """How to use the machine; nothing here changes a number.

    concurrency: runs at once; None is as many as there are GPUs (or CPU cores) for.
    workers_per_run: overrides every run's `scaling.workers`. gpus_per_run: a fraction lets runs
    share a GPU, a whole number makes each run that many workers. ray_address: an existing cluster;
    None starts Ray here.
    """

    concurrency: int | None = None
    workers_per_run: int | None = None
    gpus_per_run: float = 1.0
    ray_address: str | None = None
    threads: int | None = None
    compile: bool = False
    checkpoint_every_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the units ended. interrupted: a person (or a signal) stopped the sweep."""

    failed: Sequence[Entry]
    blocked: Sequence[Entry]
    interrupted: bool
    stopped_early: str | None
    left: int


def drive(
    plan: Plan,
    store: Store,
    options: DriveOptions,
    progress: Progress,
    listeners: Sequence[Listener] = (),
    lost: threading.Event | None = None,
) -> Outcome:
    """Runs what is left of a plan, as far as needs are or become met. lost: once set, the store is
    another driver's, and nothing more is begun."""
    store.delete(paths.stop_flag())
    with _ray(options), _scratch(store) as (local, shared):
        use_gpu, capacity = _cluster_capacity()
        ledger = Ledger(
            plan.left,
            capacity,
            held=plan.held_tokens,
            costs={unit.name: _cost(unit, plan) for unit in plan.left},
            shape_of=lambda task: _shape(task, options, use_gpu),
        )
        _refuse_unfit(plan.left, capacity, options, use_gpu)
        settings = TrialSettings(
            store_uri=store.uri,
            scratch=shared,
            use_gpu=use_gpu,
            runtime=Runtime(
                device="cuda" if use_gpu else "cpu",
                threads=options.threads,
                compile=options.compile,
                checkpoint_every_s=options.checkpoint_every_s,
            ),
        )
        if options.gpus_per_run != 1 and not use_gpu:
            progress.warned("there is no GPU: --gpus-per-run is ignored")
        conductor = Conductor(ledger, store, settings, [progress, *listeners], lost)
        progress.watch(conductor)
        with progress, _signals(conductor, progress) as interrupted:
            _tune(conductor, _slots(capacity, ledger, options), local)
    store.delete(paths.stop_flag())
    return _outcome(ledger, bool(interrupted))


def _outcome(ledger: Ledger, interrupted: bool) -> Outcome:
    early = ledger.stopped_early
    return Outcome(
        failed=ledger.in_state(State.FAILED),
        blocked=ledger.in_state(State.BLOCKED),
        interrupted=interrupted,
        stopped_early=None if early is None else f"{early.cause}: {early.message}",
        left=ledger.count(State.READY) + ledger.count(State.WAITING) + ledger.count(State.RUNNING),
    )


def _cost(unit: Unit, plan: Plan) -> float:
    return min(unit.cost, float(plan.work[unit.name].steps))


def _shape(task: Task, options: DriveOptions, use_gpu: bool) -> Shape:
    """--gpus-per-run 0.5 shares a GPU between two one-worker runs; 4 makes every run four workers
    of one GPU each. Without GPUs a worker takes a CPU slot."""
    assert isinstance(task, Unit)
    wide = int(options.gpus_per_run) if use_gpu and options.gpus_per_run > 1 else None
    workers = options.workers_per_run or wide or task.workers
    if task.kind == "targets":
        workers = 1
    share = min(options.gpus_per_run, 1.0) if use_gpu and workers == 1 else 1.0
    return Shape(workers=workers, devices_per_worker=share)


def check_options(options: DriveOptions) -> None:
    """Raises MachineError for what is wrong with them whatever the plan and the machine."""
    address = options.ray_address
    if address is not None and address.startswith("ray://"):
        raise MachineError(
            f"{address} would put the searcher into another process",
            "give --ray-address auto or host:port, on a machine of the cluster",
        )
    if options.gpus_per_run > 1 and options.gpus_per_run % 1:
        raise MachineError(
            f"--gpus-per-run {options.gpus_per_run:g} is neither a fraction nor a whole number",
            "give 0.5 to share a GPU, or 4 for four workers of one GPU each",
        )


def check_machine(units: Iterable[Unit], options: DriveOptions) -> None:
    """Raises MachineError for runs that this machine cannot take, before Ray is started on it. Of a
    cluster elsewhere nothing is known yet; `drive` looks then."""
    if options.ray_address is None:
        import torch

        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        capacity = Capacity(float(gpus or _local_slots(options)))
        _refuse_unfit(units, capacity, options, bool(gpus))


def _refuse_unfit(
    units: Iterable[Unit], capacity: Capacity, options: DriveOptions, use_gpu: bool
) -> None:
    """Before any trial starts: runs that no device could take, or whose batch cannot be split."""
    for unit in units:
        shape = _shape(unit, options, use_gpu)
        batch = getattr(unit.spec, "batch_size", 0)
        if batch % shape.workers:
            raise MachineError(
                f"{unit.label} has batches of {batch}, which {shape.workers} workers cannot share",
                "choose a number of workers that divides training.batch_size",
            )
        norm_batch = getattr(unit.spec, "norm_batch", None)
        if norm_batch is not None and batch // shape.workers % norm_batch:
            raise MachineError(
                f"{unit.label}: norm_batch {norm_batch} does not divide what each of "
                f"{shape.workers} workers sees, {batch // shape.workers} samples",
                "choose another number of workers",
            )
        if not capacity.can_ever_fit(shape):
            kind = "GPUs" if use_gpu else "CPU slots"
            raise MachineError(
                f"{unit.label} wants {shape.devices:g} {kind} ({shape.workers} workers), but only "
                f"{capacity.total:g} are there",
                "lower scaling.workers or --workers-per-run",
            )


# -- Ray ----------------------------------------------------------------------------------------

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the store keeps the metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's gives a trial no moment to save
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",  # Tune's own resume is never used
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_COLOR_PREFIX": "0",  # its remarks on dead workers go to logs too
    "RAY_USAGE_STATS_ENABLED": "0",
}


@contextmanager
def _ray(options: DriveOptions) -> Iterator[None]:
    """A Ray cluster: the one at the address, or one of this machine that ends with the block."""
    check_options(options)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = options.ray_address
    if address is None:
        arguments |= {"num_cpus": _local_slots(options), "include_dashboard": False}
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        # "local": without an address Ray would join any cluster that it finds on this machine.
        ray.init(address=address or "local", **arguments)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise MachineError(
            f"no Ray cluster at {address or 'this machine'}: {error}",
            "check the address (`targetsweep doctor --ray-address …`)",
        ) from error
    signal.signal(signal.SIGTERM, terminate)  # Ray's own ends the process without a word
    try:
        yield
    finally:
        ray.shutdown()


_SCRATCH = "targetsweep-driver-"


def _sweep_scratch() -> None:
    """Removes the folders of drivers that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*-*"):
        pid = folder.name.removeprefix(_SCRATCH).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _scratch(store: Store) -> Iterator[tuple[str, str]]:
    """Folders for what Tune and Train insist on writing: Tune's here, Train's where all nodes see
    it. Nothing in them is needed again."""
    _sweep_scratch()
    local = tempfile.mkdtemp(prefix=f"{_SCRATCH}{os.getpid()}-")
    shared = child_uri(store.uri, ".ray")
    if store.is_local:
        shutil.rmtree(shared, ignore_errors=True)  # a killed driver's
    try:
        yield local, shared
    finally:
        shutil.rmtree(local, ignore_errors=True)
        if store.is_local:
            shutil.rmtree(shared, ignore_errors=True)


def _local_slots(options: DriveOptions) -> int:
    """CPU slots of a Ray that is started here; more than there are cores if somebody says so, and
    two at least, so that any machine can try a distributed run."""
    return max(os.cpu_count() or 1, options.concurrency or 1, options.workers_per_run or 1, 2)


def _cluster_capacity() -> tuple[bool, Capacity]:
    """(whether trials train on GPUs, devices in all)."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus, cpus = resources.get("GPU", 0.0), resources.get("CPU", 1.0)
    return bool(gpus), Capacity(float(gpus or cpus))


def _slots(capacity: Capacity, ledger: Ledger, options: DriveOptions) -> int:
    """Trials that may run at once: what fits, within --concurrency."""
    if options.concurrency is not None:
        return options.concurrency
    narrowest = min((entry.shape.devices for entry in ledger.entries.values()), default=1.0)
    return max(1, int(capacity.total / narrowest + 1e-6))


def _tune(conductor: Conductor, slots: int, folder: str) -> None:
    """Tune's loop, in this thread, until the searcher says that nothing is left."""
    from ray import tune

    from orchestrator.searcher import UnitSearcher
    from orchestrator.trial import run_trial

    for name in ("ray.tune", "ray.train", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    trainable = tune.with_resources(run_trial, _resources)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=UnitSearcher(conductor),
            # Without this Tune keeps one pending trial, and a wide cluster idles.
            max_concurrent_trials=slots,
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=folder,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    try:
        tuner.fit()
    except tune.error.TuneError as error:
        raise TargetsweepError(f"Ray Tune gave up: {error}") from error


def _resources(config: dict[str, Any]) -> Any:
    """A one-worker trial holds its device. A distributed one holds none itself: its workers, which
    the ledger admitted, live outside; memory is the resource that every node has."""
    from ray import tune

    if config["workers"] > 1:
        return tune.PlacementGroupFactory([{"memory": 2.0**20}])
    if config["use_gpu"]:
        return tune.PlacementGroupFactory([{"CPU": 1.0, "GPU": config["devices_per_worker"]}])
    return tune.PlacementGroupFactory([{"CPU": 1.0}])


@contextmanager
def _signals(conductor: Conductor, progress: Progress) -> Iterator[list[int]]:
    """First Ctrl-C or SIGTERM: running trials checkpoint and end. Second: stop now."""
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        progress.stopping = True
        progress.warned("stopping; running trials save a checkpoint (again to stop at once)")
        conductor.stop()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
