"""Which scenes there are, with which sweep, and how often in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.chaos import dense, disks, files, kills, nodes, notices, spoils
from tests.chaos.outages import tracked
from tests.chaos.scene import Scene
from tests.chaos.sweeps import ALONE, PAIR, WIDE, Sweep

__all__ = ["ACTS", "PENDING", "SHORT", "Act"]


@dataclass(frozen=True)
class Act:
    """play: breaks things and yields; then the harness repeats the command and judges, while what
    the scene has set up still stands. times: in one pass. about_s: on two idle cores."""

    play: Callable[[Scene], Iterator[None]]
    sweep: Sweep
    times: int
    about_s: float
    limit_s: float = 600.0

    @property
    def name(self) -> str:
        return self.play.__name__.replace("_", " ")


ACTS = (
    Act(tracked(kills.workers), WIDE, 3, 150),
    Act(kills.drivers, ALONE, 2, 70),
    Act(kills.trials, ALONE, 2, 40),
    Act(kills.wide_drivers, WIDE, 2, 95),
    Act(kills.wide_trials, WIDE, 1, 110),
    Act(nodes.nodes, WIDE, 2, 120),
    Act(nodes.heads, WIDE, 2, 130),
    Act(nodes.drained, WIDE, 1, 120),
    Act(notices.notices, ALONE, 1, 55),
    Act(notices.wide_notices, WIDE, 1, 80),
    Act(files.damaged_between, ALONE, 3, 35),
    Act(files.damaged_meanwhile, ALONE, 2, 35),
    Act(disks.full_disk, ALONE, 1, 60),
    Act(disks.read_only, ALONE, 1, 60),
    Act(spoils.nans, ALONE, 1, 30),
    Act(spoils.memory, ALONE, 1, 30),
    Act(spoils.hangs, ALONE, 2, 50),
    Act(spoils.clocks, ALONE, 1, 45),
    Act(dense.dense, ALONE, 2, 60),
)

SHORT = (Act(dense.dense, ALONE, 1, 60), Act(dense.one_worker, PAIR, 1, 40))
"""Within `make test`."""

PENDING: dict[str, str] = {}
"""Scenes by name that are not played, and why."""
