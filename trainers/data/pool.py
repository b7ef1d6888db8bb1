"""Threads that decode: Pillow lets go of the interpreter while it decodes and resizes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch

from trainers.data.encoded import EncodedImages
from trainers.data.source import Image
from trainers.data.views import plain_view

__all__ = [
    "DecodePool",
    "Decoding",
    "default_threads",
    "plain_batches",
    "plain_views",
    "threads_of_share",
]

_CHUNK = 8
"""Pictures a task decodes: a step's worth keeps many threads busy at little overhead."""


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
    batch: int = 500,
    parts: Sequence[range] | None = None,
) -> Generator[torch.Tensor, None, None]:
    """The plain views of all pictures in order, uint8 (≤ batch, 3, size, size), or those of each of
    `parts` (indices in steps of one). The next batches are decoded while one is used."""
    if parts is None:
        count = len(images)
        parts = [range(first, min(first + batch, count)) for first in range(0, count, batch)]

    def start(part: range) -> Decoding:
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


def plain_views(images: EncodedImages, size: int, *, threads: int | None = None) -> torch.Tensor:
    """All of `plain_batches` in memory, uint8 (N, 3, size, size): ImageNet's 50,000 test images of
    224 pixels take 7.5 GB."""
    views = torch.from_numpy(np.empty((len(images), 3, size, size), dtype=np.uint8))
    first = 0
    for part in plain_batches(images, size, threads=threads):
        views[first : first + len(part)] = part
        first += len(part)
    return views
