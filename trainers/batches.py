"""From a step to the batch a worker trains on: order, images, augmentation, partners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers import rng
from trainers.augment import Augmenter, mix_targets
from trainers.data import EncodedImages, ImageData, SampleOrder
from trainers.data.pool import default_threads
from trainers.distributed import World
from trainers.pixels import Crops, DecodedPixels, EncodedPixels
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
    run. Decoded images lie on the device as uint8: CIFAR takes 150 MB, once per process. Encoded
    ones are decoded ahead by `decode_threads` (None: the cores there are), and cropped by it."""

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
        decode_threads: int | None = None,
    ) -> None:
        self.batch_size = batch_size
        self._rows = world.rows(batch_size)
        self._device = device
        order = SampleOrder(len(samples), batch_size, role, seed)
        is_encoded = isinstance(data.train_images, EncodedImages)
        self._augmenter = Augmenter(
            # Who decodes crops; what is left of the augmentation draws the same without.
            replace(augmentation, crop_scale=None) if is_encoded else augmentation,
            role=role,
            seed=seed,
            batch_size=batch_size,
            image_size=data.info.image_size,
            mean=data.info.mean,
            std=data.info.std,
            device=device,
        )
        self._pixels: DecodedPixels | EncodedPixels
        if isinstance(data.train_images, EncodedImages):
            crops = Crops(augmentation, role=role, seed=seed, batch_size=batch_size)
            self._pixels = EncodedPixels(
                data.train_images, data.info.image_size, samples, order, crops, device=device,
                needed=self._needed, threads=decode_threads or default_threads(world.size),
            )  # fmt: skip
        else:
            self._pixels = DecodedPixels(data.train_images.to(device), samples.to(device), order)

    def _needed(self, step: int) -> npt.NDArray[np.int64]:
        """Sorted positions in the global batch whose images this worker looks at: its rows and
        what they are mixed with."""
        own = np.arange(self._rows.start, self._rows.stop)
        partners = self._augmenter.partners(step, self._rows)
        return own if partners is None else np.union1d(own, partners.numpy())

    def batch(self, step: int) -> Batch:
        """This worker's rows of the batch that takes the weights from `step` to `step + 1`."""
        samples_B, images_of = self._pixels.step(step)
        made = self._augmenter.batch_of(images_of, step, self._rows)
        views = made.views_NCHW.contiguous(memory_format=torch.channels_last)
        partners = None if made.partner_N is None else samples_B[made.partner_N]
        return Batch(views, samples_B[self._rows], partners, made.lam_N)

    def close(self) -> None:
        """Ends the decoding threads, if there are any; they start again with the next batch."""
        self._pixels.close()
