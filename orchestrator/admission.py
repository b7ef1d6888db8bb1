"""Which runs fit now: a pure policy over slots. Nothing here knows Ray.

Ray Train's workers live outside the Tune trial's placement group, so Tune alone would start a
distributed run whose workers then wait for devices that small trials keep taking. Hence devices are
counted here, before a trial exists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    """Devices in all and in use. total changes when nodes join or leave."""

    total: float
    used: float = 0.0

    @property
    def free(self) -> float:
        return self.total - self.used

    def fits(self, shape: Shape) -> bool:
        return shape.devices <= self.free + _EPSILON

    def can_ever_fit(self, shape: Shape) -> bool:
        return shape.devices <= self.total + _EPSILON

    def take(self, shape: Shape) -> None:
        self.used += shape.devices

    def release(self, shape: Shape) -> None:
        self.used = max(0.0, self.used - shape.devices)
