"""From a step to the batch a worker trains on: order, images, augmentation, partners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers import rng
from trainers.augment import Augmenter, mix_targets
from trainers.data import ImageData, SampleOrder
from trainers.distributed import World
from trainers.spec import Augmentation

__all__ = ["Batch", "BatchSource"]


@dataclass(frozen=True)
class Batch:
    """One worker's rows of a global batch. views: float32 (N, 3, H, W), normalised. samples: (N,)
    indices in the full training set. partners, lam: (N,) what each view is mixed with and the share
    of its own; None without mixing."""

    views: Tensor
    samples_N: Tensor
    partners_N: Tensor | None = None
    lam_N: Tensor | None = None

    def mixed(self, targets_of: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, C) targets by sample, mixed with the images' λ (MixUp and CutMix alike)."""
        own_NC = targets_of(self.samples_N)
        if self.partners_N is None or self.lam_N is None:
            return own_NC
        return mix_targets(own_NC, targets_of(self.partners_N), self.lam_N)


class BatchSource:
    """Batches as a function of the step, over the samples (indices in the full training set) of a
    run. Images lie on the device as uint8: CIFAR takes 150 MB, once per process."""

    def __init__(
        self,
        data: ImageData,
        samples: Tensor,
        augmentation: Augmentation,
        *,
        role: rng.Role,
        seed: int,
        batch_size: int,
        world: World,
        device: torch.device,
    ) -> None:
        self.batch_size = batch_size
        self._rows = world.rows(batch_size)
        self._device = device
        self._images = data.train_images.to(device)
        self._samples = samples.to(device)
        self._order = SampleOrder(len(samples), batch_size, role, seed)
        self._augmenter = Augmenter(
            augmentation,
            role=role,
            seed=seed,
            batch_size=batch_size,
            image_size=data.info.image_size,
            mean=data.info.mean,
            std=data.info.std,
            device=device,
        )

    def batch(self, step: int) -> Batch:
        """This worker's rows of the batch that takes the weights from `step` to `step + 1`."""
        positions = torch.from_numpy(self._order.batch(step)).to(self._device, non_blocking=True)
        samples_B = self._samples[positions]
        made = self._augmenter.batch(self._images, samples_B, step, self._rows)
        views = made.views_NCHW.contiguous(memory_format=torch.channels_last)
        partners = None if made.partner_N is None else samples_B[made.partner_N]
        return Batch(views, samples_B[self._rows], partners, made.lam_N)
