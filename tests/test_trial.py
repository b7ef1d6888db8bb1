"""What a trial reports: failures classified once, and no more reports than the driver can bear."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from ray.exceptions import ActorDiedError, RayActorError, WorkerCrashedError
from ray.train import ControllerError, PreemptionError, WorkerGroupError

from orchestrator import paths
from orchestrator.errors import StoreError
from orchestrator.retry import Cause
from orchestrator.store import Store
from orchestrator.trial import (
    StopPoller,
    _first_failure,
    _in_training_thread,
    _lockstep,
    _Throttle,
    failure_report,
)
from trainers.errors import CheckpointError, NonFiniteLossError


class WorkerHealthCheckFailedError(Exception):
    """As Ray Train's, which is private."""

    def __init__(self, failure: Exception) -> None:
        super().__init__("A worker health check failed.")
        self.health_check_failure = failure


class WorkerGroupStartupTimeoutError(Exception):
    pass


PEER_GONE = RuntimeError("[…/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (KeyError("lr"), Cause.ERROR),
        (RuntimeError("shape mismatch"), Cause.ERROR),
        (CheckpointError("damaged", "delete it"), Cause.ERROR),
        (StoreError("disk full"), Cause.ERROR),
        (NonFiniteLossError(17), Cause.DIVERGED),
        (MemoryError(), Cause.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory"), Cause.OUT_OF_MEMORY),
        (RayActorError(), Cause.WORKER_LOST),
        (ActorDiedError(), Cause.WORKER_LOST),
        (WorkerCrashedError(), Cause.WORKER_LOST),
        (WorkerGroupStartupTimeoutError(), Cause.WORKER_LOST),
        (PEER_GONE, Cause.WORKER_LOST),
    ],
)
def test_every_failure_has_one_cause(error: Exception, cause: Cause) -> None:
    assert failure_report(error)["cause"] == cause


def test_a_failure_is_one_line_and_a_traceback() -> None:
    try:
        raise CheckpointError("snapshot acc-30 is damaged\nby somebody", "delete it")
    except CheckpointError as error:
        report = failure_report(error)
    assert report["message"] == "CheckpointError: snapshot acc-30 is damaged; remedy: delete it"
    assert "test_a_failure_is_one_line" in report["traceback"]
    assert failure_report(RuntimeError("a\nb\nc"))["message"] == "RuntimeError: a"
    assert failure_report(ValueError())["message"] == "ValueError: "


def group(**failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("…", {int(rank[1:]): error for rank, error in failures.items()})


def cause_of(error: BaseException) -> Cause:
    return Cause(failure_report(_first_failure(error))["cause"])


def test_a_killed_rank_is_a_lost_worker() -> None:
    """Whether the others noticed or not."""
    died = WorkerHealthCheckFailedError(ActorDiedError())
    assert cause_of(group(r1=died)) is Cause.WORKER_LOST
    assert cause_of(group(r0=PEER_GONE, r1=died)) is Cause.WORKER_LOST
    assert cause_of(group(r0=PEER_GONE)) is Cause.WORKER_LOST


def test_a_bug_on_one_rank_is_a_bug_whatever_it_does_to_the_others() -> None:
    found = _first_failure(group(r0=PEER_GONE, r1=KeyError("lr"), r2=KeyError("wd")))
    assert repr(found) == "KeyError('lr')"
    assert cause_of(group(r0=PEER_GONE, r1=NonFiniteLossError(3))) is Cause.DIVERGED


def test_failures_of_the_controller() -> None:
    assert cause_of(ControllerError(WorkerGroupStartupTimeoutError())) is Cause.WORKER_LOST
    assert cause_of(ControllerError(KeyError("x"))) is Cause.ERROR
    assert issubclass(PreemptionError, Exception)


# -- reports ---------------------------------------------------------------------------------------


def test_a_hundred_evaluations_a_second_become_one() -> None:
    keep = _Throttle()
    kept = [keep({"event": "evaluation", "step": step}) for step in range(100)]
    assert 1 <= sum(kept) < 100
    assert kept[0]


@pytest.mark.parametrize("event", ["started", "snapshot", "checkpoint", "finished", "failed"])
def test_what_matters_is_never_throttled(event: str) -> None:
    keep = _Throttle()
    assert all(keep({"event": event}) for _ in range(10))


def test_workers_in_lockstep_decide_by_the_step_alone() -> None:
    reports = [{"event": "evaluation", "step": step} for step in (10, 49, 50, 100)]
    assert [_lockstep(report) for report in reports] == [False, False, True, True]
    assert not _lockstep({"event": "progress", "step": 50})
    assert _lockstep({"event": "finished", "step": 7})


def test_all_training_of_a_process_is_in_one_thread() -> None:
    def reports():
        yield {"thread": threading.get_ident()}
        yield {"thread": threading.get_ident()}

    seen = {report["thread"] for _ in range(3) for report in _in_training_thread(reports)}
    assert len(seen) == 1
    assert threading.get_ident() not in seen


def test_an_exception_in_training_is_the_last_report() -> None:
    def reports():
        yield {"event": "started"}
        raise KeyError("lr")

    first, last = _in_training_thread(reports)
    assert first == {"event": "started"}
    assert (last["event"], last["message"]) == ("failed", "KeyError: 'lr'")


def test_a_stop_flag_that_appears_is_seen(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    poller = StopPoller(store)
    try:
        assert not poller.is_set()
        store.write_bytes(paths.stop_flag(), b"stop\n")
        deadline = time.monotonic() + 60
        while not poller.is_set() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert poller.is_set()
    finally:
        poller.close()
