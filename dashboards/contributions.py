"""Who contributed what to a report: hardware, precision, versions, runs, hours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dashboards.results import RunRecord

__all__ = ["HEADS", "Contribution", "contributions", "contributions_markdown"]


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """Runs that ended in one kind of environment. hours: of wall time, one run after the other.
    moved: those of the runs that began elsewhere, in another environment."""

    hardware: str
    workers: str
    precision: str
    torch: str
    runs: int
    hours: float
    moved: int

    @property
    def cells(self) -> tuple[str, ...]:
        """As a table shows them, under `HEADS`."""
        runs = f"{self.runs:,}" + (f" ({self.moved:,} begun elsewhere)" if self.moved else "")
        about = (self.hardware, self.workers, self.precision, self.torch)
        return (*about, runs, f"{self.hours:.2f}")


HEADS = ("Hardware", "Workers", "Precision", "torch", "Runs", "Hours")


def contributions(records: Iterable[RunRecord]) -> list[Contribution]:
    """By hardware, workers, precision and torch, sorted; of runs that have a result."""
    found: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in records:
        if record.result:
            own = record.result.get("environment") or {}
            names = ("hardware", "workers", "precision", "torch")
            about = [str(own.get(name, "")) for name in names]
            about[0] = about[0] or str(own.get("device", "")) or "not recorded"
            found.setdefault(tuple(about), []).append(record)
    return [
        Contribution(
            hardware=hardware,
            workers=workers,
            precision=precision,
            torch=torch,
            runs=len(own),
            hours=sum(float(record.result.get("wall_time_s") or 0) for record in own) / 3600,
            moved=sum(len(record.environments) > 1 for record in own),
        )
        for (hardware, workers, precision, torch), own in sorted(found.items())
    ]


def contributions_markdown(found: Sequence[Contribution]) -> str:
    """A heading and the table."""
    align = ["---"] * (len(HEADS) - 2) + ["---:"] * 2
    lines = [HEADS, align, *(one.cells for one in found)]
    return "## Contributions\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
