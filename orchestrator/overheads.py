"""What a `run` spends around its training, as the last one in this store measured it."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from dataclasses import dataclass

from orchestrator import paths
from orchestrator.errors import StoreError
from orchestrator.store import Store

__all__ = ["Overheads", "read_overheads", "write_overheads"]


@dataclass(frozen=True, kw_only=True)
class Overheads:
    """Seconds, None where not measured. opening_s: from the start of the process to the first step.
    stopping_s: from the word to stop to the end of the last trial. closing_s: from there to the end
    of the process: reports, MLflow, bundle."""

    opening_s: float | None = None
    stopping_s: float | None = None
    closing_s: float | None = None

    @property
    def ending_s(self) -> float | None:
        if self.closing_s is None:
            return None
        return self.closing_s + (self.stopping_s or 0.0)

    def __or__(self, other: Overheads) -> Overheads:
        """Both; where both were measured, `other`."""
        mine, its = dataclasses.asdict(self), dataclasses.asdict(other)
        return Overheads(**{name: mine[name] if its[name] is None else its[name] for name in mine})


def read_overheads(store: Store) -> Overheads:
    """What cannot be read counts as not measured."""
    try:
        found = store.read_json(paths.overheads()) or {}
        names = [one.name for one in dataclasses.fields(Overheads)]
        known = {name: found[name] for name in names if found.get(name) is not None}
        return Overheads(**{name: float(value) for name, value in known.items()})
    except (StoreError, TypeError, ValueError):
        return Overheads()


def write_overheads(store: Store, measured: Overheads) -> None:
    """Beside what is known; a store that cannot be written to has worse to tell."""
    with suppress(StoreError):
        known = read_overheads(store) | measured
        values = dataclasses.asdict(known).items()
        rounded = {name: round(value, 3) for name, value in values if value is not None}
        store.write_json(paths.overheads(), rounded)
