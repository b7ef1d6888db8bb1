"""What this machine trains on, by name: its CPU, as results say it."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

__all__ = ["cpu_hardware", "cpu_name"]


@cache
def cpu_name() -> str:
    """The CPU's model, as Linux tells it; empty where nothing does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


def cpu_hardware() -> str:
    """As a result's environment names it."""
    return cpu_name() or platform.machine()
