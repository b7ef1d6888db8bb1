"""A step captured once as a CUDA graph and replayed: one launch instead of a thousand.

A launch costs the host some 5 µs; the step of a ResNet-18 at 32 pixels has several hundred of them
and 2 ms of work, so without a graph the GPU waits for Python. What may be captured is a function
of device state alone: it takes no argument, its tensors lie where they lay, it makes nothing random
and asks for no value.

What capture demands, and what each costs:
- A few steps before it, on the stream that is captured: libraries allocate, cuDNN and torch.compile
  choose and build kernels. They are real steps of the run, so nothing is lost.
- No gradient from before it. The graph's backward pass allocates them, in memory of its own.
- Errors of this thread alone (`thread_local`): decoding and drawing threads go on allocating
  page-locked memory, which the mode `global` would take for a mistake.
- Memory: the graph keeps the activations of its step from its capture to its end, beside what
  evaluation allocates. The warm-up's is given back before (`torch.cuda.graph` empties the cache).
- Autocast is entered inside of the captured function. Its cache of half-precision weights ends with
  it; one that was left from outside would freeze the weights it held.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Protocol

import torch

from trainers.distributed import World

__all__ = ["Capture", "CudaCapture", "Graph", "Replayed", "may_be_captured"]

WARM_UP_STEPS = 3
"""Runs before the capture. cuDNN and torch.compile settle in the first, cuBLAS and the optimiser's
state in the second at the latest."""

Step = Callable[[], None]


def may_be_captured(device: torch.device, world: World, *, stochastic: bool) -> bool:
    """Whether a step is a function of device state alone. Not where several workers talk to each
    other, nor where a model draws: each step's dropout is seeded by the host. A replay
    reads that seed, so it may do; tests/test_gpu_graphs.py has the experiment, which no GPU ran."""
    return device.type == "cuda" and world.size == 1 and not stochastic


class Graph(Protocol):
    """`torch.cuda.CUDAGraph` is one."""

    def replay(self) -> None: ...

    def reset(self) -> None: ...


class Capture(Protocol):
    """How to warm up for a graph and to make one."""

    def warm_up(self, function: Step) -> None: ...

    def capture(self, function: Step) -> Graph: ...


@cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class CudaCapture:
    """CUDA's. One stream for both, and for all engines of a process, one after the other: some
    libraries keep a state for each stream that they meet. Up to torch 2.14 that is cuBLAS's
    workspace, 32 MiB on a Hopper, for every thread."""

    def __init__(self, device: torch.device) -> None:
        self._stream = _stream_of(device)

    def warm_up(self, function: Step) -> None:
        """Runs it on the stream of the capture, between what this thread asked for before and
        after."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            function()
        current.wait_stream(self._stream)

    def capture(self, function: Step) -> Graph:
        """Records what the function asks of the device; does none of it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            function()
        return graph


class Replayed:
    """Calls of one function of device state: a few are run, then it is captured, then replayed."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._graph: Graph | None = None
        self._warm = 0

    def __call__(
        self, function: Step, capturing: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """function: always the same one. capturing: the context in which it is captured."""
        if self._graph is None and self._warm < WARM_UP_STEPS:
            self._warm += 1
            self._capture.warm_up(function)
            return
        if self._graph is None:
            self._graph = self._captured(function, capturing)
        self._graph.replay()

    def _captured(
        self, function: Step, capturing: Callable[[], AbstractContextManager[None]]
    ) -> Graph:
        try:
            with capturing():
                return self._capture.capture(function)
        except torch.OutOfMemoryError:
            raise  # of the memory, not of the graph
        except Exception as error:
            error.add_note(
                "The training step could not be captured as a CUDA graph. Without graphs "
                "(--no-cuda-graphs) it runs more slowly, with the same result."
            )
            raise

    def forget(self) -> None:
        """Gives the graph and its memory back; the next call begins with the warm-up again."""
        if self._graph is not None:
            self._graph.reset()
        self._graph, self._warm = None, 0
