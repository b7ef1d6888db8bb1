"""Finds a training loop that hangs, from inside its process: says where it stood, and ends it.

The pulse of the trainers (`trainers.pulse`) counts what they have done. When it stands still for
`hang_after_s`, the stacks of all threads go to `runs/<name>/hang-<rank>.txt`, whose first line
names the attempt, and the process ends; the driver finds the stacks and tries again. A process that
is frozen as a whole cannot watch itself: that one the conductor misses (`look`).
"""

from __future__ import annotations

import faulthandler
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from orchestrator import paths
from orchestrator.errors import StoreError
from orchestrator.store import Store
from trainers.pulse import PULSE, Pulse

__all__ = ["Stillness", "Watchdog", "die_of_hang", "hang_dump", "stacks"]

FIRST_TIMES = 4.0
"""How many times longer the first beat may take: data sets are verified and sent to the device,
models compiled."""

_UPLOAD_S = 20.0
"""How long a dying process tries to write its stacks: the store may be what hangs."""

EXIT_STATUS = 75  # EX_TEMPFAIL: try again


class Stillness:
    """How long a count has stood still, for a looker that may itself have been asleep. A look that
    comes late (the machine slept, the process was stopped and went on) counts as a short one."""

    def __init__(self, after_s: float, period_s: float) -> None:
        self._after_s = after_s
        self._longest_s = 2 * period_s
        self._looked: float | None = None
        self._start: int | None = None
        self._seen = 0
        self.still_s = 0.0

    def look(self, beats: int, now_s: float) -> bool:
        """Whether it has stood still for too long. now_s: of a clock that never jumps."""
        if self._looked is None or self._start is None:
            self._start = self._seen = beats
        elif beats == self._seen:
            self.still_s += min(now_s - self._looked, self._longest_s)
        else:
            self._seen, self.still_s = beats, 0.0
        self._looked = now_s
        return self.still_s >= self._after_s * (FIRST_TIMES if beats == self._start else 1.0)


class Watchdog:
    """Watches from a thread of its own until closed. on_hang: called once, with the seconds; by
    default it writes the stacks and ends the process."""

    def __init__(
        self, after_s: float, on_hang: Callable[[float], object], pulse: Pulse = PULSE
    ) -> None:
        self._period_s = min(1.0, after_s / 10)
        self._stillness = Stillness(after_s, self._period_s)
        self._on_hang = on_hang
        self._pulse = pulse
        self._end = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        while not self._end.wait(self._period_s):
            if self._stillness.look(self._pulse.beats, time.monotonic()):
                self._on_hang(self._stillness.still_s)
                return

    def close(self) -> None:
        self._end.set()


def stacks() -> str:
    """Those of all threads of this process, as faulthandler prints them."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


def die_of_hang(store: Store, name: str, attempt: str, rank: int, still_s: float) -> None:
    """Leaves the stacks in the store and in Ray's log, and ends the process at once: a hanging
    thread cannot be interrupted, and a hanging collective holds its peers."""
    text = f"{attempt}\nworker {rank} of {name} did nothing for {still_s:.0f} s\n{stacks()}"
    print(text, file=sys.stderr, flush=True)

    def write() -> None:
        try:
            store.write_bytes(paths.hang(name, rank), text.encode())
        except StoreError as error:
            print(error, file=sys.stderr, flush=True)

    writing = threading.Thread(target=write, daemon=True)
    writing.start()
    writing.join(_UPLOAD_S)
    os._exit(EXIT_STATUS)


_DUMP = re.compile(r"hang-\d+\.txt")


def hang_dump(store: Store, name: str, attempt: str) -> str | None:
    """The stacks of this attempt's workers, if any hung; None as well where the store cannot be
    read now."""
    found = []
    try:
        for file in filter(_DUMP.fullmatch, store.list(paths.run_dir(name))):
            text = store.read_bytes(f"{paths.run_dir(name)}/{file}").decode(errors="replace")
            first, _, rest = text.partition("\n")
            if first == attempt:
                found.append(rest)
    except StoreError:
        return None
    return "\n".join(found) if found else None
