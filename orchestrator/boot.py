"""Where a process id means one process: a boot of a machine, and a process-id namespace in it."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

__all__ = ["boot_id"]


def boot_id() -> str:
    """Changes with every boot; containers of one boot differ by their process-id namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{psutil.boot_time():.0f}"
