"""The device that a benchmark of steps ran on, for its JSON."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

import torch

__all__ = ["describe_device", "usable_cores"]

_CLOCKS = (
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.draw",
    "temperature.gpu",
    "driver_version",
)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def describe_device(device: torch.device) -> dict[str, Any]:
    """Name and what decides its pace. `smi`: what nvidia-smi says at this moment, where it is
    there: ask before and after, since clocks fall when idle."""
    if device.type != "cuda":
        return {
            "name": "cpu",
            "torch_threads": torch.get_num_threads(),
            "usable_cores": usable_cores(),
            "load": round(os.getloadavg()[0], 2),
        }
    about = torch.cuda.get_device_properties(device)
    return {
        "name": about.name,
        "memory_gib": round(about.total_memory / 2**30, 1),
        "multiprocessors": about.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "usable_cores": usable_cores(),
        "load": round(os.getloadavg()[0], 2),
        "smi": _nvidia_smi(f"GPU-{about.uuid}"),
    }


def _nvidia_smi(gpu: str) -> dict[str, str] | None:
    """gpu: its UUID, since CUDA_VISIBLE_DEVICES changes indices for torch alone."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [f"--id={gpu}", f"--query-gpu={','.join(_CLOCKS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(
            [program, *query], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None  # a benchmark is not lost for want of its clocks
    return dict(zip(_CLOCKS, (part.strip() for part in answer.stdout.split(",")), strict=False))
