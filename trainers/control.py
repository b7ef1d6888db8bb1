"""When to checkpoint and when to stop: asked once a step, answered alike on every worker."""

from __future__ import annotations

import time
from typing import Protocol

import torch

from trainers.distributed import World
from trainers.pulse import PULSE

__all__ = ["Control", "StopFlag"]

_AGREE_EVERY = 10
"""Steps between agreements of several workers: one tiny broadcast, amortised."""


class StopFlag(Protocol):
    """`threading.Event` is one."""

    def is_set(self) -> bool: ...


class Control:
    """A single process looks at the flag and the clock every step; several workers follow rank 0,
    whose clock alone counts, every `_AGREE_EVERY` steps."""

    def __init__(self, stop: StopFlag | None, every_s: float, world: World, device: torch.device):
        self._stop = stop
        self._every_s = every_s
        self._world = world
        self._device = device
        self._last = time.monotonic()

    def ask(self, step: int) -> tuple[bool, bool]:
        """(checkpoint now, stop now) after `step`; stopping implies a checkpoint."""
        PULSE.beat()
        if self._world.size > 1 and step % _AGREE_EVERY:
            return False, False
        stop = self._stop is not None and self._stop.is_set()
        due = time.monotonic() - self._last >= self._every_s
        if self._world.size > 1:
            answer = torch.tensor([due, stop], dtype=torch.int32, device=self._device)
            due, stop = (bool(value) for value in self._world.from_first(answer).tolist())
        if due:
            self._last = time.monotonic()
        return due or stop, stop
