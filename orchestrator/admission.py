"""Which runs fit now: a pure policy over slots. Nothing here knows Ray.

Ray Train's workers live outside the Tune trial's placement group, so Tune alone would start a
distributed run whose workers then wait for devices that small trials keep taking. Hence devices are
counted here, before a trial exists.

A run of several workers that a node could take whole waits for one (`Rooms`): Ray packs it there,
but where nothing is whole it would spread, and each of its steps would wait for the network between
two nodes; and as it gives back what it held, the next one would inherit the halves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Capacity", "Rooms", "Shape"]

_EPSILON = 1e-9


@dataclass(frozen=True)
class Shape:
    """What a run occupies: `workers` processes with `devices_per_worker` GPUs (or CPU slots) each.
    A fraction is allowed for a single worker only: NCCL refuses one GPU twice."""

    workers: int = 1
    devices_per_worker: float = 1.0

    @property
    def devices(self) -> float:
        per_worker = self.devices_per_worker
        return self.workers * (per_worker if self.workers == 1 else math.ceil(per_worker))


@dataclass
class Rooms:
    """What lies on which node. nodes: devices by node, without what other people hold; empty where
    nobody knows. A run that has not yet said where it is might be on any, but on one alone if it
    fits there."""

    nodes: Mapping[str, float] = field(default_factory=dict)
    _runs: dict[str, tuple[float, Mapping[str, float]]] = field(default_factory=dict)
    """By run: devices, and how many of them on each node; empty until it says so."""

    def begin(self, run: str, shape: Shape) -> None:
        self._runs[run] = (shape.devices, {})

    def lies(self, run: str, workers: Mapping[str, int]) -> None:
        """workers: how many of the run's are on each node."""
        devices, _ = self._runs[run]
        share = devices / sum(workers.values())
        self._runs[run] = (devices, {node: count * share for node, count in workers.items()})

    def end(self, run: str) -> None:
        self._runs.pop(run, None)

    def has_room(self, shape: Shape) -> bool:
        """Whether one node has it for all workers, or none ever would."""
        wide, widest = shape.devices - _EPSILON, max(self.nodes.values(), default=0.0)
        if shape.workers == 1 or wide > widest:
            return True
        free = dict(self.nodes)
        silent: list[float] = []
        for devices, where in self._runs.values():
            for node in where.keys() & free.keys():
                free[node] -= where[node]
            silent += [] if where else [devices]
        if max(free.values()) - sum(silent) >= wide:
            return True
        spoilt = sum(len(free) if devices > widest else 1 for devices in silent)
        return sum(room >= wide for room in free.values()) > spoilt


@dataclass
class Capacity:
    """Devices in all and in use. total changes when nodes join or leave. Runs that take a part of a
    device share the fullest one that has room, as Ray places them; all others take whole ones.
    taken: by other people's jobs, on a cluster that is not ours alone. most_runs: at once. rooms:
    where they are."""

    total: float
    used: float = 0.0
    taken: float = 0.0
    most_runs: int | None = None
    runs: int = 0
    rooms: Rooms = field(default_factory=Rooms)
    _shared: dict[int, float] = field(default_factory=dict)
    """What is taken of each device that is shared."""
    _parts: float = 0.0
    """Their sum."""
    _number: int = 0

    @property
    def free(self) -> float:
        return self.total - self.used - self.taken

    @property
    def _whole(self) -> float:
        """Devices that nobody uses."""
        return self.free + self._parts - len(self._shared)

    def fits(self, shape: Shape) -> bool:
        if self.most_runs is not None and self.runs >= self.most_runs:
            return False
        if max(1.0, shape.devices) <= self._whole + _EPSILON:
            return self.rooms.has_room(shape)
        return self._place(shape) is not None

    def fits_beside(self, shape: Shape, waiting: Shape) -> bool:
        """Whether a run takes nothing that a waiting one could use: it joins others on a device,
        and without the shared devices there are enough, on whichever nodes."""
        enough = waiting.devices <= self.total - len(self._shared) + _EPSILON
        return enough and self._place(shape) is not None and self.fits(shape)

    def can_ever_fit(self, shape: Shape) -> bool:
        """Whether it fits once all that runs has ended; if not, it waits for other nodes, or for
        other people, and must not keep anybody waiting."""
        return shape.devices <= self.total - self.taken + _EPSILON

    def most_at_once(self, shape: Shape) -> float:
        """Runs, if all were of this shape."""
        room = self.total / shape.devices
        return room if self.most_runs is None else min(room, self.most_runs)

    def take(self, shape: Shape) -> int | None:
        """Occupies devices and says which shared one, for `release`; None for whole devices."""
        self.used += shape.devices
        self.runs += 1
        if shape.devices >= 1.0:
            return None
        place = self._place(shape)
        if place is None:
            self._number += 1
            place = self._number
        self._shared[place] = self._shared.get(place, 0.0) + shape.devices
        self._parts += shape.devices
        return place

    def release(self, shape: Shape, place: int | None = None) -> None:
        self.used = max(0.0, self.used - shape.devices)
        self.runs -= 1
        if place is not None:
            self._shared[place] -= shape.devices
            self._parts -= shape.devices
            if self._shared[place] <= _EPSILON:
                del self._shared[place]

    def _place(self, shape: Shape) -> int | None:
        """The fullest shared device with room."""
        if shape.devices >= 1.0:
            return None
        room = [one for one, taken in self._shared.items() if taken + shape.devices <= 1 + _EPSILON]
        return max(room, key=self._shared.__getitem__, default=None)
