"""1×1 convolutions of stride above 1, kept away from a fault of oneDNN on CPUs.

Found on a CPU with AVX2 but not AVX-512, where training a ResNet-18 of width 4 ended in "free():
invalid size" or a segmentation fault. For such a convolution, channels last, the gradient of the
weights goes through a workspace that oneDNN (3.13.3, of torch 2.15; its issue 6035) makes too small
when the input channels do not fill its blocks: it writes past the end, and with several threads the
gradient is wrong. Its other paths are sound. Taking every n-th pixel first gives one of them the
same numbers to compute.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["avoid_faulty_gradients"]

_BLOCK = 16
"""Channels of the widest block, that of AVX-512; AVX2's are 8."""


class _SubsampledFirst(nn.Conv2d):
    """A 1×1 convolution without padding. The same parameters, the same output."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu":
            return super().forward(input)
        down, across = self.stride
        return functional.conv2d(input[..., ::down, ::across], self.weight, self.bias)


def avoid_faulty_gradients(model: nn.Module) -> None:
    """Changes every convolution of the model that the fault can meet, in place."""
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_exposed(module):
            module.__class__ = _SubsampledFirst  # parameters, hooks and names stay as they are


def _is_exposed(conv: nn.Conv2d) -> bool:
    return (
        conv.kernel_size == (1, 1)
        and conv.stride != (1, 1)
        and conv.padding in ((0, 0), "valid")
        and conv.groups == 1
        and conv.in_channels % _BLOCK != 0
    )
