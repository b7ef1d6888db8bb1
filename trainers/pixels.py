"""The images of a step: looked up on the device, or decoded ahead of it.

Both are functions of the step alone. What is decoded ahead, and by how many threads, changes when
views are there, never what is in them.

Legend: B global batch, N positions in it that a worker needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers import rng
from trainers.augment_draws import BLOCK_STEPS, CropDraws, draw_crops
from trainers.data.encoded import EncodedImages
from trainers.data.pool import DecodePool, Decoding
from trainers.data.source import Image
from trainers.data.views import crop_view, plain_view
from trainers.spec import Augmentation

__all__ = ["Crops", "DecodedPixels", "EncodedPixels", "ImagesOf", "Leash", "Mark", "Needed"]

_AHEAD = 3
"""Steps that are decoded while one is computed, and that may wait for a device: 77 MB each for 512
views of 224 pixels, for which torch locks 128 MiB."""

ImagesOf = Callable[[slice | Tensor], Tensor]
"""uint8 images (N, 3, H, W) at positions of the global batch of a step."""


class DecodedPixels:
    """images: uint8 (S, 3, H, W), the full training set, on the device."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def stage(self, step: int) -> None:
        """They are there."""

    def images_of(self, samples_B: Tensor) -> ImagesOf:
        """The images of a step. samples: of its global batch, (B,), on the device."""

        def look_up(positions: slice | Tensor) -> Tensor:
            return self._images.index_select(0, samples_B[positions])

        return look_up

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
class Needed:
    """What a worker looks at in a step. positions: (N,) in the global batch, sorted. samples: (N,)
    indices in the full training set."""

    positions_N: npt.NDArray[np.int64]
    samples_N: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Step:
    """A step that is being decoded."""

    positions_N: npt.NDArray[np.int64]
    decoding: Decoding


class Mark(Protocol):
    """A place in what a device was asked for. `torch.cuda.Event` is one."""

    def synchronize(self) -> None: ...


class Leash:
    """How far the host may run ahead of a device: `length` marks. What it has sent stays locked
    until the device has fetched it, and nothing else keeps a host that is faster from sending on.

    mark: the present end of what the device was asked for.
    """

    def __init__(self, length: int, mark: Callable[[], Mark]) -> None:
        self._length = length
        self._mark = mark
        self._marks: deque[Mark] = deque()

    def go_on(self) -> None:
        """Marks the place, and waits until the device has no more than `length` before it."""
        self._marks.append(self._mark())
        while len(self._marks) > self._length:
            self._marks.popleft().synchronize()


def _cuda_mark(device: torch.device) -> Mark:
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


class EncodedPixels:
    """Views of `size` pixels of encoded pictures, cropped (`Crops`) or plain. needed: what a worker
    looks at in a step, at most its rows and as many partners; nothing else is decoded.

    The views of the staged step lie in one buffer, which is as large as they may be.
    """

    def __init__(
        self,
        images: EncodedImages,
        size: int,
        crops: Crops,
        needed: Callable[[int], Needed],
        *,
        rows: slice,
        batch_size: int,
        device: torch.device,
        threads: int,
    ) -> None:
        self._images = images
        self._size = size
        self._crops = crops
        self._needed = needed
        self._device = device
        self._threads = threads
        self._pool: DecodePool | None = None
        self._begun: dict[int, _Step] = {}
        most = min(batch_size, 2 * (rows.stop - rows.start))
        self._views = torch.empty((most, 3, size, size), dtype=torch.uint8, device=device)
        self._places_B = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._leash: Leash | None = None
        if device.type == "cuda":
            self._leash = Leash(_AHEAD, partial(_cuda_mark, device))

    def stage(self, step: int) -> None:
        """Sends the views of a step to their buffer, once they are decoded: its turn comes after
        the steps that read it before. Waits for a device that is `_AHEAD` steps behind. Raises
        DataError for a damaged picture."""
        for other in [other for other in self._begun if not step <= other < step + _AHEAD]:
            self._begun.pop(other).decoding.cancel()
        for following in range(step, step + _AHEAD):
            if following not in self._begun:
                self._begun[following] = self._begin(following)
        taken = self._begun.pop(step)
        # From page-locked memory, which torch does not use again before a copy out of it is over.
        views = taken.decoding.result()
        self._views[: len(views)].copy_(views, non_blocking=True)
        pinned = self._device.type == "cuda"
        places_B = torch.zeros(len(self._places_B), dtype=torch.int64, pin_memory=pinned)
        places_B.numpy()[taken.positions_N] = np.arange(len(taken.positions_N))
        self._places_B.copy_(places_B, non_blocking=True)
        if self._leash is not None:
            self._leash.go_on()

    def images_of(self, samples_B: Tensor) -> ImagesOf:
        """The views of the staged step."""

        def look_up(positions: slice | Tensor) -> Tensor:
            return self._views.index_select(0, self._places_B[positions])

        return look_up

    def _begin(self, step: int) -> _Step:
        if self._pool is None:
            self._pool = DecodePool(self._threads, pinned=self._device.type == "cuda")
        needed = self._needed(step)
        samples_N = needed.samples_N
        boxes = self._crops.boxes(step, needed.positions_N, self._images.sizes[samples_N])
        images, size = self._images, self._size

        def view(position: int) -> Image:
            index = int(samples_N[position])
            encoded, where = images.read(index), images.where(index)
            if boxes is None:
                return plain_view(encoded, where, size)
            top, left, height, width = boxes[position].tolist()
            return crop_view(encoded, where, (top, left, height, width), size)

        return _Step(needed.positions_N, self._pool.decode(len(samples_N), size, view))

    def close(self) -> None:
        """Ends the threads. The next step would start them again."""
        self._begun.clear()
        if self._pool is not None:
            self._pool.close()
            self._pool = None
