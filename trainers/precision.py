"""fp32, or bf16 autocast over fp32 master weights. Never a default that depends on the device."""

from __future__ import annotations

import contextlib
import copy

import torch
from torch import nn

from trainers.convolutions import CpuConv2d

__all__ = ["autocast", "in_precision"]


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """The context in which forward passes of a run of this precision happen."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def in_precision(model: nn.Module, precision: str) -> nn.Module:
    """A model that is not trained, for forward passes under `autocast`, which computes with it what
    it would with the one that is given.

    bf16: a copy with the weights of convolutions and linear layers rounded once, as autocast rounds
    them in every pass, where the weights of a teacher take longer than those of its picture.
    """
    if precision != "bf16":
        return model
    model = copy.deepcopy(model)
    for module in model.modules():
        # Not other subclasses, which may do more with their weights.
        if type(module) in (nn.Conv2d, CpuConv2d, nn.Linear):
            module.to(torch.bfloat16)
    return model
