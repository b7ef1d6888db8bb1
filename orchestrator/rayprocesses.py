"""What the driver does to processes of a Ray cluster, and how Tune takes the death of one."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import psutil

__all__ = [
    "Process",
    "end_process",
    "labels_that_avoid",
    "survive_memory_monitor",
    "this_process",
]


@dataclass(frozen=True)
class Process:
    """A process of the cluster. began: when, as its node's kernel counts; by it, another process
    that was given the same number is not mistaken for this one. host: the name of its
    machine, for people."""

    node_id: str
    pid: int
    began: float
    host: str = field(default="", compare=False)

    @classmethod
    def parse(cls, found: dict[str, Any]) -> Process:
        host = str(found.get("host", ""))
        return cls(str(found["node_id"]), int(found["pid"]), float(found["began"]), host)


def this_process() -> dict[str, Any]:
    """Of this one, as plain data for a report. node_id: "" outside of Ray."""
    import ray

    node_id = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
    pid = os.getpid()
    return {"node_id": node_id, "pid": pid, "began": _began(pid), "host": platform.node()}


def labels_that_avoid(nodes: Collection[str]) -> dict[str, str] | None:
    """Ray's label selector for all nodes but these; None where there are none."""
    return {"ray.io/node-id": f"!in({','.join(sorted(nodes))})"} if nodes else None


def _began(pid: int) -> float:
    """Of a process of this machine. Not psutil's time of day, which moves with the clock."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return float(file.read().rpartition(b")")[2].split()[19])
    except FileNotFoundError:
        return psutil.Process(pid).create_time()


def kill_here(pid: int, began: float) -> bool:
    """Kills a process of this machine, also a stopped one, unless its number is another's by now.
    Whether it did."""
    try:
        if _began(pid) != began:
            return False
        psutil.Process(pid).kill()
    except psutil.Error:
        return False
    return True


def end_process(process: Process) -> None:
    """Asks a process's node to kill it, without waiting for the answer: a node that is gone has
    killed it anyway."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(process.node_id, soft=False)
    remote: Any = ray.remote
    kill = remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(kill_here)
    kill.remote(process.pid, process.began)


def survive_memory_monitor() -> None:
    """Tune takes the death of an actor by Ray's memory monitor for an error of its own and ends
    the experiment with all its trials (Ray 2.60: RayActorManager knows no OutOfMemoryError). It is
    told of the death of an actor instead, with the monitor's words."""
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import OutOfMemoryError, RayActorError

    original = RayActorManager._actor_task_failed
    if getattr(original, "_survives", False):
        return

    def failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=f"OutOfMemoryError: {exception}")
        original(self, tracked_actor_task, exception)

    failed._survives = True  # type: ignore[attr-defined]
    RayActorManager._actor_task_failed = failed  # type: ignore[method-assign]
