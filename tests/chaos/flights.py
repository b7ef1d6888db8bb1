"""Reads the flight recorder (`inject/chaos_patches.py`): how far every training process came."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from tests.chaos.inject.records import RECORD
from tests.chaos.kinds import DAMAGE, Fault

__all__ = ["Flight", "charge", "flights"]


@dataclass(frozen=True)
class Flight:
    """One engine: from its first step to the last that it finished. saved: the newest step whose
    checkpoint is in the store; widest: the most steps between two of them. Times are monotonic."""

    unit: str
    rank: int
    pid: int
    first: int
    last: int
    saved: int
    widest: int
    first_s: float
    last_s: float
    saved_s: float

    @property
    def steps(self) -> int:
        return self.last - self.first + 1

    @property
    def is_alive(self) -> bool:
        """Whether its process is: a reused one trains another unit by now."""
        try:
            return psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def flights(folder: Path) -> list[Flight]:
    """All of a scene's, in the order in which they began."""
    found = []
    for path in (folder / "flights").iterdir():
        data = path.read_bytes()
        if len(data) == RECORD.size:
            unit, rank, pid, _ = path.name.split(".")
            found.append(Flight(unit, int(rank), int(pid), *RECORD.unpack(data)))
    return sorted((one for one in found if one.first_s), key=lambda one: one.first_s)


def charge(flown: list[Flight], faults: list[Fault]) -> list[str]:
    """Writes to each fault how many steps were trained again because of it: between where a run had
    come and where it went on. Returns what should not be: runs that did not go on from their newest
    checkpoint, by unit."""
    wrong = []
    units = {one.unit for one in flown}
    for unit in sorted(units):
        own = [one for one in flown if one.unit == unit and one.rank == 0]
        for before, after in pairwise(own):
            lost = max(0, before.last - after.first + 1)
            cause = _cause(faults, before, after)
            if cause is not None and lost >= cause.lost_steps:
                cause.lost_steps = lost
                cause.lost_s = max(0.0, before.last_s - before.saved_s) if lost else 0.0
            if after.first - 1 < before.saved:
                wrong.append(f"{unit} went on at {after.first}, though {before.saved} was saved")
    return wrong


def _cause(faults: list[Fault], before: Flight, after: Flight) -> Fault | None:
    """The latest fault before the run went on; first of all, damage to the run's own files, then
    what hit this very run: it may have ended long before the next fault came."""
    earlier = [one for one in faults if one.at_s <= after.first_s]
    named = [one for one in earlier if after.unit in one.what]
    own = [one for one in named if one.kind in DAMAGE and one.at_s >= before.last_s]
    hit = [one for one in named if one.kind not in DAMAGE and before.first_s <= one.at_s]
    others = [one for one in earlier if one.kind not in DAMAGE]
    return min(hit, key=lambda one: one.at_s) if hit and not own else _latest(own or others)


def _latest(faults: list[Fault]) -> Fault | None:
    return max(faults, key=lambda one: one.at_s, default=None)
