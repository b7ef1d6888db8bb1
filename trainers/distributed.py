"""The few collectives a run needs. One code path: a world of one skips the wire, nothing else.

Batch-norm statistics are part of what is computed, so they follow the *global* batch (or a stated
number of samples, `norm_batch`), never the number of workers. torch's own SyncBatchNorm refuses CPU
tensors; `SyncBatchNorm2d` here runs on any backend.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainers.errors import UnsuitableError

__all__ = ["GhostBatchNorm2d", "SyncBatchNorm2d", "World", "convert_batch_norm", "data_parallel"]


T = TypeVar("T")


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

    def least(self, value: Tensor) -> Tensor:
        """The least of all workers' tensors, in place; every worker must call it."""
        if self.size > 1:
            dist.all_reduce(value, dist.ReduceOp.MIN)
        return value

    def share(self, value: T) -> T:
        """Rank 0's value (plain data) on every worker; every worker must call it."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every worker's plain data, by rank, on every worker; every worker must call it."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value)
        return box

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
    known = inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {sync: False}  # torch renamed it
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, **options)


class _Gather(torch.autograd.Function):
    """Each worker's x_r, as rows of y, on every worker; hence dL/dx_r = Σ_q dL_q/dy_r."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        rows = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, value)
        return torch.stack(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        own: Tensor = total[dist.get_rank()]
        return own


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch-norm over the batch of all workers, by one gather forward and one all-reduce backward.

    The variance is the mean of the workers' own variances plus the variance of their means (the
    shares are equal): unlike a difference of sums it loses no digits to a mean far from zero.
    """

    def forward(self, input: Tensor) -> Tensor:  # (N, C, H, W)
        if not self.training or World.current().size == 1:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        values = input.to(torch.promote_types(input.dtype, self.running_mean.dtype))
        own_2C = torch.stack(torch.var_mean(values, (0, 2, 3), correction=0))
        all_R2C: Tensor = _Gather.apply(own_2C)
        vars_RC, means_RC = all_R2C.unbind(1)
        mean_C = means_RC.mean(0)
        var_C = vars_RC.mean(0) + means_RC.var(0, correction=0)
        count = input.numel() // input.shape[1] * World.current().size
        _track(self, mean_C.detach(), var_C.detach() * (count / max(count - 1, 1)))
        scale_C = self.weight * torch.rsqrt(var_C + self.eps)
        output = (values - mean_C[:, None, None]) * scale_C[:, None, None]
        return (output + self.bias[:, None, None]).to(input.dtype)


@torch.no_grad()
def _track(norm: nn.BatchNorm2d, mean_C: Tensor, var_C: Tensor) -> None:
    """One step of the running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    momentum = norm.momentum if norm.momentum is not None else 0.1
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean_C, momentum)
    norm.running_var.lerp_(var_C, momentum)


class GhostBatchNorm2d(nn.BatchNorm2d):
    """Batch-norm over groups of `group_size` consecutive samples of the global batch, whatever the
    number of workers; running statistics are the mean over all groups."""

    group_size: int = 0

    def forward(self, input: Tensor) -> Tensor:  # (N, C, H, W)
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        count_N, count_C, *plane = input.shape
        groups = count_N // self.group_size
        # (G·S, C, H, W) -> (S, G·C, H, W): a group's channel is a channel of its own.
        stacked = input.reshape(groups, self.group_size, count_C, *plane).transpose(0, 1)
        stacked = stacked.reshape(self.group_size, groups * count_C, *plane)
        mean = self.running_mean.new_zeros(groups * count_C)
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
        world = World.current()
        stats_2C = torch.stack([mean, var]).reshape(2, groups, count_C).mean(1)
        _track(self, *(world.sum(stats_2C) / world.size))
        output = output.reshape(self.group_size, groups, count_C, *plane).transpose(0, 1)
        return output.reshape(input.shape)


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
