"""The one place that reads the wall clock.

Whatever of ours wants to know what time it is asks here, so that tests and the fault harness can
make the clock jump without touching the machine's. Durations are measured with `time.monotonic`,
and what has to be unique is drawn, not timed: a clock that goes back must not change what happens.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

import psutil

__all__ = ["now_ms", "now_ns", "now_s", "now_utc", "process_age_s"]

_OLDEST_S = 60.0


def now_ns() -> int:
    """Nanoseconds since the epoch, as this machine believes. The others follow it."""
    return time.time_ns()


def now_s() -> float:
    return now_ns() / 1e9


def now_ms() -> int:
    return now_ns() // 1_000_000


def now_utc() -> datetime:
    return datetime.fromtimestamp(now_s(), UTC)


def process_age_s() -> float:
    """Seconds since this process began, by the wall clock, and so a minute at most: whoever asks
    has only just begun, and a clock that jumped must not eat a budget."""
    return min(max(0.0, now_s() - psutil.Process().create_time()), _OLDEST_S)
