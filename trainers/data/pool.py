"""Threads that decode: Pillow lets go of the interpreter while it decodes and resizes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice

import numpy as np
import torch

from trainers.data.encoded import EncodedImages
from trainers.data.source import Image
from trainers.data.views import plain_view

__all__ = [
    "DecodePool",
    "Decoding",
    "PlainViews",
    "default_threads",
    "plain_batches",
    "threads_of_share",
]

_CHUNK = 8
"""Pictures a task decodes: a step's worth keeps many threads busy at little overhead."""

_BATCH = 500


def default_threads(world_size: int = 1) -> int:
    """The cores this process may use, shared among the workers of its node."""
    workers = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    return threads_of_share(1 / max(workers, 1))


def threads_of_share(share: float) -> int:
    """So much of the cores this process may use, one at the least. share: of the node."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(int((cores or 1) * min(share, 1.0) + 1e-6), 1)


class Decoding:
    """Views that are being decoded into `views`, uint8 (N, 3, size, size)."""

    def __init__(self, views: torch.Tensor, tasks: Sequence[Future[None]]) -> None:
        self._views = views
        self._tasks = tasks

    def result(self) -> torch.Tensor:
        """The views, once they are all there. Raises DataError for the first damaged picture."""
        for task in self._tasks:
            task.result()
        return self._views

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


class DecodePool:
    """A fixed number of threads. What they decode does not depend on how many they are.

    pinned: allocate views in page-locked memory, from which a GPU fetches without waiting.
    """

    def __init__(self, threads: int, *, pinned: bool = False) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._pinned = pinned

    def decode(self, count: int, size: int, view_of: Callable[[int], Image]) -> Decoding:
        """Starts on `count` views. view_of: the view of position 0 … count − 1, (3, size, size)."""
        views = torch.empty(
            (count, 3, size, size), dtype=torch.uint8, pin_memory=self._pinned and count > 0
        )
        pixels = views.numpy()

        def fill(first: int) -> None:
            for position in range(first, min(first + _CHUNK, count)):
                pixels[position] = view_of(position)

        return Decoding(
            views, [self._threads.submit(fill, first) for first in range(0, count, _CHUNK)]
        )

    def close(self) -> None:
        """Gives up what has not begun, and waits for what has: milliseconds."""
        self._threads.shutdown(wait=True, cancel_futures=True)


def plain_batches(
    images: EncodedImages,
    size: int,
    *,
    threads: int | None = None,
    batch: int = _BATCH,
    parts: Sequence[Sequence[int]] | None = None,
) -> Generator[torch.Tensor, None, None]:
    """The plain views of all pictures in order, uint8 (≤ batch, 3, size, size), or those of each of
    `parts` (indices). The next batches are decoded while one is used."""
    if parts is None:
        count = len(images)
        parts = [range(first, min(first + batch, count)) for first in range(0, count, batch)]

    def start(part: Sequence[int]) -> Decoding:
        def view(position: int) -> Image:
            index = part[position]
            return plain_view(images.read(index), images.where(index), size)

        return pool.decode(len(part), size, view)

    pool = DecodePool(threads or default_threads())
    try:
        starts = iter(parts)
        ahead = deque(map(start, islice(starts, 2)))
        while ahead:
            decoding = ahead.popleft()
            ahead.extend(map(start, islice(starts, 1)))
            yield decoding.result()
    finally:
        pool.close()


class PlainViews:
    """The plain views of encoded pictures, indexed as a uint8 (N, 3, size, size) tensor would be.
    Each is decoded when it is first asked for, and kept: a worker of eight decodes the eighth of
    the test split that it evaluates on, and who never evaluates decodes nothing. ImageNet's 50,000
    of 224 pixels take 7.5 GB. For one thread at a time."""

    def __init__(self, images: EncodedImages, size: int, *, threads: int | None = None) -> None:
        self._images = images
        self._threads = threads
        # Memory is taken page by page, as it is written to.
        self._views = torch.from_numpy(np.empty((len(images), 3, size, size), dtype=np.uint8))
        self._is_there = torch.zeros(len(images), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self._views)

    @property
    def shape(self) -> torch.Size:
        return self._views.shape

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return self._views.device

    def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """Raises DataError for a damaged picture."""
        is_wanted = torch.zeros(len(self), dtype=torch.bool)
        is_wanted[rows] = True
        missing = (is_wanted & ~self._is_there).nonzero().squeeze(1)
        indices = missing.tolist()
        parts = [indices[first : first + _BATCH] for first in range(0, len(indices), _BATCH)]
        size = self.shape[-1]
        with closing(
            plain_batches(self._images, size, threads=self._threads, parts=parts)
        ) as found:
            for part, views in zip(parts, found, strict=True):
                self._views[part] = views
                self._is_there[part] = True
        return self._views[rows]
