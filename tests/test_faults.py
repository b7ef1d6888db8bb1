"""What went wrong: every error has one cause, however it is wrapped and wherever it is found."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import pytest
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.train import ControllerError, PreemptionError, WorkerGroupError

from orchestrator.errors import DamagedFileError, LostNeedError, StoreError, SupersededError
from orchestrator.faults import carry_process, cause_of_death, failure_report, first_failure
from orchestrator.retry import Cause
from orchestrator.store import Store
from trainers.errors import CheckpointError, NonFiniteLossError


class WorkerHealthCheckFailedError(Exception):
    """As Ray Train's, which is private."""

    def __init__(self, failure: Exception) -> None:
        super().__init__("A worker health check failed.")
        self.health_check_failure = failure


class WorkerGroupStartupTimeoutError(Exception):
    pass


class WorkerHealthCheckTimeoutError(Exception):
    pass


PEER_GONE = RuntimeError("[…/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (KeyError("lr"), Cause.ERROR),
        (RuntimeError("shape mismatch"), Cause.ERROR),
        (CheckpointError("damaged", "delete it"), Cause.ERROR),
        (StoreError("given to another worker"), Cause.ERROR),
        (FileNotFoundError(2, "no such file"), Cause.ERROR),
        (ConnectionResetError(104, "reset"), Cause.ERROR),
        (OSError(errno.ENOSPC, "no space left"), Cause.STORE),
        (PermissionError(errno.EACCES, "permission denied"), Cause.STORE),
        (OSError(errno.EROFS, "read-only file system"), Cause.STORE),
        (OSError(errno.ESTALE, "stale file handle"), Cause.STORE),
        (DamagedFileError("runs/x/snapshots/acc-30.json", "its checksum"), Cause.DAMAGED),
        (LostNeedError("its soft targets are gone"), Cause.DAMAGED),
        (NonFiniteLossError(17), Cause.DIVERGED),
        (MemoryError(), Cause.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory"), Cause.OUT_OF_MEMORY),
        (
            OutOfMemoryError("Task was killed due to the node running low on memory."),
            Cause.OUT_OF_MEMORY,
        ),
        (RayActorError(), Cause.WORKER_LOST),
        (RayActorError(preempted=True), Cause.PREEMPTED),
        (WorkerHealthCheckTimeoutError(), Cause.HUNG),
        (ActorDiedError(), Cause.WORKER_LOST),
        (WorkerCrashedError(), Cause.WORKER_LOST),
        (WorkerGroupStartupTimeoutError(), Cause.WORKER_LOST),
        (PEER_GONE, Cause.WORKER_LOST),
        (SupersededError("given to another worker"), Cause.SUPERSEDED),
        (RuntimeError("CUDA error: out of memory"), Cause.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), Cause.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), Cause.DEVICE),
        (RuntimeError("No CUDA GPUs are available"), Cause.DEVICE),
        (
            RuntimeError("CUDA unknown error - this may be due to an incorrectly set up"),
            Cause.DEVICE,
        ),
        (
            RuntimeError("CUDA driver initialization failed, you might not have a CUDA"),
            Cause.DEVICE,
        ),
        (RuntimeError("Unexpected error from cudaGetDeviceCount(). Did you run"), Cause.DEVICE),
        (RuntimeError("Found no NVIDIA driver on your system. Please check"), Cause.DEVICE),
        (RuntimeError("The NVIDIA driver on your system is too old"), Cause.DEVICE),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), Cause.DEVICE),
        (RuntimeError("NCCL communicator was aborted on rank 1."), Cause.DEVICE),
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
    return Cause(failure_report(first_failure(error))["cause"])


def test_a_killed_rank_is_a_lost_worker() -> None:
    """Whether the others noticed or not."""
    died = WorkerHealthCheckFailedError(ActorDiedError())
    assert cause_of(group(r1=died)) is Cause.WORKER_LOST
    assert cause_of(group(r0=PEER_GONE, r1=died)) is Cause.WORKER_LOST
    assert cause_of(group(r0=PEER_GONE)) is Cause.WORKER_LOST


def test_a_bug_on_one_rank_is_a_bug_whatever_it_does_to_the_others() -> None:
    found = first_failure(group(r0=PEER_GONE, r1=KeyError("lr"), r2=KeyError("wd")))
    assert repr(found) == "KeyError('lr')"
    assert cause_of(group(r0=PEER_GONE, r1=NonFiniteLossError(3))) is Cause.DIVERGED


def test_failures_of_the_controller() -> None:
    assert cause_of(ControllerError(WorkerGroupStartupTimeoutError())) is Cause.WORKER_LOST
    assert cause_of(ControllerError(KeyError("x"))) is Cause.ERROR
    assert issubclass(PreemptionError, Exception)


# -- the store ------------------------------------------------------------------------------------


class FullStore(Store):
    """As on a disk without room."""

    def write_bytes(self, rel: str, data: bytes) -> None:
        with self._errors("write", rel):
            raise OSError(errno.ENOSPC, "No space left on device")


def fails(act) -> StoreError:
    with pytest.raises(StoreError) as caught:
        act()
    return caught.value


def test_a_full_disk_keeps_its_number_also_through_ray(tmp_path: Path) -> None:
    error = fails(lambda: FullStore(tmp_path).write_bytes("x", b""))
    for one in (error, pickle.loads(pickle.dumps(error))):
        report = failure_report(one)
        assert (report["cause"], report["errno"]) == ("store", errno.ENOSPC)
        assert "disk or quota is full" in report["message"]


def test_a_full_disk_of_the_node_says_nothing_of_the_store(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")

    def fetched() -> None:
        with Store(tmp_path)._errors("read", "x"):
            raise full

    for error in (full, fails(fetched)):
        report = failure_report(error)
        assert (report["cause"], report.get("errno")) == ("store", None)


def test_a_network_that_gives_no_number_is_a_fault_of_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def act() -> None:
        with store._errors("read", "x"):
            raise OSError("AWS Error NETWORK_CONNECTION")

    assert failure_report(fails(act))["cause"] == Cause.STORE


def test_a_missing_file_is_not(tmp_path: Path) -> None:
    report = failure_report(fails(lambda: Store(tmp_path).read_bytes("x")))
    assert report["cause"] == Cause.ERROR


def test_damaged_files_are_named() -> None:
    error = DamagedFileError("runs/x/snapshots/acc-30.safetensors", "…", ["runs/x/acc-30.json"])
    report = failure_report(pickle.loads(pickle.dumps(error)))
    assert report["damaged"] == ["runs/x/snapshots/acc-30.safetensors", "runs/x/acc-30.json"]
    assert failure_report(LostNeedError("gone"))["damaged"] == []


# -- processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "spoilt"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), True),
        (KeyError("lr"), False),
        (NonFiniteLossError(17), False),
    ],
)
def test_processes_that_must_not_train_again(error: Exception, spoilt: bool) -> None:
    assert bool(failure_report(error).get("spoilt")) == spoilt


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("", Cause.WORKER_LOST),
        ("The actor died unexpectedly before finishing this task.", Cause.WORKER_LOST),
        ("Worker exits by a signal. SIGKILL", Cause.WORKER_LOST),
        ("Task was killed due to the node running low on memory.", Cause.OUT_OF_MEMORY),
        ("The actor died because its node has died. Node Id: ab", Cause.PREEMPTED),
    ],
)
def test_what_ray_says_of_a_death(said: str, cause: Cause) -> None:
    assert cause_of_death(said) is cause


def test_an_error_says_which_worker_it_came_from() -> None:
    """Through the pickle that brings it from there."""
    worker = {"node_id": "cd" * 28, "pid": 4711, "began": 17.0, "host": "b01"}
    for error in (KeyError("lr"), StoreError("not there"), RuntimeError("CUDA error: ECC")):
        carry_process(error, worker)
        assert failure_report(pickle.loads(pickle.dumps(error)))["processes"] == [worker]
    assert "processes" not in failure_report(KeyError("lr"))
