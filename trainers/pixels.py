"""The images of a step: looked up on the device, or decoded ahead of it.

Both are functions of the step alone. What is decoded ahead, and by how many threads, changes when
views are there, never what is in them.

Legend: B global batch, N positions in it that a worker needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers import rng
from trainers.augment_draws import BLOCK_STEPS, CropDraws, draw_crops
from trainers.data import EncodedImages, SampleOrder
from trainers.data.pool import DecodePool, Decoding
from trainers.data.source import Image
from trainers.data.views import crop_view, plain_view
from trainers.spec import Augmentation

__all__ = ["Crops", "DecodedPixels", "EncodedPixels", "ImagesOf"]

_AHEAD = 3
"""Steps that are decoded while one is computed: 77 MB each for 512 views of 224 pixels."""

ImagesOf = Callable[[slice | Tensor], Tensor]
"""uint8 images (N, 3, H, W) at positions of the global batch of a step."""


class DecodedPixels:
    """images: uint8 (S, 3, H, W), the full training set. samples: indices into it that the order
    counts through, on the same device."""

    def __init__(self, images: Tensor, samples: Tensor, order: SampleOrder) -> None:
        self._images = images
        self._samples = samples
        self._order = order

    def step(self, step: int) -> tuple[Tensor, ImagesOf]:
        """The samples of a step's global batch, (B,), and their images."""
        positions = torch.from_numpy(self._order.batch(step))
        samples_B = self._samples[positions.to(self._samples.device, non_blocking=True)]

        def images_of(positions: slice | Tensor) -> Tensor:
            return self._images[samples_B[positions]]

        return samples_B, images_of

    def close(self) -> None:
        pass


class Crops:
    """Boxes of random-resized crops by step; None where nothing is cropped."""

    def __init__(
        self, augmentation: Augmentation, *, role: rng.Role, seed: int, batch_size: int
    ) -> None:
        self._augmentation = augmentation
        self._role: rng.Role = role
        self._seed = seed
        self._batch_size = batch_size
        self._block: tuple[int, CropDraws | None] | None = None

    def boxes(
        self, step: int, positions: npt.NDArray[np.int64], sizes: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.int64] | None:
        """(N, 4) boxes (top, left, height, width) at positions of the global batch, in pictures of
        these sizes, (N, 2)."""
        block, step_in_block = divmod(step, BLOCK_STEPS)
        if self._block is None or self._block[0] != block:
            draws = draw_crops(
                self._augmentation,
                role=self._role,
                seed=self._seed,
                block=block,
                batch_size=self._batch_size,
            )
            self._block = block, draws
        draws = self._block[1]
        if draws is None:
            return None
        height, width = sizes.astype(np.int64).T
        return draws.at(step_in_block, positions).boxes(height, width)


@dataclass(frozen=True)
class _Step:
    """A step that is being decoded. samples: (B,). needed: (N,) positions, sorted."""

    samples_B: npt.NDArray[np.int64]
    needed_N: npt.NDArray[np.int64]
    decoding: Decoding


class EncodedPixels:
    """Views of `size` pixels of encoded pictures, cropped (`Crops`) or plain. needed: the sorted
    positions of a step that this worker looks at; nothing else is decoded."""

    def __init__(
        self,
        images: EncodedImages,
        size: int,
        samples: Tensor,
        order: SampleOrder,
        crops: Crops,
        *,
        device: torch.device,
        needed: Callable[[int], npt.NDArray[np.int64]],
        threads: int,
    ) -> None:
        self._images = images
        self._size = size
        self._samples = samples.numpy()
        self._order = order
        self._crops = crops
        self._device = device
        self._needed = needed
        self._threads = threads
        self._pool: DecodePool | None = None
        self._begun: dict[int, _Step] = {}

    def step(self, step: int) -> tuple[Tensor, ImagesOf]:
        """The samples of a step's global batch, (B,), and their views. Raises DataError for a
        damaged picture."""
        for other in [other for other in self._begun if not step <= other < step + _AHEAD]:
            self._begun.pop(other).decoding.cancel()
        for following in range(step, step + _AHEAD):
            if following not in self._begun:
                self._begun[following] = self._begin(following)
        taken = self._begun.pop(step)
        views = taken.decoding.result().to(self._device, non_blocking=True)
        place_B = np.zeros(len(taken.samples_B), dtype=np.int64)
        place_B[taken.needed_N] = np.arange(len(taken.needed_N))
        places = torch.from_numpy(place_B).to(self._device, non_blocking=True)

        def images_of(positions: slice | Tensor) -> Tensor:
            return views[places[positions]]

        return torch.from_numpy(taken.samples_B).to(self._device, non_blocking=True), images_of

    def _begin(self, step: int) -> _Step:
        if self._pool is None:
            self._pool = DecodePool(self._threads, pinned=self._device.type == "cuda")
        samples_B, needed_N = self._samples[self._order.batch(step)], self._needed(step)
        samples_N = samples_B[needed_N]
        boxes = self._crops.boxes(step, needed_N, self._images.sizes[samples_N])
        images, size = self._images, self._size

        def view(position: int) -> Image:
            index = int(samples_N[position])
            encoded, where = images.read(index), images.where(index)
            if boxes is None:
                return plain_view(encoded, where, size)
            top, left, height, width = boxes[position].tolist()
            return crop_view(encoded, where, (top, left, height, width), size)

        return _Step(samples_B, needed_N, self._pool.decode(len(samples_N), size, view))

    def close(self) -> None:
        """Ends the threads. The next step would start them again."""
        self._begun.clear()
        if self._pool is not None:
            self._pool.close()
            self._pool = None
