"""`targetsweep plan`: what a run would do, without doing it."""

from __future__ import annotations

from functools import partial
from typing import Any

from rich.console import Console

from orchestrator.asked import Asked, bound, limited, read_asked, store_plan
from orchestrator.damage import damage_text
from orchestrator.errors import DamagedFileError
from orchestrator.estimate import Pace, measured_rates
from orchestrator.forecastview import Expected, expect
from orchestrator.inventory import read_inventory
from orchestrator.overheads import read_overheads
from orchestrator.planview import show_plan
from orchestrator.rates import load_rates, save_rates
from orchestrator.scalenotes import MAPPED_LATER
from orchestrator.sharing import Choice, Sharing, local_gpus, shipped_table
from orchestrator.store import Store
from orchestrator.sweeprows import sweep_rows, total_of

__all__ = ["Planning"]


class Planning:
    """A plan of what was asked, less what the store holds, and the rates its hours rest on. Of
    damaged files, which it counts as absent, it only says the names.

    Raises what `read_asked` and `limited` raise."""

    def __init__(self, asked: Asked, store: Store) -> None:
        self._store = store
        sweeps, infos, _ = read_asked(asked, store)
        sweeps = limited(bound(sweeps, infos, store, assume=True), asked)
        self._sweeps = sweeps
        self.damaged: list[DamagedFileError] = []
        inventory = partial(read_inventory, store, damaged=self.damaged)
        self.plan = store_plan(sweeps, infos, inventory)
        self._gpus = local_gpus()
        self.rates = measured_rates(store, self.plan, self._gpus)
        self._expected: Expected | None = None

    def calibrate(self, console: Console, name: str | None) -> None:
        """Measures here; name: keeps it in the store."""
        from orchestrator.calibration import calibrate

        units = self.plan.units if name else self.plan.left
        found = calibrate(self.plan.infos, units)
        self.rates |= found
        if name and found.steps:
            path = save_rates(self._store, name, found)
            console.print(f"rates: {path} of {self._store.uri}", soft_wrap=True, highlight=False)

    def take_rates(self, name: str) -> None:
        """Rates of another device alone, without what was measured on this one or a third."""
        self.rates = load_rates(self._store, name)
        self._gpus = (self.rates.about.get("device", name),)

    def limit(self, seconds: float, concurrency: int | None) -> None:
        """What a run of so long would do, by the rates that were taken before."""
        self._expected = expect(
            self.plan,
            self.rates,
            read_overheads(self._store),
            seconds,
            gpus=self._gpus,
            concurrency=concurrency,
        )

    def _sharing(self) -> list[Choice]:
        """Of the students that leave it to `auto`."""
        sharing = Sharing(shipped_table(), self._gpus, self.plan.infos)
        return sharing.choices(self.plan.left)

    def to_json(self) -> dict[str, Any]:
        pace = Pace(self.rates, self.plan.infos)
        rows = sweep_rows(self.plan, pace)
        limited = {} if self._expected is None else {"budget": self._expected.to_json()}
        return {
            **self.plan.to_json(),
            **limited,
            "sweeps": [row.to_json() for row in rows],
            "total": total_of(self.plan, rows, pace).to_json(),
            "rates": dict(self.rates.about),
            "sharing": [
                {"load": str(choice.load), "runs_per_gpu": choice.runs, "why": choice.why}
                for choice in self._sharing()
            ],
            "damaged": sorted({one.rel for one in self.damaged}),
            "notes": {
                sweep.name: list(sweep.scaling.notes)
                for sweep in self._sweeps
                if sweep.scaling is not None
            },
        }

    def show(self, console: Console) -> None:
        from trainers.models import parameter_count

        show_plan(
            console,
            self.plan,
            self.rates,
            self.plan.store_bytes(parameter_count),
            self._notes(),
            self._sharing(),
        )
        for line in () if self._expected is None else self._expected.lines():
            console.print(line, soft_wrap=True, markup=False, highlight=False)
        for line in damage_text(self.damaged):
            console.print(line, style="yellow", soft_wrap=True, markup=False, highlight=False)

    def _notes(self) -> list[str]:
        """What a scale does: of one sweep everything, of several what is said of them all."""
        scaled = {s.name: s.scaling.notes for s in self._sweeps if s.scaling is not None}
        if len(scaled) == 1:
            return [f"scale   {note}" for notes in scaled.values() for note in notes]
        pending = [name for name, notes in scaled.items() if MAPPED_LATER in notes]
        return [f"{len(pending)} sweeps: {MAPPED_LATER}"] if pending else []
