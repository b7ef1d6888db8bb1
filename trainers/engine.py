"""One optimiser step, the same for teachers and students, and the state it moves.

What differs between them is the objective: a function from a batch to a loss and the sums worth
reporting. The engine never evaluates, stores or stops; `student` and `teacher` do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainers.batches import Batch, BatchSource
from trainers.distributed import World, convert_batch_norm, data_parallel
from trainers.errors import NonFiniteLossError
from trainers.rng import Role, stream_seed
from trainers.spec import AdamW, Runtime

__all__ = ["Engine", "Objective", "Sums", "configure"]

Sums = dict[str, Tensor]
Objective = Callable[[nn.Module, Batch], tuple[Tensor, Sums]]
"""(model, batch) to the loss to minimise and, by name, the batch's *means* of what to report."""

_NEVER = 2**62

WINDOW = 100
"""Steps after which the reported means start afresh. A function of the step alone, so that what is
reported at a step does not depend on who else asked for an evaluation."""


def configure(runtime: Runtime) -> None:
    """Process-wide switches that decide what arithmetic means.

    One thread on the CPU unless told otherwise: Ray changes the number, and the number changes the
    order of sums. On GPUs fp32 is fp32: torch lets cuDNN round to TF32 unless told not to.
    """
    if runtime.device == "cpu":
        torch.set_num_threads(runtime.threads or 1)
    else:
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


class Engine:
    """Model, optimiser, step and running sums: everything a resumable state must hold."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        batches: BatchSource,
        *,
        optimizer: AdamW,
        role: Role,
        seed: int,
        norm_batch: int | None,
        runtime: Runtime,
        world: World,
    ) -> None:
        self.device = torch.device(runtime.device)
        self.world = world
        self.step = 0
        self.batches = batches
        self.objective = objective
        convert_batch_norm(
            model, global_batch=batches.batch_size, norm_batch=norm_batch, world=world
        )
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        trained: Any = torch.compile(self.model) if runtime.compile else self.model
        self._parallel = data_parallel(trained, world, self.device)
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=optimizer.lr,
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
        self._role, self._seed = role, seed
        self._stochastic = any(_draws(module) for module in model.modules())
        self._sums: Sums = {}
        self._count = 0
        self._first_bad_step = torch.tensor(_NEVER, device=self.device)
        self._clock = time.perf_counter()
        self._clock_images = 0
        self.elapsed_s = 0.0
        self.model.train()

    def update(self) -> None:
        """One step on the next global batch."""
        if self._stochastic:
            self._seed_dropout()
        batch = self.batches.batch(self.step)
        loss, means = self.objective(self._parallel, batch)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self.step += 1
        self._add(loss.detach(), means)
        self._clock_images += self.batches.batch_size

    def _seed_dropout(self) -> None:
        """Dropout draws from torch's global generator: a fresh seed a step keeps resumed runs
        equal. Its masks are per worker, so such models do depend on the number of workers."""
        counter = self.step * self.world.size + self.world.rank
        torch.manual_seed(stream_seed(self._role, self._seed, "dropout", counter) % 2**63)

    def _add(self, loss: Tensor, means: Sums) -> None:
        """Adds to the running sums on the device; no synchronisation. The step of the first bad
        loss is kept there too, so that the error can name it later."""
        if self.step % WINDOW == 1:
            self._sums, self._count = {}, 0
        for name, mean in means.items():
            value = mean.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1
        bad = torch.where(torch.isfinite(loss), _NEVER, self.step)
        self._first_bad_step = torch.minimum(self._first_bad_step, bad)

    def means(self) -> dict[str, float]:
        """Means over the workers and the steps since the last multiple of WINDOW. Raises as
        `check_finite` does."""
        self.check_finite()
        return {name: value / self._count for name, value in self._shared_sums().items()}

    def _shared_sums(self) -> dict[str, float]:
        """The running sums, as means over the workers. One device synchronisation."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        total = self.world.sum(torch.stack([self._sums[name] for name in names])) / self.world.size
        return dict(zip(names, total.tolist(), strict=True))

    def check_finite(self) -> None:
        """Raises NonFiniteLossError with the first step whose loss was not finite, on every worker.
        One device synchronisation; every worker must call it."""
        bad = int(self.world.least(self._first_bad_step.clone()))
        if bad < _NEVER:
            raise NonFiniteLossError(bad)

    def close(self) -> None:
        """Ends what runs beside the steps: the threads that decode."""
        self.batches.close()

    def lap(self) -> float:
        """Global images per second since the last `lap` or `rest`; adds the time to elapsed_s."""
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        rate = self._clock_images / seconds if seconds > 0 else 0.0
        self._clock_images = 0
        self.elapsed_s += seconds
        return rate

    def rest(self) -> None:
        """Restarts the images/s clock, so that evaluation does not count as training."""
        now = time.perf_counter()
        self.elapsed_s += now - self._clock
        self._clock = now

    def state_dict(self) -> dict[str, Any]:
        """A resumable copy on the CPU; every name that `load_state_dict` restores. Every worker
        must call it; all but rank 0, which write nothing, get an empty one."""
        sums = self._shared_sums()
        if self.world.rank > 0:
            return {}
        return {
            "step": self.step,
            "model": _to_cpu(self.model.state_dict()),
            "optimizer": _to_cpu(self._optimizer.state_dict()),
            "sums": sums,
            "count": self._count,
            "elapsed_s": self.elapsed_s,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # Resume order: 1. weights and buffers, 2. optimiser moments (which follow the weights'
        # device and layout), 3. running sums, 4. the step, which alone decides every later draw.
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(_to_cpu(state["optimizer"]))  # it would keep the tensors
        share = self.world.size if self.world.rank == 0 else 0  # the sums are added up again
        self._sums = {
            name: torch.tensor(value * share, dtype=torch.float64, device=self.device)
            for name, value in state["sums"].items()
        }
        self._count = state["count"]
        self.elapsed_s = state["elapsed_s"]
        self.step = state["step"]
        self._clock = time.perf_counter()


def _draws(module: nn.Module) -> bool:
    if type(module).__name__ == "StochasticDepth":
        return True
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0


def _to_cpu(value: Any) -> Any:
    """A deep copy on the CPU that later steps cannot change."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _to_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_cpu(item) for item in value]
    return value
