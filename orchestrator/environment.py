"""What a run was executed on: told in result.json, part of no key and of no table."""

from __future__ import annotations

import os
import platform
import socket
from functools import cache
from pathlib import Path
from typing import Any

import torch

from trainers.distributed import World
from trainers.spec import Runtime

__all__ = ["cpu_name", "environment"]


@cache
def cpu_name() -> str:
    """The CPU's model, as Linux tells it; empty where nothing does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


def environment(runtime: Runtime, precision: str) -> dict[str, Any]:
    """Versions, hardware, number of workers, and what else decides a run's last bits. threads: of
    torch on a CPU, where they decide the order of sums; instructions: the widest that torch uses
    there ("AVX2", "AVX512"), which CPUs of one name do not share. convolutions: "products" where
    small ones are (`trainers.convolutions`). All None on a GPU."""
    device = runtime.device
    is_gpu = torch.device(device).type == "cuda"
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
        "hardware": torch.cuda.get_device_name(device)
        if is_gpu
        else cpu_name() or platform.machine(),
        "cpus": os.cpu_count(),
        "hostname": socket.gethostname(),
        "workers": World.current().size,
        "precision": precision,
        "compiled": runtime.compile,
        "threads": None if is_gpu else runtime.threads or 1,
        "convolutions": "products" if runtime.compile and not is_gpu else None,
        "instructions": None if is_gpu else torch.backends.cpu.get_cpu_capability(),
    }
