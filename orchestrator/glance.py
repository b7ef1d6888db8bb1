"""Where a driver stands at a moment: what a terminal shows, a log says now and then, and `status`
reads in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from rich.table import Table
from rich.text import Text

__all__ = ["Glance", "Going", "duration"]

_ROWS = 20
"""Running trials shown: a screen has some forty lines."""


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`, `3 d 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


@dataclass(frozen=True, kw_only=True)
class Going:
    """A running trial. horizon: its last step; None of a search, which ends when all is found.
    top1: of the last evaluation, percent. for_s: seconds since it was begun."""

    label: str
    step: int
    horizon: int | None
    top1: float | None
    images_per_s: float
    for_s: float


@dataclass(frozen=True, kw_only=True)
class Glance:
    """counts: units by their state, in words. left_s: seconds left by measured paces, None while
    nothing is known of them; at_least: a teacher searches longer than that assumes. stopping:
    running trials were asked to end. is_early: nothing more is begun, since runs fail alike; what
    runs goes on. aside: nodes that were set aside, since runs fail there, in words."""

    counts: Mapping[str, int]
    going: tuple[Going, ...]
    elapsed_s: float
    left_s: float | None
    stopping: bool = False
    at_least: bool = False
    is_early: bool = False
    aside: tuple[str, ...] = ()

    def summary(self) -> str:
        """`stopping: … 3 done, 2 running · 12 min 03 s, about 3 h 10 min left`."""
        about = "at least" if self.at_least else "about"
        left = "" if self.left_s is None else f", {about} {duration(self.left_s)} left"
        state = "nothing more is begun, runs fail alike … " if self.is_early else ""
        state = "stopping: running trials save a checkpoint … " if self.stopping else state
        without = f" · set aside: {', '.join(self.aside)}" if self.aside else ""
        return f"{state}{self.tally()} · {duration(self.elapsed_s)}{left}{without}"

    def tally(self) -> str:
        return ", ".join(f"{count:,} {name}" for name, count in self.counts.items() if count)

    def table(self) -> Table:
        """The running trials, as many as a screen holds."""
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("running")
        for name in ("step", "of", "top-1 %", "images/s", "for"):
            table.add_column(name, justify="right")
        for one in self.going[:_ROWS]:
            table.add_row(
                Text(one.label),
                f"{one.step:,}",
                "–" if one.horizon is None else f"{one.horizon:,}",
                "" if one.top1 is None else f"{one.top1:.2f}",
                f"{one.images_per_s:,.0f}" if one.images_per_s else "",
                duration(one.for_s),
            )
        if len(self.going) > _ROWS:
            table.add_row(f"… and {len(self.going) - _ROWS} more")
        return table

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Raises TypeError where another version wrote it."""
        going = tuple(Going(**one) for one in found.get("going", ()))
        return cls(**{**found, "going": going, "aside": tuple(found.get("aside", ()))})
