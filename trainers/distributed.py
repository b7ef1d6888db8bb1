"""The few collectives a run needs. One code path: a world of one skips the wire, nothing else.

Batch-norm statistics are part of what is computed, so they follow the *global* batch (or a stated
number of samples, `norm_batch`), never the number of workers. torch's own SyncBatchNorm refuses CPU
tensors; `SyncBatchNorm2d` here runs on any backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainers.errors import UnsuitableError

__all__ = ["GhostBatchNorm2d", "SyncBatchNorm2d", "World", "convert_batch_norm", "data_parallel"]


@dataclass(frozen=True)
class World:
    """Which worker this is, of how many."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """The initialised default process group, or a world of one."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def rows(self, global_batch: int) -> slice:
        """This worker's rows of a global batch."""
        if global_batch % self.size:
            raise UnsuitableError(
                f"the global batch of {global_batch} is not divisible by {self.size} workers",
                "choose a batch_size that is a multiple of scaling.workers",
            )
        local = global_batch // self.size
        return slice(self.rank * local, (self.rank + 1) * local)

    def sum(self, value: Tensor) -> Tensor:
        """Sums a tensor over all workers, in place; every worker must call it."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def from_first(self, value: Tensor) -> Tensor:
        """Rank 0's tensor, on every worker, in place."""
        if self.size > 1:
            dist.broadcast(value, src=0)
        return value


def data_parallel(model: nn.Module, world: World, device: torch.device) -> nn.Module:
    """The module whose backward averages gradients over the workers. Buffers are not broadcast:
    the batch-norm modules below keep them equal by themselves."""
    if world.size == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(
        model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
    )


class _SumOverWorkers(torch.autograd.Function):
    """y = Σ_r x_r on every worker; hence dL/dx_r = Σ_q dL_q/dy, again a sum over workers."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch-norm over the batch of all workers, by one all-reduce forward and one backward.

    Sums are taken about the running mean, which every worker shares: the variance as a difference
    of two sums then loses no digits to a mean far from zero.
    """

    def forward(self, input: Tensor) -> Tensor:  # (N, C, H, W)
        if not self.training or World.current().size == 1:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        shift_C = self.running_mean.clone()
        offset = input.float() - shift_C[:, None, None]
        local_2C = torch.stack([offset.sum((0, 2, 3)), offset.square().sum((0, 2, 3))])
        count = input.numel() // input.shape[1] * World.current().size
        first_C, second_C = _SumOverWorkers.apply(local_2C) / count
        var_C = second_C - first_C.square()
        with torch.no_grad():
            momentum = self.momentum if self.momentum is not None else 0.1
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(shift_C + first_C, momentum)
            self.running_var.lerp_(var_C * (count / max(count - 1, 1)), momentum)
        scale_C = self.weight * torch.rsqrt(var_C + self.eps)
        output = (offset - first_C[:, None, None]) * scale_C[:, None, None]
        return (output + self.bias[:, None, None]).to(input.dtype)


class GhostBatchNorm2d(nn.BatchNorm2d):
    """Batch-norm over groups of `group_size` consecutive samples of the global batch, whatever the
    number of workers; running statistics are the mean over all groups."""

    group_size: int = 0

    def forward(self, input: Tensor) -> Tensor:  # (N, C, H, W)
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        count_N, count_C, *plane = input.shape
        groups = count_N // self.group_size
        # (G·S, C, H, W) -> (S, G·C, H, W): a group's channel is a channel of its own.
        stacked = input.reshape(groups, self.group_size, count_C, *plane).transpose(0, 1)
        stacked = stacked.reshape(self.group_size, groups * count_C, *plane)
        mean = torch.zeros(groups * count_C, device=input.device)
        var = torch.ones_like(mean)
        output = nn.functional.batch_norm(
            stacked,
            mean,
            var,
            self.weight.repeat(groups),
            self.bias.repeat(groups),
            training=True,
            momentum=1.0,
            eps=self.eps,
        )
        self._track(torch.stack([mean, var]).reshape(2, groups, count_C).mean(1))
        output = output.reshape(self.group_size, groups, count_C, *plane).transpose(0, 1)
        return output.reshape(input.shape)

    @torch.no_grad()
    def _track(self, stats_2C: Tensor) -> None:
        world = World.current()
        mean_C, var_C = world.sum(stats_2C) / world.size
        momentum = self.momentum if self.momentum is not None else 0.1
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean_C, momentum)
        self.running_var.lerp_(var_C, momentum)


def _convert(module: nn.Module, kind: type[nn.BatchNorm2d]) -> list[nn.BatchNorm2d]:
    norms = [child for child in module.modules() if type(child) is nn.BatchNorm2d]
    for norm in norms:
        norm.__class__ = kind  # same parameters and buffers, other forward
    return norms


def convert_batch_norm(
    module: nn.Module, *, global_batch: int, norm_batch: int | None, world: World
) -> None:
    """Makes every BatchNorm2d of `module` see `norm_batch` samples (None: the global batch).

    Raises UnsuitableError when the per-worker batch is not a whole number of such groups.
    """
    if norm_batch is None:
        if world.size > 1:
            _convert(module, SyncBatchNorm2d)
        return
    local = global_batch // world.size
    if local % norm_batch:
        raise UnsuitableError(
            f"norm_batch {norm_batch} does not divide the per-worker batch of {local}",
            f"with {world.size} workers choose a divisor of {local}, or leave norm_batch out",
        )
    for norm in _convert(module, GhostBatchNorm2d):
        norm.group_size = norm_batch  # type: ignore[assignment]
