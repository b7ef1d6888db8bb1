"""A count of what a process has done: steps, and batches of an evaluation or of soft targets.

Whoever watches for a hang compares two looks at it. There is one, because a process trains one run
at a time; it costs an addition.
"""

from __future__ import annotations

__all__ = ["PULSE", "Pulse"]


class Pulse:
    def __init__(self) -> None:
        self.beats = 0

    def beat(self) -> None:
        """Called by the one thread that trains; others only read."""
        self.beats += 1


PULSE = Pulse()
