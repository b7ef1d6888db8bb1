"""One optimiser step, the same for teachers and students, and the state it moves.

What differs between them is the objective: a function from a batch to a loss and the sums worth
reporting. The engine never evaluates, stores or stops; `student` and `teacher` do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainers.batches import Batch, BatchSource
from trainers.compiled import compiled
from trainers.distributed import World, convert_batch_norm, data_parallel
from trainers.graphs import CudaCapture, Replayed, may_be_captured
from trainers.rng import Role, stream_seed
from trainers.spec import AdamW, Runtime
from trainers.tally import WINDOW, Sums, Tally

__all__ = ["WINDOW", "Engine", "Objective", "Sums", "configure"]

Objective = Callable[[nn.Module, Batch], tuple[Tensor, Sums]]
"""(model, batch) to the loss to minimise and, by name, the batch's *means* of what to report."""


def configure(runtime: Runtime) -> None:
    """Process-wide switches that decide what arithmetic means.

    One thread on the CPU unless told otherwise: Ray changes the number, and the number changes the
    order of sums. On GPUs fp32 is fp32: torch lets cuDNN round to TF32 unless told not to. There
    cuDNN times its kernels at the first batch of a shape and keeps the fastest: a second or so a
    process, since the shapes of a run hardly differ.
    """
    if runtime.device == "cpu":
        torch.set_num_threads(runtime.threads or 1)
    else:
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = True


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
        self.compiled_model = compiled(self.model, wanted=runtime.compile)
        self._parallel = data_parallel(self.compiled_model, world, self.device)
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
        self._tally = Tally(self.device, world)
        self._now = torch.zeros(1, dtype=torch.int64, device=self.device)
        """The step, where the device reads it."""
        self._replayed: Replayed | None = None
        if runtime.cuda_graphs and may_be_captured(self.device, world, stochastic=self._stochastic):
            self._replayed = Replayed(CudaCapture(self.device))
        self._clock = time.perf_counter()
        self._clock_images = 0
        self.elapsed_s = 0.0
        self.model.train()

    def update(self) -> None:
        """One step on the next global batch. On a GPU nothing here waits for the device,
        unless it falls behind with encoded pictures (`pixels.Leash`)."""
        if self._stochastic:
            self._seed_dropout()
        self._now.fill_(self.step)
        self.batches.stage(self.step)
        self._tally.begin(self.step)
        if self._replayed is None:
            self._step()
        else:
            # Given anew each time: kept, the engine would hold itself, and its memory on the device
            # until Python looks for cycles.
            self._replayed(self._step, self._capturing)
        self.step += 1
        self._clock_images += self.batches.batch_size

    def _step(self) -> None:
        """What the device does in a step: a function of what lies on it, so that it may be captured
        once and replayed (`graphs`). Nothing here may depend on a number that the host changes."""
        batch = self.batches.staged(self._now)
        self._optimizer.zero_grad(set_to_none=True)
        loss, means = self.objective(self._parallel, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._tally.add(self._now, loss.detach(), means)

    @contextmanager
    def _capturing(self) -> Iterator[None]:
        """Gradients begin inside of the capture. The optimiser is told that it is captured, and
        only then: it takes nothing else from that (its counts lie on the device anyway, being
        fused), and a saved state must not tell another device to be capturable."""
        self._optimizer.zero_grad(set_to_none=True)
        for group in self._optimizer.param_groups:
            group["capturable"] = True
        try:
            yield
        finally:
            for group in self._optimizer.param_groups:
                group["capturable"] = False

    def _seed_dropout(self) -> None:
        """Dropout draws from torch's global generator: a fresh seed a step keeps resumed runs
        equal. Its masks are per worker, so such models do depend on the number of workers."""
        counter = self.step * self.world.size + self.world.rank
        torch.manual_seed(stream_seed(self._role, self._seed, "dropout", counter) % 2**63)

    def means(self) -> dict[str, float]:
        """Means over the workers and the steps since the last multiple of WINDOW. Raises as
        `check_finite` does."""
        return self._tally.means()

    def check_finite(self) -> None:
        """Raises NonFiniteLossError with the first step whose loss was not finite, on every worker.
        One device synchronisation; every worker must call it."""
        self._tally.check_finite()

    def close(self) -> None:
        """Ends what runs beside the steps, the threads that draw and decode, and gives back the
        memory of a captured step."""
        self._forget_graph()
        self.batches.close()

    def _forget_graph(self) -> None:
        if self._replayed is not None:
            self._replayed.forget()

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
        sums = self._tally.shared_sums()
        if self.world.rank > 0:
            return {}
        return {
            "step": self.step,
            "model": _to_cpu(self.model.state_dict()),
            "optimizer": _to_cpu(self._optimizer.state_dict()),
            "sums": sums,
            "count": self._tally.count,
            "elapsed_s": self.elapsed_s,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # Resume order: 1. weights and buffers, 2. optimiser moments (torch sends them to the
        # weights' device, and leaves them the layout that they were saved in), 3. running sums,
        # 4. the step, which alone decides every later draw.
        # Moments and sums lie elsewhere then, so a step that was captured before is of no use.
        self._forget_graph()
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(_to_cpu(state["optimizer"]))  # it would keep the tensors
        self._lay_moments_as_weights()
        self._tally.restore(state["sums"], state["count"])
        self.elapsed_s = state["elapsed_s"]
        self.step = state["step"]
        self._clock = time.perf_counter()

    def _lay_moments_as_weights(self) -> None:
        """Fused AdamW walks through a weight and its moments in the order of memory: where strides
        differ, CUDA's refuses and the CPU's takes one weight's moments for another's."""
        for parameter, moments in self._optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                if moments[name].stride() != parameter.stride():
                    laid = torch.empty_like(parameter, memory_format=torch.preserve_format)
                    moments[name] = laid.copy_(moments[name])


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
