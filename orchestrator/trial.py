"""The function Ray Tune runs: one attempt at one unit, through Ray Train's TorchTrainer.

One worker: `num_workers=0`, Train's local mode, inside the Tune trial's own process. The process
is reused between trials and trains in one thread that outlives them, so that torch, the CUDA
context, the data set, and whatever is bound to a thread (CUDA graphs) stay warm.
Several workers: the same loop on Train's workers, which live outside the trial's placement group.

A failure is reported, not raised: the process stays warm, and the driver decides what to do. A
process that must not train again (out of memory, a broken device, a node about to leave) ends
after its report, and so does one whose loop hangs (`watchdog`).
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

from orchestrator import paths
from orchestrator.faults import carry_process, failure_report, first_failure
from orchestrator.orders import check_seen
from orchestrator.polling import StopPoller
from orchestrator.rayprocesses import labels_that_avoid, this_process
from orchestrator.retry import Cause
from orchestrator.store import Store
from orchestrator.watchdog import Watchdog, die_of_hang

__all__ = ["LEAST_REPORT_S", "TrialConfig", "failure_report", "run_trial"]

TrialConfig = dict[str, Any]
"""{"store": URI, "unit": name, "attempt": name, "workers": n, "devices_per_worker": x,
"use_gpu": bool, "avoid": ids of nodes that were set aside, "runtime": fields of Runtime,
"scratch": folder for Ray Train, "hang_after_s", "report_every_s", "driver": id of the lease}: never
data."""

LEAST_REPORT_S = 0.5
"""Between two reports of how far a one-worker run is."""

_FIRST_SIGN_S = 1.0
_SIGN_S = 20.0
"""Seconds until a trial that has nothing to say yet says that it lives, and between such signs
after."""


_PASSING = ("evaluation", "progress")
"""Reports that the next one makes old. What they say is in the store, or soon said again, as an
evaluation's images/s."""


@lru_cache(maxsize=1)
def _training_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="training")


def _in_training_thread(
    reports: Callable[[], Iterator[dict[str, Any]]],
    first_sign_s: float = _FIRST_SIGN_S,
    sign_s: float = _SIGN_S,
) -> Iterator[dict[str, Any]]:
    """Runs a generator in the process's training thread and yields what it yields, and signs of
    life where that says nothing. Training never waits for the reader: reports queue up, and where
    the driver is slow, with a hundred trials to listen to, those that only say how far it is give
    way to what came after them."""
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
    wait_s = first_sign_s
    while True:
        try:
            report = outbox.get(timeout=wait_s)
        except queue.Empty:
            report, wait_s = _sign(), sign_s
        while report is not None and report["event"] in _PASSING and not outbox.empty():
            report = outbox.get()
        if report is None:
            return
        yield report


def _sign() -> dict[str, Any]:
    return {"event": "alive", "processes": [this_process()]}


def _sign_s(config: TrialConfig) -> float:
    return min(_SIGN_S, float(config["hang_after_s"]) / 4)


def _unit_reports(config: TrialConfig) -> Iterator[dict[str, Any]]:
    """One worker's part of the unit, whatever the number of workers."""
    is_alone = config["workers"] == 1
    keep = _Throttle(float(config["report_every_s"])) if is_alone else _lockstep
    for report in _all_reports(config):
        if keep(report):
            yield {"unit": config["unit"], **report}


class _Throttle:
    """Passes evaluations and signs of life no more often than that: a teacher validates a hundred
    times a second, and each report costs the driver about 10 ms."""

    def __init__(self, every_s: float = LEAST_REPORT_S) -> None:
        self._every_s = every_s
        self._last = float("-inf")

    def __call__(self, report: dict[str, Any]) -> bool:
        if report["event"] not in _PASSING:
            return True
        now = time.monotonic()
        if now - self._last < self._every_s:
            return False
        self._last = now
        return True


def _lockstep(report: dict[str, Any]) -> bool:
    """Train's report is a barrier, so every worker must pass the same ones: no clock may decide."""
    if report["event"] == "evaluation":
        return int(report["step"]) % 50 == 0
    return report["event"] in ("started", "snapshot", "weights", "checkpoint", "finished", "failed")


def _all_reports(config: TrialConfig) -> Iterator[dict[str, Any]]:
    import torch

    from orchestrator.worker import execute
    from trainers.distributed import World
    from trainers.spec import Runtime

    store, world = Store(config["store"]), World.current()
    runtime = config["runtime"] | {
        "decode_threads": _decode_threads(config),
        "share": config["devices_per_worker"],
    }
    if config["use_gpu"]:
        runtime["device"] = f"cuda:{torch.cuda.current_device()}"
    check_seen(store, config.get("driver", ""))
    with _watched(config, store, world.rank):
        processes = world.gather(this_process())
        nodes = {process["node_id"] for process in (*processes, config.get("host") or processes[0])}
        poller = StopPoller(store, nodes, config.get("driver", ""), looks=world.rank == 0)
        try:
            for report in execute(
                store, config["unit"], Runtime(**runtime), poller, config["attempt"]
            ):
                if report["event"] == "started":
                    report = {**report, "processes": processes}
                yield _preempted(report, poller.draining) if poller.draining else report
        finally:
            poller.close()


def _decode_threads(config: TrialConfig) -> int | None:
    """This node's cores, by how much of its devices a worker takes: the runs beside it decode too.
    None outside of Ray, where nobody is beside it."""
    import ray

    from trainers.data.pool import threads_of_share

    if not ray.is_initialized():
        return None
    here = ray.get_runtime_context().get_node_id()
    node: dict[str, float] = next(
        (node["Resources"] for node in ray.nodes() if node["NodeID"] == here),  # type: ignore[no-untyped-call]
        {},
    )
    devices = node.get("GPU" if config["use_gpu"] else "CPU", 1.0)
    return threads_of_share(config["devices_per_worker"] / devices)


@contextmanager
def _watched(config: TrialConfig, store: Store, rank: int) -> Iterator[None]:
    die = partial(die_of_hang, store, config["unit"], config["attempt"], rank)
    watchdog = Watchdog(float(config["hang_after_s"]), die)
    try:
        yield
    finally:
        watchdog.close()


def _preempted(report: dict[str, Any], node: str) -> dict[str, Any]:
    """A run that stopped because its node leaves did not end as it was asked to: it goes on
    elsewhere. The process must not be given another one."""
    if report["event"] != "finished" or report["reason"] != "stopped":
        return report
    return {
        **report,
        "event": "failed",
        "cause": Cause.PREEMPTED.value,
        "message": f"node {node[:8]} takes no more runs; saved at step {report['step']}",
        "spoilt": True,
    }


class _EndProcessError(Exception):
    """Tells Tune, after all was reported, not to use this process again."""


def run_trial(config: TrialConfig) -> None:
    """Tune's trainable. Every report names its unit, so that the driver needs no trial ids. Workers
    of a distributed run report past this function: that they ended well is then assumed, and
    counts only where their own last word got lost."""
    from ray import tune

    last: dict[str, Any] = {}
    for report in _reports(config):
        last = {"unit": config["unit"], **report}
        if last["event"] == "failed" and "processes" not in last:  # it may never have begun
            last |= {"processes": [this_process()], "is_host": config["workers"] > 1}
        tune.report(last)
    if last.get("spoilt"):
        raise _EndProcessError(last["message"])
    if last.get("event") not in ("finished", "failed"):
        word = {"event": "finished", "reason": "done", "step": 0, "assumed": True}
        tune.report({"unit": config["unit"], **word})


def _reports(config: TrialConfig) -> Iterator[dict[str, Any]]:
    """What fails here, before there is any training (a node without the store's credentials, say),
    is told like what fails in it. A warm process of a node that is about to leave begins nothing:
    it only makes room."""
    try:
        yield from _begun(config)
    except Exception as error:
        yield failure_report(error)


def _begun(config: TrialConfig) -> Iterator[dict[str, Any]]:
    host = this_process()
    if host["node_id"] and Store(config["store"]).exists(paths.drain_flag(host["node_id"])):
        report = {"event": "finished", "reason": "stopped", "step": 0}
        yield _preempted(report, host["node_id"]) | {"begun": False}
    elif config["workers"] == 1:
        yield from _local(config)
    else:
        yield from _distributed(config | {"host": host})


def _local(config: TrialConfig) -> Iterator[dict[str, Any]]:
    """Train's local mode calls the loop in this process. Reports go through Tune: inside a Tune
    trial, `ray.train.report` refuses."""
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    collected: list[Iterator[dict[str, Any]]] = []

    def loop() -> None:
        reports = partial(_unit_reports, config)
        collected.append(_in_training_thread(reports, sign_s=_sign_s(config)))

    TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=0)).fit()
    yield from collected[0]


def _distributed_loop(config: TrialConfig) -> None:
    """On each of Train's workers. Only rank 0's metrics are forwarded to Tune. An error carries
    along which worker it was."""
    from ray import train

    try:
        for report in _unit_reports(config):
            train.report(report)
    except Exception as error:
        carry_process(error, this_process())
        raise


def _distributed(config: TrialConfig) -> Iterator[dict[str, Any]]:
    """A Train run with workers of its own. Its name carries the unit and the attempt: a second run
    of one name and folder would reload the first one's state."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    _set_up_train(config)
    devices = {"GPU" if config["use_gpu"] else "CPU": config["devices_per_worker"]}
    trainer = TorchTrainer(
        _distributed_loop,
        train_loop_config=config,
        scaling_config=ScalingConfig(  # type: ignore[call-arg]  # typed as Train's version 1
            num_workers=config["workers"],
            use_gpu=config["use_gpu"],
            resources_per_worker=devices,
            label_selector=labels_that_avoid(config["avoid"]),
        ),
        run_config=RunConfig(
            name=f"{config['unit']}-{config['attempt']}",
            storage_path=config["scratch"],
            callbacks=[TuneReportCallback()],  # type: ignore[no-untyped-call, list-item]
            # Who is tried again, and where, is the driver's to say.
            failure_config=FailureConfig(max_failures=0, **_TRAIN_RETRIES),
        ),
    )
    try:
        with _signs_of_life(config):
            trainer.fit()
    except TrainingFailedError as error:
        yield failure_report(first_failure(error))


_TRAIN_RETRIES: dict[str, Any] = {"max_preemption_failures": 0, "controller_failure_limit": 3}
"""The latter: how often Train may wait a minute for all its workers to start."""


def _set_up_train(config: TrialConfig) -> None:
    """Ray Train's controller takes these from its trial's environment. It looks for reports so
    often: its default of two seconds a report would be most of a short run. A worker that answers
    nothing for so long was frozen. Its own handling of preemptions, which would begin the run anew
    inside of this attempt, is off."""
    silent_s = max(30.0, float(config["hang_after_s"]))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = f"{silent_s:g}"
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"


@contextmanager
def _signs_of_life(config: TrialConfig) -> Iterator[None]:
    """Of the process that hosts a distributed run, which says nothing itself meanwhile. They take
    the way of the workers' reports, the one on which Tune listens."""
    from ray.train._internal.session import get_session

    session = get_session()
    assert session is not None
    reports = session._get_or_create_inter_actor_queue()  # type: ignore[no-untyped-call]
    end = threading.Event()
    report = {"unit": config["unit"], **_sign(), "is_host": True}

    def say() -> None:
        wait_s = 0.0
        while not end.wait(wait_s):
            wait_s = _sign_s(config)
            try:
                reports.put(report, timeout=5)
            except Exception:  # full, or gone with the trial: the next one will do
                continue

    thread = threading.Thread(target=say, name="signs-of-life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(10)
