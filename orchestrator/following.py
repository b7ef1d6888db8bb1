"""Follows a cluster while it changes: more devices, fewer devices, nodes that leave, no head."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from orchestrator import paths
from orchestrator.admission import Shape
from orchestrator.clusterview import ClusterView, Picture, Silence
from orchestrator.conductor import Conductor
from orchestrator.errors import StoreError, TargetsweepError
from orchestrator.ledger import State
from orchestrator.progress import Progress
from orchestrator.store import Store

__all__ = ["ClusterLostError", "Follower"]

_HEAD_S = 30.0
"""The cluster's head is given up after so much silence. It answers within milliseconds."""

_COUNT_S = 5.0
"""Between two counts of the runs that wait for a wider cluster."""


class ClusterLostError(TargetsweepError):
    """The head of the cluster is gone, and with it all that ran there. The store is as it was."""


def _flagged(store: Store) -> set[str]:
    """Nodes that have a flag in the store."""
    stem = paths.drain_flag("0").rpartition("/")[2].removesuffix("0")
    names = store.list(paths.control_dir())
    return {name.removeprefix(stem) for name in names if name.startswith(stem)}


class Follower:
    """Brings the ledger's capacity up to what the cluster has. is_shared: others may use it too;
    on a Ray of our own every device is ours."""

    def __init__(
        self,
        view: ClusterView,
        conductor: Conductor,
        progress: Progress,
        store: Store,
        *,
        use_gpu: bool,
        is_shared: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._view = view
        self._conductor = conductor
        self._progress = progress
        self._store = store
        self._use_gpu = use_gpu
        self._is_shared = is_shared
        self._silence = Silence(clock=clock)
        self._picture = view.picture
        self._flags = _flagged(store)  # a killed driver may have left some
        self._told: set[tuple[Shape, float]] = set()
        self._next_count = 0.0
        self._told_of_gpus = False
        ledger = conductor.ledger
        self._widest = max((entry.shape.devices for entry in ledger.entries.values()), default=0.0)

    def follow(self) -> None:
        """Raises ClusterLostError when the head has been silent for too long."""
        if self._silence.look(self._view.answers) > _HEAD_S:
            raise ClusterLostError("the head of the Ray cluster does not answer any more")
        self._view.set_aside(self._conductor.ledger.aside)
        before, picture = self._picture, self._view.picture
        self._picture = picture
        capacity = self._conductor.ledger.capacity
        total = picture.total(use_gpu=self._use_gpu)
        taken = self._view.taken(use_gpu=self._use_gpu) if self._is_shared else 0.0
        rooms = self._view.rooms(use_gpu=self._use_gpu, is_shared=self._is_shared)
        if (total, taken, rooms) != (capacity.total, capacity.taken, capacity.rooms.nodes):
            with self._conductor.lock:
                capacity.total, capacity.taken, capacity.rooms.nodes = total, taken, rooms
        if picture is not before:
            self._tell_nodes(before, picture)
            self._tell_idle_gpus(picture)
            self._flag_closed(picture)
        self._tell_stuck()

    def end(self) -> None:
        """Nothing of this driver's is left where the store is. What it set aside is said again,
        where nobody has to look for it."""
        self._flag_closed(Picture())
        for failure in self._conductor.ledger.aside.values():
            self._progress.warned(
                f"{failure.where} was set aside in this run ({failure.cause}: {failure.message}): "
                "mend it or take it out of the cluster"
            )

    def _tell_nodes(self, before: Picture, now: Picture) -> None:
        there = f"{len(now.nodes)} nodes, {self._counted(now.total(use_gpu=self._use_gpu))}"
        for node_id in sorted(now.living - before.living):
            self._progress.noted(f"node {node_id[:8]} joined: {there}")
        for node_id in sorted(before.living - now.living):
            self._progress.warned(f"node {node_id[:8]} is gone: {there}")
        for node_id in sorted(now.draining - before.draining):
            self._progress.warned(
                f"node {node_id[:8]} is about to leave; what runs there saves a checkpoint"
            )

    def _tell_idle_gpus(self, now: Picture) -> None:
        """Once: runs that began on CPUs go on there, whatever joins."""
        if not self._use_gpu and not self._told_of_gpus and now.total(use_gpu=True):
            self._told_of_gpus = True
            self._progress.warned(
                "GPUs have joined, and this sweep trains on CPUs to its end: stop it (`targetsweep "
                "stop`) and run it again with --accelerator gpu; nothing is lost"
            )

    def _counted(self, devices: float) -> str:
        return f"{devices:g} {'GPUs' if self._use_gpu else 'CPU slots'}"

    def _tell_stuck(self) -> None:
        """Runs that fit nowhere now, whatever ends: they wait, and the others go on."""
        ledger = self._conductor.ledger
        capacity = ledger.capacity
        if self._widest <= capacity.total - capacity.taken:
            return
        if (now := time.monotonic()) < self._next_count:
            return  # it looks at every unit
        self._next_count = now + _COUNT_S
        with self._conductor.lock:
            stuck = Counter(
                entry.shape
                for entry in ledger.entries.values()
                if entry.state in (State.READY, State.WAITING)
                and not capacity.can_ever_fit(entry.shape)
            )
        for shape, count in stuck.items():
            if (shape, capacity.total) not in self._told:
                self._told.add((shape, capacity.total))
                held = f", {capacity.taken:g} of them in other jobs' hands" * bool(capacity.taken)
                self._progress.warned(
                    f"{count} runs wait for {self._counted(shape.devices)} each: the cluster has "
                    f"{capacity.total:g}{held}"
                )

    def _flag_closed(self, picture: Picture) -> None:
        """A file for each node that is leaving, or set aside, which the runs there look at."""
        for node_id in picture.closed - self._flags:
            with suppress(StoreError):  # then they end with the node, and go on elsewhere
                self._store.write_bytes(paths.drain_flag(node_id), b"drain\n")
                self._flags.add(node_id)
        for node_id in self._flags - picture.closed:
            with suppress(StoreError):
                self._store.delete(paths.drain_flag(node_id))
        self._flags &= picture.closed
