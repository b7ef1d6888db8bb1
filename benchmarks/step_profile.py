"""Where a step's time goes, by torch's profiler: a summary, not a trace."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

__all__ = ["summary", "write_summaries"]

_TOP = 15


def summary(run: Callable[[int], None], steps: int, device: torch.device) -> dict[str, Any]:
    """run: does so many steps. Times are milliseconds a step.

    host_ms: until the host had asked for everything, without the profiler, whose own cost a call is
    as large as a small operation. A step: kernels, with copies and fills, on the GPU; calls into
    CUDA's runtime; host_ops, operations that torch dispatched.
    """
    run(1)
    _wait(device)
    began = time.perf_counter()
    run(steps)
    host_s = time.perf_counter() - began
    _wait(device)
    whole_s = time.perf_counter() - began
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        run(steps)
        _wait(device)
    return {
        "steps": steps,
        "step_ms": _ms(whole_s, steps),
        "host_ms": _ms(host_s, steps),
        **_counted(list(found.key_averages()), steps),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _counted(events: list[Any], steps: int) -> dict[str, Any]:
    on_gpu = [event for event in events if event.device_type == DeviceType.CUDA]
    kernels = [event for event in on_gpu if not getattr(event, "is_user_annotation", False)]
    host = [event for event in events if event.device_type == DeviceType.CPU]
    calls = [event for event in host if event.key.startswith(("cuda", "cuLaunch", "cuGraph"))]
    ops = [event for event in host if event.key.startswith("aten::")]
    return {
        "kernels": round(sum(event.count for event in kernels) / steps, 1),
        "host_ops": round(sum(event.count for event in ops) / steps, 1),
        "calls": {event.key: round(event.count / steps, 2) for event in calls},
        "top_gpu": _top(kernels, "self_device_time_total", steps),
        "top_host": _top(host, "self_cpu_time_total", steps),
    }


def _top(events: list[Any], time_of: str, steps: int) -> list[dict[str, Any]]:
    """The events that took most time of their own, which is in microseconds there."""
    longest = sorted(events, key=lambda event: -getattr(event, time_of))[:_TOP]
    return [
        {
            "name": event.key[:80],
            "ms": _ms(getattr(event, time_of) / 1e6, steps),
            "count": round(event.count / steps, 2),
        }
        for event in longest
    ]


def _ms(seconds: float, steps: int) -> float:
    return float(f"{1000 * seconds / steps:.4g}")


def write_summaries(path: Path, summaries: dict[str, dict[str, Any]]) -> None:
    """As JSON where the name ends so, else as text. summaries: by who was profiled."""
    if path.suffix == ".json":
        path.write_text(json.dumps(summaries, indent=2) + "\n")
    else:
        path.write_text("\n".join(_text(name, found) for name, found in summaries.items()))


def _text(name: str, found: dict[str, Any]) -> str:
    lines = [
        f"{name}: {found['step_ms']} ms a step, of which the host asks {found['host_ms']} ms; "
        f"{found['kernels']:g} kernels, {found['host_ops']:g} operations"
    ]
    lines += [f"    {count:8g}  {call}" for call, count in found["calls"].items()]
    for where in ("top_gpu", "top_host"):
        if found[where]:
            lines.append(f"  {where} (ms of its own, count, name)")
        lines += [f"    {row['ms']:10.4f} {row['count']:8g}  {row['name']}" for row in found[where]]
    return "\n".join(lines) + "\n"
