"""The floor: forward, backward and optimiser step on one batch that lies on the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rounds import Stopwatch, Turn
from torch import nn

from baselines.ours import LEAD_IN
from baselines.setting import Setting
from trainers.losses import classifier_loss, projection_loss
from trainers.precision import autocast

__all__ = ["Floor", "capture"]

_WARM_UP = 3
"""Steps before a capture, as torch's notes on CUDA graphs ask: lazy set-up must not be captured."""


class Floor:
    """The same model, losses and optimiser as ours; no data, no augmentation, constant targets.

    captured: replay the step as a CUDA graph, so that the host costs nothing either. Without, every
    kernel is launched by Python, which on a GPU is no floor. nchw: weights and images as torch lays
    them out by itself, not channels-last as ours.
    """

    def __init__(self, setting: Setting, *, captured: bool, nchw: bool = False) -> None:
        self.name = "floor" if captured == (setting.device.type == "cuda") else "floor, eager"
        self.name += ", NCHW" if nchw else ""
        self._device, self._batch = setting.device, setting.batch
        step = _step(setting, torch.contiguous_format if nchw else torch.channels_last)
        self._step = capture(step, setting.device) if captured else step

    def turn(self, steps: int) -> Turn:
        self.run(LEAD_IN)
        with Stopwatch(self._device) as watch:
            self.run(steps)
        return watch.turn(steps * self._batch)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self._step()

    def close(self) -> None:
        """Nothing runs beside the steps."""


def _step(setting: Setting, layout: torch.memory_format) -> Callable[[], None]:
    device, data = setting.device, setting.data
    on_gpu = device.type == "cuda"
    model = setting.student().to(device, memory_format=layout)  # type: ignore[call-overload]
    trained: Any = torch.compile(model) if setting.compile else model
    values = setting.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=values.lr, betas=(values.beta1, values.beta2), eps=values.eps,
        weight_decay=values.weight_decay, fused=True, capturable=on_gpu,
    )  # fmt: skip
    size, classes = data.info.image_size, data.info.num_classes
    views = torch.randn(setting.batch, 3, size, size, device=device)
    views = views.contiguous(memory_format=layout)
    targets_NC = nn.functional.one_hot(torch.arange(setting.batch) % classes, classes)
    targets_NC = targets_NC.float().to(device)

    def step() -> None:
        with autocast(device, setting.precision):
            projection_NC, classifier_NC = trained(views)
        loss = projection_loss(projection_NC, targets_NC)
        loss = loss + classifier_loss(classifier_NC, targets_NC)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def capture(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """`step` as a CUDA graph; call what comes back to replay it.

    The graph replays the addresses that it was captured with, so what lies there must live as long:
    what comes back holds `step`. That drops the gradients before it makes new ones, which therefore
    lie in the graph's own memory, where every replay writes them afresh.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return partial(_replay, graph, step)


def _replay(graph: torch.cuda.CUDAGraph, step: Callable[[], None]) -> None:
    graph.replay()
