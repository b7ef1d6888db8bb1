"""The function Ray Tune runs: one attempt at one unit, through Ray Train's TorchTrainer.

One worker: `num_workers=0`, Train's local mode, inside the Tune trial's own process. The process
is reused between trials and trains in one thread that outlives them, so that torch, the CUDA
context, the data set, and whatever is bound to a thread (CUDA graphs) stay warm.
Several workers: the same loop on Train's workers, which live outside the trial's placement group.

A failure is reported, not raised: the process stays warm, and the driver decides what to do. Only
a process that dies is an error to Tune.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from orchestrator import paths
from orchestrator.retry import Cause
from orchestrator.store import Store

__all__ = ["StopPoller", "TrialConfig", "failure_report", "run_trial"]

TrialConfig = dict[str, Any]
"""{"store": URI, "unit": name, "attempt": name, "workers": n, "devices_per_worker": x,
"use_gpu": bool, "runtime": fields of Runtime, "scratch": folder for Ray Train}: never data."""

_POLL_S = {True: 0.3, False: 2.0}
"""Seconds between looks at the stop flag, by whether the store is local: on an object store each
look is a request."""


class StopPoller:
    """The stop flag of a store as something the loop may read every step: a thread looks, the loop
    reads a variable."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._flag = threading.Event()
        self._end = threading.Event()
        threading.Thread(target=self._poll, name="stop-flag", daemon=True).start()

    def _poll(self) -> None:
        while not self._end.is_set():
            try:
                if self._store.exists(paths.stop_flag()):
                    self._flag.set()
            except Exception:  # a store that cannot be read now: the run's own writes will say so
                pass
            self._end.wait(_POLL_S[self._store.is_local])

    def is_set(self) -> bool:
        return self._flag.is_set()

    def close(self) -> None:
        self._end.set()


def failure_report(error: BaseException) -> dict[str, Any]:
    """One failure, classified exactly once."""
    text = "".join(traceback.format_exception(error))
    return {
        "event": "failed",
        "cause": _cause(error).value,
        "message": _one_line(error),
        "traceback": text[-20_000:],
    }


def _one_line(error: BaseException) -> str:
    """The kind of error, what is wrong and, where it says so, what to do."""
    problem = str(getattr(error, "problem", "") or error).strip()
    remedy = getattr(error, "remedy", "")
    first = problem.partition("\n")[0]
    return f"{type(error).__name__}: {first}" + (f"; remedy: {remedy}" if remedy else "")


_LOST = (
    "WorkerHealthCheckTimeoutError",
    "WorkerGroupStartupFailedError",
    "WorkerGroupStartupTimeoutError",
)
"""Ray Train's names, which are not public, for workers that are gone or never came."""

_PEER_GONE = re.compile("connection (closed|reset) by peer|remote process exited", re.IGNORECASE)
"""What gloo and NCCL say on the workers that are left when another one died."""


def _cause(error: BaseException) -> Cause:
    import torch
    from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError
    from ray.train import PreemptionError

    from trainers.errors import NonFiniteLossError

    if isinstance(error, NonFiniteLossError):
        return Cause.DIVERGED
    if isinstance(error, torch.OutOfMemoryError | MemoryError | OutOfMemoryError):
        return Cause.OUT_OF_MEMORY
    if isinstance(error, PreemptionError):
        return Cause.PREEMPTED
    if isinstance(error, RayActorError | WorkerCrashedError) or type(error).__name__ in _LOST:
        return Cause.WORKER_LOST
    if isinstance(error, RuntimeError) and _PEER_GONE.search(str(error)):
        return Cause.WORKER_LOST
    return Cause.ERROR


@lru_cache(maxsize=1)
def _training_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="training")


def _in_training_thread(
    reports: Callable[[], Iterator[dict[str, Any]]],
) -> Iterator[dict[str, Any]]:
    """Runs a generator in the process's training thread and yields what it yields. Training never
    waits for the reader: reports queue up."""
    outbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def consume() -> None:
        try:
            for report in reports():
                outbox.put(report)
        except BaseException as error:
            outbox.put(failure_report(error))
        finally:
            outbox.put(None)

    _training_thread().submit(consume)
    while (report := outbox.get()) is not None:
        yield report


def _unit_reports(config: TrialConfig) -> Iterator[dict[str, Any]]:
    """One worker's part of the unit, whatever the number of workers."""
    keep = _Throttle() if config["workers"] == 1 else _lockstep
    for report in _all_reports(config):
        if keep(report):
            yield {"unit": config["unit"], **report}


class _Throttle:
    """Passes evaluations and signs of life at most every half second: a teacher validates a hundred
    times a second, and each report costs the driver about 10 ms."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, report: dict[str, Any]) -> bool:
        if report["event"] not in ("evaluation", "progress"):
            return True
        now = time.monotonic()
        if now - self._last < 0.5:
            return False
        self._last = now
        return True


def _lockstep(report: dict[str, Any]) -> bool:
    """Train's report is a barrier, so every worker must pass the same ones: no clock may decide."""
    if report["event"] == "evaluation":
        return int(report["step"]) % 50 == 0
    return report["event"] in ("started", "snapshot", "weights", "checkpoint", "finished")


def _all_reports(config: TrialConfig) -> Iterator[dict[str, Any]]:
    import torch

    from orchestrator.worker import execute
    from trainers.spec import Runtime

    store = Store(config["store"])
    runtime = dict(config["runtime"])
    if config["use_gpu"]:
        runtime["device"] = f"cuda:{torch.cuda.current_device()}"
    poller = StopPoller(store)
    try:
        yield from execute(store, config["unit"], Runtime(**runtime), poller, config["attempt"])
    finally:
        poller.close()


def run_trial(config: TrialConfig) -> None:
    """Tune's trainable. Every report names its unit, so that the driver needs no trial ids. Workers
    of a distributed run report past this function: that they ended well is then assumed, and
    counts only where their own last word got lost."""
    from ray import tune

    last: dict[str, Any] = {}
    for report in _local(config) if config["workers"] == 1 else _distributed(config):
        last = {"unit": config["unit"], **report}
        tune.report(last)
    if last.get("event") not in ("finished", "failed"):
        word = {"event": "finished", "reason": "done", "step": 0, "assumed": True}
        tune.report({"unit": config["unit"], **word})


def _local(config: TrialConfig) -> Iterator[dict[str, Any]]:
    """Train's local mode calls the loop in this process. Reports go through Tune: inside a Tune
    trial, `ray.train.report` refuses."""
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    collected: list[Iterator[dict[str, Any]]] = []

    def loop() -> None:
        collected.append(_in_training_thread(lambda: _unit_reports(config)))

    TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=0)).fit()
    yield from collected[0]


def _distributed_loop(config: TrialConfig) -> None:
    """On each of Train's workers. Only rank 0's metrics are forwarded to Tune."""
    from ray import train

    for report in _unit_reports(config):
        train.report(report)


def _distributed(config: TrialConfig) -> Iterator[dict[str, Any]]:
    """A Train run with workers of its own. Its name carries the unit and the attempt: a second run
    of one name and folder would reload the first one's state."""
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    # Train's controller looks for reports this often; its default of two seconds a report would be
    # most of a short run.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    devices = {"GPU" if config["use_gpu"] else "CPU": config["devices_per_worker"]}
    trainer = TorchTrainer(
        _distributed_loop,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=config["workers"], use_gpu=config["use_gpu"], resources_per_worker=devices
        ),
        run_config=RunConfig(
            name=f"{config['unit']}-{config['attempt']}",
            storage_path=config["scratch"],
            callbacks=[TuneReportCallback()],  # type: ignore[no-untyped-call, list-item]
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        yield failure_report(_first_failure(error))


def _first_failure(error: BaseException) -> BaseException:
    """The exception that says why, out of what Ray Train wraps around it: the lowest rank's that is
    no mere loss of a worker, since the others lose theirs when one of them fails."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    found = [_unwrapped(failures[rank]) for rank in sorted(failures)]
    return next((one for one in found if _cause(one) is not Cause.WORKER_LOST), found[0])


def _unwrapped(error: BaseException) -> BaseException:
    for name in ("controller_failure", "health_check_failure", "_base_exc"):
        error = getattr(error, name, error)
    return error
