"""A screen that ends nothing: a sweep's words may go to a file on a disk that is full by now, or
through a pipe to a reader that has left. The work is worth more than they are."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO

from rich.console import Console

from orchestrator.cli_options import screen

__all__ = ["lasting_screen"]


def lasting_screen() -> Console:
    """From now on, what this process cannot print is left out, until it can be printed again."""
    sys.stdout, sys.stderr = _Lasting(sys.stdout), _Lasting(sys.stderr)
    return screen()


class _Lasting:
    """A text stream that never raises when it is written to."""

    def __init__(self, stream: TextIO | Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # the latter: it was closed
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
