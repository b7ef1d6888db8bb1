"""Who contributed what to a report: hardware, precision, versions, runs, hours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboards.results import RunRecord
from dashboards.table_text import pipe_table

__all__ = ["HEADS", "Contribution", "arithmetic", "contributions", "contributions_markdown"]


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """Runs that ended in one kind of environment. precision: as `arithmetic` has it. hours: of wall
    time, one run after the other. moved: those of the runs that began elsewhere, in another
    environment."""

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


def arithmetic(environment: Mapping[str, Any]) -> str:
    """What decides a run's last bits on one kind of hardware: `bf16, compiled`, `fp32, AVX2, 4
    threads`, `fp32, AVX2, compiled with products` (of small convolutions). A run of before these
    were recorded tells its precision alone."""
    parts = [str(environment.get("precision", ""))]
    parts += [str(environment["instructions"])] if environment.get("instructions") else []
    with_products = " with products" if environment.get("convolutions") == "products" else ""
    parts += [f"compiled{with_products}"] if environment.get("compiled") else []
    threads = environment.get("threads") or 1
    parts += [f"{threads} threads"] if threads != 1 else []
    return ", ".join(parts)


HEADS = ("Hardware", "Workers", "Precision", "torch", "Runs", "Hours")


def contributions(records: Iterable[RunRecord]) -> list[Contribution]:
    """By hardware, workers, arithmetic and torch, sorted; of runs that have a result."""
    found: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in records:
        if record.result:
            own = record.result.get("environment") or {}
            hardware = str(own.get("hardware") or own.get("device") or "not recorded")
            workers, torch = (str(own.get(name, "")) for name in ("workers", "torch"))
            about = (hardware, workers, arithmetic(own), torch)
            found.setdefault(about, []).append(record)
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
    table = pipe_table(HEADS, (one.cells for one in found), num_keys=len(HEADS) - 2)
    return f"## Contributions\n\n{table}"
