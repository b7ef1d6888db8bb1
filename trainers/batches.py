"""From a step to the batch a worker trains on: order, images, augmentation, partners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers import rng
from trainers.augment import BLOCK_STEPS, Augmenter, AugmentParameters, mix_targets
from trainers.blocks import Blocks, Fields
from trainers.data.encoded import EncodedImages
from trainers.data.images import ImageData
from trainers.data.order import SampleOrder
from trainers.data.pool import default_threads
from trainers.distributed import World
from trainers.pixels import Crops, DecodedPixels, EncodedPixels, Needed
from trainers.spec import Augmentation

__all__ = ["Batch", "BatchSource"]

_SAMPLES = "samples"


def _draw(
    order: SampleOrder, samples_K: npt.NDArray[np.int64], augmenter: Augmenter, block: int
) -> Fields:
    """The samples of a block's global batches, (S, B), and how each is augmented. samples: indices
    in the full training set, which the order counts through."""
    positions = order.batches(block * BLOCK_STEPS, BLOCK_STEPS)
    return {
        _SAMPLES: torch.from_numpy(samples_K[positions]),
        **augmenter.draw(block).present(),
    }


def _needed(blocks: Blocks, rows: slice, step: int) -> Needed:
    """What the worker of these rows looks at: them and what they are mixed with."""
    drawn = blocks.drawn(step)
    own = np.arange(rows.start, rows.stop)
    partners = drawn.get("partner")
    positions = own if partners is None else np.union1d(own, partners[rows].numpy())
    return Needed(positions, drawn[_SAMPLES].numpy()[positions])


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
    ones are decoded ahead by `decode_threads` (None: the cores there are), and cropped by it.

    A step has two halves: `stage` is the host's, which puts what was drawn and decoded into the
    device's buffers; `staged` is the device's, which depends on nothing but these buffers and the
    step that a tensor there tells. compile: the augmentation.
    """

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
        compile: bool = False,
    ) -> None:
        self.batch_size = batch_size
        self._rows = world.rows(batch_size)
        self._device = device
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
            compile=compile,
        )
        order = SampleOrder(len(samples), batch_size, role, seed)
        self._blocks = Blocks(partial(_draw, order, samples.numpy(), self._augmenter), device)
        self._pixels: DecodedPixels | EncodedPixels
        if isinstance(data.train_images, EncodedImages):
            crops = Crops(augmentation, role=role, seed=seed, batch_size=batch_size)
            self._pixels = EncodedPixels(
                data.train_images, data.info.image_size, crops,
                partial(_needed, self._blocks, self._rows), rows=self._rows,
                batch_size=batch_size, device=device,
                threads=decode_threads or default_threads(world.size),
            )  # fmt: skip
        else:
            self._pixels = DecodedPixels(data.train_images.to(device))

    def stage(self, step: int) -> None:
        """Makes `staged` ready for a step. Waits for decoding alone, and where pictures are
        decoded for a device that falls behind (`pixels`). Raises DataError for a damaged one."""
        self._blocks.stage(step)
        self._pixels.stage(step)

    def staged(self, step: Tensor) -> Batch:
        """This worker's rows of the batch that takes the weights from `step` to `step + 1`. step:
        int64 (1,), on the device, the one that was staged."""
        drawn = self._blocks.row(step)
        samples_B = drawn.pop(_SAMPLES)
        made = self._augmenter.batch(
            self._pixels.images_of(samples_B), AugmentParameters(**drawn), self._rows
        )
        views = made.views_NCHW.contiguous(memory_format=torch.channels_last)
        partners = None if made.partner_N is None else samples_B[made.partner_N]
        return Batch(views, samples_B[self._rows], partners, made.lam_N)

    def batch(self, step: int) -> Batch:
        """`staged` of any step."""
        self.stage(step)
        return self.staged(torch.tensor([step], device=self._device))

    def close(self) -> None:
        """Ends the threads that draw and decode, if there are any; they start again with the next
        batch."""
        self._blocks.close()
        self._pixels.close()
