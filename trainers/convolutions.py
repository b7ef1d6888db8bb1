"""Convolutions on CPUs, past what oneDNN does wrongly and what it does slowly.

*Wrongly*: a 1×1 convolution of stride above 1. Found on a CPU with AVX2 but not AVX-512, where
training a ResNet-18 of width 4 ended in "free(): invalid size" or a segmentation fault. Channels
last, the gradient of the weights goes through a workspace that oneDNN (3.13.3, of torch 2.15; its
issue 6035) makes too small when the input channels do not fill its blocks: it writes past the end,
and with several threads the gradient is wrong. Its other paths are sound. Taking every n-th pixel
first gives one of them the same numbers to compute.

*Slowly*: small ones, where finding the kernel costs more than it computes: 0.1 ms forward and 0.3
backward, whatever the size. Compiled, they are one matrix product of the patches, which
torch.compile gathers and scatters in the loops that it makes of the operations around them: a
student of width 4 on digits trains 2.1 times as fast (`benchmarks/small_convolutions.py`). Not
compiled, the patches would cost more than they save.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CpuConv2d", "fit_for_cpus"]

_BLOCK = 16
"""Channels of the widest block, that of AVX-512; AVX2's are 8."""

_WIDEST_KERNEL = 3
"""Pixels. Patches of k × k are gathered from k² views; a wider kernel pays for them with little."""

_SMALL = 2**16
"""Numbers in the patches of a batch. Far above, oneDNN is as fast or faster: measured on one core
with AVX2, ResNet-18 of widths 4 and 8, 8 to 32 pixels, batches of 16 to 128."""


class CpuConv2d(nn.Conv2d):
    """A convolution without groups. The same parameters, the same output."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu":
            return super().forward(input)
        if torch.compiler.is_compiling() and self._is_small(input):
            return self._product(input)
        if self._is_exposed():
            down, across = self.stride
            return functional.conv2d(input[..., ::down, ::across], self.weight, self.bias)
        return super().forward(input)

    def _is_exposed(self) -> bool:
        """Whether the fault can meet it."""
        return (
            self.kernel_size == (1, 1)
            and self.stride != (1, 1)
            and self._edges() == (0, 0)
            and self.in_channels % _BLOCK != 0
        )

    def _is_small(self, images_NCHW: Tensor) -> bool:
        if images_NCHW.dim() != 4:
            return False
        down, across = self._output_size(images_NCHW)
        numbers = images_NCHW.shape[0] * down * across * self.weight[0].numel()
        return down > 0 and across > 0 and numbers <= _SMALL

    def _output_size(self, images_NCHW: Tensor) -> tuple[int, int]:
        """Height and width, in pixels."""
        down, across = (
            (pixels + 2 * edge - kernel) // stride + 1
            for pixels, edge, kernel, stride in zip(
                images_NCHW.shape[-2:], self._edges(), self.kernel_size, self.stride, strict=True
            )
        )
        return down, across

    def _edges(self) -> tuple[int, int]:
        """Rows and columns of zeros on each side."""
        if isinstance(self.padding, str):  # "valid", see `_may_be_changed`
            return 0, 0
        return self.padding[0], self.padding[1]

    def _product(self, images_NCHW: Tensor) -> Tensor:
        (down, across), (step_y, step_x) = self._output_size(images_NCHW), self.stride
        (tall, wide), (edge_y, edge_x) = self.kernel_size, self._edges()
        images_NHWC = images_NCHW.permute(0, 2, 3, 1)
        images_NHWC = functional.pad(images_NHWC, (0, 0, edge_x, edge_x, edge_y, edge_y))
        rows = [slice(y, y + (down - 1) * step_y + 1, step_y) for y in range(tall)]
        columns = [slice(x, x + (across - 1) * step_x + 1, step_x) for x in range(wide)]
        taps = [images_NHWC[:, row, column] for row in rows for column in columns]
        patches_NHWP = torch.cat(taps, -1)  # P = taps · channels
        weight_OP = self.weight.permute(0, 2, 3, 1).flatten(1)
        return functional.linear(patches_NHWP, weight_OP, self.bias).permute(0, 3, 1, 2)


def fit_for_cpus(model: nn.Module) -> None:
    """Changes every convolution of the model that may be such, in place: what it computes, and its
    parameters, hooks and names, stay as they are."""
    for module in model.modules():
        if type(module) is nn.Conv2d and _may_be_changed(module):
            module.__class__ = CpuConv2d


def _may_be_changed(conv: nn.Conv2d) -> bool:
    return (
        max(conv.kernel_size) <= _WIDEST_KERNEL
        and conv.groups == 1
        and (conv.dilation == (1, 1) or conv.kernel_size == (1, 1))  # of one pixel it means nothing
        and conv.padding_mode == "zeros"
        and conv.padding != "same"
    )
