"""fp32, or bf16 autocast over fp32 master weights. Never a default that depends on the device."""

from __future__ import annotations

import contextlib

import torch

__all__ = ["autocast"]


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """The context in which forward passes of a run of this precision happen."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
