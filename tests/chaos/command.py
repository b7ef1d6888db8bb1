"""A `targetsweep` command whose output goes to a file: nothing it leaves behind can hold a pipe
open, and nobody waits for it longer than the scene may take."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from tests.commands import PROGRAM

__all__ = ["Command", "OutOfTime", "wait_for"]

_LOOK_S = 0.004
Found = TypeVar("Found")


class OutOfTime(Exception):
    """A scene did not get where it wanted to."""


def wait_for(look: Callable[[], Found | None], deadline_s: float, what: str) -> Found:
    """What `look` returns once it is neither None nor False. OutOfTime at the deadline
    (monotonic)."""
    while time.monotonic() < deadline_s:
        found = look()
        if found is not None and found is not False:
            return found
        time.sleep(_LOOK_S)
    raise OutOfTime(f"waited in vain for {what}")


class Command:
    """Started at once, in a session of its own. deadline_s: monotonic; no wait goes beyond it."""

    def __init__(
        self, *arguments: object, log: Path, environment: Mapping[str, str], deadline_s: float
    ) -> None:
        self.log = log
        self.deadline_s = deadline_s
        self._seen = 0
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [PROGRAM, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def until(self, pattern: str) -> re.Match[str]:
        """The next match in what it writes. OutOfTime when it ends without one."""

        def look() -> re.Match[str] | None:
            running = self.is_running
            found = re.compile(pattern, re.MULTILINE).search(self.text, self._seen)
            if found is None and not running:
                raise OutOfTime(f"no {pattern!r} in {self.log}")
            return found

        found = wait_for(look, self.deadline_s, repr(pattern))
        self._seen = found.end()
        return found

    def wait(self, within_s: float | None = None) -> int:
        """Its exit status. within_s: OutOfTime after so many seconds."""
        deadline = self.deadline_s
        if within_s is not None:
            deadline = min(deadline, time.monotonic() + within_s)
        return wait_for(self.process.poll, deadline, f"the end of {self.log.name}")

    def kill(self) -> None:
        """kill -9 of the driver alone; what it started finds out by itself."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait()

    def terminate(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
