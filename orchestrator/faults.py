"""What went wrong, as the driver is told: every failure has one cause, found in one place."""

from __future__ import annotations

import errno
import re
import traceback
from typing import Any

from orchestrator.errors import StoreError, SupersededError
from orchestrator.retry import Cause

__all__ = ["carry_process", "cause_of_death", "failure_report", "first_failure"]

_TEXT_BYTES = 20_000

_PROCESS = "targetsweep_process"


def carry_process(error: BaseException, process: dict[str, Any]) -> None:
    """Has an error say which worker of a distributed run it came from, also in another process."""
    setattr(error, _PROCESS, process)


def failure_report(error: BaseException) -> dict[str, Any]:
    """One failure, classified exactly once. damaged: files of the store to set aside, where that is
    the cause. errno: what the system said of a write to the store; a read of it, or a disk that is
    the node's own, says nothing of the store. processes: the worker it came from, where the error
    carries it. spoilt: the process that failed must not train again."""
    text = "".join(traceback.format_exception(error))
    cause = _cause(error)
    report: dict[str, Any] = {
        "event": "failed",
        "cause": cause.value,
        "message": _one_line(error),
        "traceback": text[-_TEXT_BYTES:],
    }
    if cause is Cause.DAMAGED:
        report["damaged"] = _damaged(error)
    if isinstance(error, StoreError) and error.verb == "write":
        report["errno"] = error.errno
    if (process := getattr(error, _PROCESS, None)) is not None:
        report["processes"] = [process]
    if _spoils(error, cause):
        report["spoilt"] = True
    return report


def _one_line(error: BaseException) -> str:
    """The kind of error, what is wrong and, where it says so, what to do."""
    problem = str(getattr(error, "problem", "") or error).strip()
    remedy = getattr(error, "remedy", "")
    first = problem.partition("\n")[0]
    return f"{type(error).__name__}: {first}" + (f"; remedy: {remedy}" if remedy else "")


_LOST = (
    "WorkerGroupStartupFailedError",
    "WorkerGroupStartupTimeoutError",
)
"""Ray Train's names, which are not public, for workers that are gone or never came."""

_SILENT = "WorkerHealthCheckTimeoutError"
"""Its name for a worker that is there and does not answer: one that was frozen."""

_PEER_GONE = re.compile("connection (closed|reset) by peer|remote process exited", re.IGNORECASE)
"""What gloo and NCCL say on the workers that are left when another one died."""

_STORAGE = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
        errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO, errno.ENOTCONN, errno.ETIMEDOUT,
        errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ECONNREFUSED,
    }
)  # fmt: skip
"""What the system says of a disk or a mount, not of a name that is wrong."""


_DEVICE_MEMORY = re.compile(r"CUDA error: out of memory|_STATUS_ALLOC_FAILED")
"""What is said where others than torch's allocator lack a GPU's memory: contexts, libraries."""

_DEVICE = re.compile(
    r"CUDA error|CUDNN_STATUS_|CUBLAS_STATUS_|NCCL (error|communicator)|nccl\w*Error"
    r"|No CUDA GPUs|CUDA unknown error|CUDA driver (initialization failed|error)|cudaGetDeviceCount"
    r"|NVIDIA driver"
)
"""What CUDA and its libraries say of a GPU or a link that failed, or that cannot be used at all (it
fell off the bus, its driver was updated under a running node). The bug of a kernel says it too, and
is given up soon."""


def _cause(error: BaseException) -> Cause:
    import torch
    from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError
    from ray.train import PreemptionError

    from trainers.errors import NonFiniteLossError

    if isinstance(error, NonFiniteLossError):
        return Cause.DIVERGED
    if isinstance(error, torch.OutOfMemoryError | MemoryError | OutOfMemoryError):
        return Cause.OUT_OF_MEMORY
    if isinstance(error, SupersededError):
        return Cause.SUPERSEDED
    if _damaged(error) is not None:
        return Cause.DAMAGED
    if isinstance(error, PreemptionError) or getattr(error, "preempted", False) is True:
        return Cause.PREEMPTED
    if type(error).__name__ == _SILENT:
        return Cause.HUNG
    if isinstance(error, RayActorError | WorkerCrashedError) or type(error).__name__ in _LOST:
        return cause_of_death(str(error))
    if isinstance(error, RuntimeError) and _PEER_GONE.search(str(error)):
        return Cause.WORKER_LOST
    if isinstance(error, StoreError | OSError) and _is_storage(error):
        return Cause.STORE
    if isinstance(error, RuntimeError) and _DEVICE_MEMORY.search(str(error)):
        return Cause.OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and _DEVICE.search(str(error)):
        return Cause.DEVICE
    return Cause.ERROR


def _damaged(error: BaseException) -> list[str] | None:
    """The files that an error of the store blames; None where it blames none. They may be gone
    already: []."""
    found = getattr(error, "damaged", None)
    return [str(rel) for rel in found] if isinstance(found, list) else None


def _is_storage(error: StoreError | OSError) -> bool:
    if isinstance(error, StoreError):  # its own number, kept when it was raised
        return error.errno is not None and error.errno not in (errno.ENOENT, errno.ENOTDIR)
    return error.errno in _STORAGE


def _spoils(error: BaseException, cause: Cause) -> bool:
    """After memory ran out, the caches of a warm process (data on the device, the allocator's
    fragments, frames that the error holds) are what the next attempt lacks; after an error of the
    device every later call of the process fails as well."""
    import torch

    broken = getattr(torch, "AcceleratorError", ())
    return cause in (Cause.OUT_OF_MEMORY, Cause.DEVICE) or isinstance(error, broken)


# -- what Ray says of processes -------------------------------------------------------------------

_OUT_OF_MEMORY = re.compile("running low on memory|OutOfMemoryError|out of memory", re.IGNORECASE)
_NODE_LEFT = re.compile(
    "preempted|its node has died|node (was|is) (dead|terminated|drained)", re.IGNORECASE
)


def cause_of_death(text: str) -> Cause:
    """Why a process died, from what Ray says of it. The kernel kills without a word: such a process
    is a lost worker."""
    if _OUT_OF_MEMORY.search(text):
        return Cause.OUT_OF_MEMORY
    return Cause.PREEMPTED if _NODE_LEFT.search(text) else Cause.WORKER_LOST


def first_failure(error: BaseException) -> BaseException:
    """The exception that says why, out of what Ray Train wraps around it: the lowest rank's that is
    no mere loss of a worker, since the others lose theirs when one of them fails."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    found = [_unwrapped(failures[rank]) for rank in sorted(failures)]
    return next((one for one in found if _cause(one) is not Cause.WORKER_LOST), found[0])


def _unwrapped(error: BaseException) -> BaseException:
    for name in ("controller_failure", "health_check_failure", "_base_exc"):
        error = getattr(error, name, error)
    return error
