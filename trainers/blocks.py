"""What a run draws, 64 steps at a time, where the step finds it: in one buffer on the device.

A block is drawn on the CPU as a pure function of its number and sent in one copy, always into the
same memory: a captured CUDA graph reads what lies there whenever it is replayed. Which row a step
reads is told by a tensor on the device, not by an argument, for the same reason.

Legend: S steps of a block, B global batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.augment_draws import BLOCK_STEPS

__all__ = ["Blocks", "Fields", "RowLayout"]

Fields = dict[str, Tensor]
"""By name: (S, B, …) of a block, (B, …) of a step."""

_ALIGNMENT = 16
"""Bytes: no field straddles what a device loads at once, and every dtype may begin there."""

_KEPT = 3
"""Blocks on the CPU: the present one, one that is drawn ahead, and one for who looks back."""


@dataclass(frozen=True)
class _Place:
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class RowLayout:
    """Where each field of a step lies in the bytes of its row."""

    def __init__(self, block: Mapping[str, Tensor]) -> None:
        self._places: dict[str, _Place] = {}
        self.row_bytes = 0
        for name, field in block.items():
            shape = tuple(field.shape[1:])
            stop = self.row_bytes + math.prod(shape) * field.element_size()
            self._places[name] = _Place(field.dtype, shape, self.row_bytes, stop)
            self.row_bytes = math.ceil(stop / _ALIGNMENT) * _ALIGNMENT

    def pack(self, block: Mapping[str, Tensor], *, pinned: bool) -> Tensor:
        """A block's fields as uint8 (S, row_bytes)."""
        packed = torch.zeros((BLOCK_STEPS, self.row_bytes), dtype=torch.uint8, pin_memory=pinned)
        for name, place in self._places.items():
            flat = block[name].reshape(BLOCK_STEPS, -1).contiguous()
            packed[:, place.start : place.stop] = flat.view(torch.uint8)
        return packed

    def unpack(self, row: Tensor) -> Fields:
        """A step's fields, (B, …), as views of its row of bytes."""
        return {
            name: row[place.start : place.stop].view(place.dtype).view(place.shape)
            for name, place in self._places.items()
        }


class Blocks:
    """The rows of steps, on the CPU (`drawn`) and on the device (`stage`, then `row`).

    draw: the fields of a block by its number, (S, B, …) on the CPU, always of the same shapes. On
    a GPU a thread draws the next block while the present one is used: 6 ms for a batch of 128 with
    `std`, a twentieth of 64 replayed steps. On a CPU they are a thousandth, and the thread would
    take from the steps what it gives, so there blocks are drawn when they are due.
    """

    def __init__(self, draw: Callable[[int], Fields], device: torch.device) -> None:
        self._draw = draw
        self._device = device
        self._ahead = device.type == "cuda"
        self._thread: ThreadPoolExecutor | None = None
        self._blocks: dict[int, Future[Tensor]] = {}
        self._layout: RowLayout | None = None  # known once a block has been drawn
        self._rows: Tensor | None = None
        self._staged: int | None = None

    def stage(self, step: int) -> None:
        """Brings the block of `step` to the device, unless it is there. The copy takes its turn
        behind the steps that read the block before, and nobody waits for it."""
        block = step // BLOCK_STEPS
        if block == self._staged:
            return
        packed = self._block(block)
        if self._rows is None:
            self._rows = torch.empty_like(packed, device=self._device)
        # Page-locked memory that is let go of is not used again before the copy out of it is over:
        # torch's allocator of such memory sees to that.
        self._rows.copy_(packed, non_blocking=True)
        self._staged = block
        if self._ahead:
            self._begin(block + 1)

    def row(self, step: Tensor) -> Fields:
        """The fields of a step, (B, …), on the device. step: int64 (1,), there too, and staged."""
        assert self._layout is not None
        assert self._rows is not None
        return self._layout.unpack(self._rows.index_select(0, step % BLOCK_STEPS)[0])

    def drawn(self, step: int) -> Fields:
        """The fields of any step, (B, …), on the CPU."""
        block, step_in_block = divmod(step, BLOCK_STEPS)
        packed = self._block(block)
        assert self._layout is not None
        return self._layout.unpack(packed[step_in_block])

    def _block(self, block: int) -> Tensor:
        self._begin(block)
        return self._blocks[block].result()

    def _begin(self, block: int) -> None:
        if block in self._blocks:
            return
        while len(self._blocks) >= _KEPT:
            del self._blocks[next(iter(self._blocks))]
        if not self._ahead:
            self._blocks[block] = Future()
            self._blocks[block].set_result(self._packed(block))
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="draw")
        self._blocks[block] = self._thread.submit(self._packed, block)

    def _packed(self, block: int) -> Tensor:
        fields = self._draw(block)
        if self._layout is None:
            self._layout = RowLayout(fields)
        return self._layout.pack(fields, pinned=self._device.type == "cuda")

    def close(self) -> None:
        """Ends the thread, if there is one; it starts again with the next block."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None
