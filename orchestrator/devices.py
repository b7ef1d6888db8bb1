"""Whether trials train on GPUs or on CPUs: what was asked, what is there, what may yet come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from orchestrator.clusterview import ClusterView, Node
from orchestrator.errors import MachineError
from orchestrator.glance import duration

__all__ = ["WAIT_S", "Accelerator", "choose_gpus", "own_gpus", "seen_by", "usable_gpus"]

Accelerator = Literal["auto", "gpu", "cpu"]
"""auto: GPUs if there are any at the start. gpu: GPUs, and on a cluster the sweep waits for the
first. cpu: CPUs, whatever there is."""

WAIT_S = 600.0
"""For the first GPU: a node that pulls an image of 10 GB takes a few minutes to join."""

_LOOK_S = 1.0
_DOCTOR = "`targetsweep doctor` says why; --accelerator cpu trains on the CPUs"


def seen_by(accelerator: Accelerator, nodes: Sequence[Node]) -> Sequence[Node]:
    """The nodes as a sweep on it counts them: one on CPUs sees no GPU. (Its trials ask
    Ray for none, and a run trains where its `Runtime.device` says: nothing else chooses.)"""
    if accelerator != "cpu":
        return nodes
    return [replace(node, gpus=0.0, free_gpus=0.0, ours_gpus=0.0) for node in nodes]


def usable_gpus() -> int:
    """GPUs of this machine that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def own_gpus(accelerator: Accelerator) -> int:
    """GPUs of this machine that a Ray of our own would train on. Raises MachineError where they are
    asked for and there is none."""
    if accelerator == "cpu":
        return 0
    gpus = usable_gpus()
    if accelerator == "gpu" and not gpus:
        raise MachineError("--accelerator gpu: this machine has no GPU that torch can use", _DOCTOR)
    return gpus


def choose_gpus(
    view: ClusterView,
    accelerator: Accelerator,
    say: Callable[[str], object],
    *,
    is_shared: bool,
    wait_s: float = WAIT_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> bool:
    """Whether trials train on GPUs; waits so long for the first one of a cluster where that is what
    was asked. view: of nodes that are `seen_by` a sweep on it.

    Raises MachineError where there is nothing to train on, or nothing of what was asked; on a Ray
    of our own also where it counts GPUs that torch cannot use.
    """
    if accelerator == "gpu" and is_shared and not _has_gpu(view):
        say(f"no node has a GPU yet: waiting for one, {duration(wait_s)} at most")
        until = clock() + wait_s
        while not _has_gpu(view) and clock() < until:
            sleep(_LOOK_S)
            with suppress(Exception):  # as the view's own thread does: asked again
                view.look()
    if _has_gpu(view):
        if not is_shared:
            _refuse_unusable()
        return True
    if accelerator == "gpu":
        remedy = (
            "start nodes with GPUs (`ray status` shows what each has), or give --accelerator cpu"
        )
        raise MachineError("no node has a GPU", remedy if is_shared else _DOCTOR)
    if not view.picture.total(use_gpu=False):
        raise MachineError(
            "no node of the cluster has a GPU or a CPU slot to train on",
            "wait until its workers have joined; --accelerator gpu waits for a GPU itself",
        )
    return False


def _has_gpu(view: ClusterView) -> bool:
    return bool(view.picture.total(use_gpu=True))


def _refuse_unusable() -> None:
    """Ray counts GPUs by the driver's library (NVML): torch may find that driver too old."""
    import torch

    if not torch.cuda.is_available():
        raise MachineError("Ray counts a GPU here, and torch cannot use it", _DOCTOR)
