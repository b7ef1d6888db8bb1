"""Which runs fit now: a pure policy over slots. Nothing here knows Ray.

Ray Train's workers live outside the Tune trial's placement group, so Tune alone would start a
distributed run whose workers then wait for devices that small trials keep taking. Hence devices are
counted here, before a trial exists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

__all__ = ["Capacity", "Shape"]

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
class Capacity:
    """Devices in all and in use. total changes when nodes join or leave. Runs that take a part of a
    device share the fullest one that has room, as Ray places them; all others take whole ones.
    taken: by other people's jobs, on a cluster that is not ours alone. most_runs: at once."""

    total: float
    used: float = 0.0
    taken: float = 0.0
    most_runs: int | None = None
    runs: int = 0
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
        return max(1.0, shape.devices) <= self._whole + _EPSILON or self._place(shape) is not None

    def fits_beside(self, shape: Shape, waiting: Shape) -> bool:
        """Whether a run takes nothing that a waiting one could use: it joins others on a device,
        and without the shared devices there are enough."""
        enough = waiting.devices <= self.total - len(self._shared) + _EPSILON
        return enough and self._place(shape) is not None and self.fits(shape)

    def can_ever_fit(self, shape: Shape) -> bool:
        """Whether it fits once all that runs has ended; if not, it waits for other nodes, or for
        other people, and must not keep anybody waiting."""
        return shape.devices <= self.total - self.taken + _EPSILON

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
