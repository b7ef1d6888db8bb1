"""What steps report, summed on the device, and the first step whose loss was not finite."""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.distributed import World
from trainers.errors import NonFiniteLossError

__all__ = ["WINDOW", "Sums", "Tally"]

Sums = dict[str, Tensor]

WINDOW = 100
"""Steps after which the reported means start afresh. A function of the step alone, so that what is
reported at a step does not depend on who else asked for an evaluation."""

_NEVER = 2**62


class Tally:
    """Sums over the steps since the last multiple of WINDOW.

    Its tensors stay where they are once a step was added, so that a captured step finds them.
    """

    def __init__(self, device: torch.device, world: World) -> None:
        self._device = device
        self._world = world
        self._names: list[str] = []
        self._sums = torch.zeros(0, dtype=torch.float64, device=device)  # in the order of the names
        self._first_bad_step = torch.tensor(_NEVER, device=device)
        self.count = 0

    def begin(self, step: int) -> None:
        """The host's half of a step, before it: the sums start afresh where a window ends."""
        if step % WINDOW == 0:
            self._sums.zero_()
            self.count = 0
        self.count += 1

    def add(self, step: Tensor, loss: Tensor, means: Sums) -> None:
        """The device's half. step: int64 (1,), the steps before this one. The number of a bad step
        is kept beside the sums, so that the error can name it when somebody waits anyway."""
        if not self._names:
            self._names = sorted(means)
            self._sums = torch.zeros(len(means), dtype=torch.float64, device=self._device)
        # One addition for all of them, in float64: a stack and a sum are two kernels, not eight.
        self._sums.add_(torch.stack([means[name].detach() for name in self._names]))
        bad = torch.where(torch.isfinite(loss), _NEVER, step + 1)
        torch.minimum(self._first_bad_step, bad[0], out=self._first_bad_step)

    def means(self) -> dict[str, float]:
        """Means over the workers and the steps of the window. Raises as `check_finite` does."""
        self.check_finite()
        return {name: value / self.count for name, value in self.shared_sums().items()}

    def shared_sums(self) -> dict[str, float]:
        """The running sums, as means over the workers. One device synchronisation."""
        if not self._names:
            return {}
        total = self._world.sum(self._sums.clone()) / self._world.size
        return dict(zip(self._names, total.tolist(), strict=True))

    def check_finite(self) -> None:
        """Raises NonFiniteLossError with the first step whose loss was not finite, on every worker.
        One device synchronisation; every worker must call it."""
        bad = int(self._world.least(self._first_bad_step.clone()))
        if bad < _NEVER:
            raise NonFiniteLossError(bad)

    def restore(self, sums: dict[str, float], count: int) -> None:
        """Takes up `shared_sums` of a state, which are added up again over the workers."""
        share = self._world.size if self._world.rank == 0 else 0
        self._names = sorted(sums)
        values = [sums[name] * share for name in self._names]
        self._sums = torch.tensor(values, dtype=torch.float64, device=self._device)
        self.count = count
