"""What a run was executed on: told in result.json, part of no key and of no table."""

from __future__ import annotations

import os
import platform
import socket
from typing import Any

import torch

from trainers.distributed import World

__all__ = ["environment"]


def environment(device: str, precision: str) -> dict[str, Any]:
    """Versions, hardware and number of workers of this process."""
    is_gpu = torch.device(device).type == "cuda"
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
        "hardware": torch.cuda.get_device_name(device) if is_gpu else platform.machine(),
        "cpus": os.cpu_count(),
        "hostname": socket.gethostname(),
        "workers": World.current().size,
        "precision": precision,
    }
