"""What a run was executed on: told in result.json, part of no key and of no table."""

from __future__ import annotations

import os
import platform
import socket
from typing import Any

import torch

from orchestrator.hardware import cpu_hardware
from trainers.distributed import World
from trainers.spec import Runtime

__all__ = ["environment"]


def environment(runtime: Runtime, precision: str) -> dict[str, Any]:
    """Versions, hardware, number of workers, and what else decides a run's last bits. share: of a
    GPU, that each worker had; None on a CPU. threads: of torch on a CPU, where they decide the
    order of sums; instructions: the widest that torch uses there ("AVX2", "AVX512"), which CPUs of
    one name do not share. convolutions: "products" where small ones are (`trainers.convolutions`).
    All three None on a GPU."""
    device = runtime.device
    is_gpu = torch.device(device).type == "cuda"
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
        "hardware": torch.cuda.get_device_name(device) if is_gpu else cpu_hardware(),
        "cpus": os.cpu_count(),
        "hostname": socket.gethostname(),
        "workers": World.current().size,
        "share": runtime.share if is_gpu else None,
        "precision": precision,
        "compiled": runtime.compile,
        "threads": None if is_gpu else runtime.threads or 1,
        "convolutions": "products" if runtime.compile and not is_gpu else None,
        "instructions": None if is_gpu else torch.backends.cpu.get_cpu_capability(),
    }
