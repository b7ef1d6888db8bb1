"""Command lines that a person may give next."""

from __future__ import annotations

import shlex
import shutil
import sys

from orchestrator.jobrecord import own_job

__all__ = ["again", "command"]


def command(*arguments: str) -> str:
    """A command line that works from here, also without the environment activated."""
    name = "targetsweep" if shutil.which("targetsweep") else sys.argv[0]
    return shlex.join([name, *arguments])


def again() -> str:
    """The command that goes on: this one, or, in a Ray job, the one that submitted it."""
    job = own_job()
    return command(*sys.argv[1:]) if job is None else job.command
