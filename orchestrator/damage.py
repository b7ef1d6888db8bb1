"""What becomes of damaged files before anything is planned: they are named, set aside, made again.

Whoever holds the lease mends (`Mender`); whoever only looks names (`damage_text`). What a plan can
write anew (run.json, request.json) is written at once, the rest is trained again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console

from dashboards.seals import NO_SEAL
from orchestrator import paths
from orchestrator.errors import DamagedFileError, StoreError
from orchestrator.inventory import read_inventory
from orchestrator.orders import attempt_name, describe, write_orders
from orchestrator.store import Store
from orchestrator.units import Held, Unit

__all__ = ["Mender", "damage_text", "refuse_unsealed"]

_THREADS = 16
_LOOKED_AT = 20
_SHOWN = 20


def damage_text(damaged: Sequence[DamagedFileError]) -> list[str]:
    """Lines for a screen, of files that nothing was done about."""
    found = sorted({(one.rel, one.reason) for one in damaged})
    lines = [f"damaged: {rel} ({reason})" for rel, reason in found[:_SHOWN]]
    if len(found) > _SHOWN:
        lines.append(f"damaged: {len(found) - _SHOWN} files more (`targetsweep store check`)")
    return lines


class Mender:
    """Reads the inventory for the holder of the lease, and sets aside what is damaged."""

    def __init__(self, store: Store, console: Console) -> None:
        self._store = store
        self._console = console

    def inventory(self, units: Iterable[Unit]) -> dict[str, Held]:
        """What sound files say. Damaged ones are named on the console and set aside."""
        units = list(units)
        damaged: list[DamagedFileError] = []
        held = read_inventory(self._store, units, damaged)
        for rel, reason in sorted({(one.rel, one.reason) for one in damaged}):
            self.set_aside(rel, reason)
        self._restore_orders(units)
        restored = self._restore_snapshots(units, {one.rel for one in damaged})
        return held | read_inventory(self._store, restored) if restored else held

    def plans(self, sweeps: Iterable[str]) -> None:
        """Sets damaged plan.json files aside; they are written anew in any case."""
        for sweep in sweeps:
            self._checked(paths.plan_json(sweep))

    def set_aside(self, rel: str, reason: str) -> None:
        kept = self._store.set_aside(rel, reason)
        self._console.print(
            f"damaged: {rel} ({reason}), set aside as {kept}; it is made again",
            style="yellow",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )

    def _checked(self, rel: str) -> bool:
        """Whether the JSON file is there and sound; a damaged one is set aside."""
        try:
            return self._store.read_json(rel) is not None
        except DamagedFileError as error:
            self.set_aside(rel, error.reason)
            return False

    def _restore_snapshots(self, units: Sequence[Unit], gone: set[str]) -> list[Unit]:
        """Teachers of which a damaged snapshot's record was written anew: a sound result says the
        same of it. Otherwise a finished sweep, which needs the snapshot no more, would lack it in
        its report."""
        restored = []
        for unit in units:
            prefix = f"{paths.snapshots_dir(unit.name)}/acc-"
            result = None
            if unit.kind == "teacher" and any(rel.startswith(prefix) for rel in gone):
                result = self._store.read_json(paths.result(unit.name))
            for name, facts in (result or {}).get("presets", {}).items():
                rel = paths.snapshot_json(unit.name, float(name))
                if rel in gone:
                    record = {"preset": float(name), **facts, "teacher": unit.key}
                    self._store.write_json(rel, record)
                    restored.append(unit)
        return restored

    def _restore_orders(self, units: Sequence[Unit]) -> None:
        """run.json and request.json of runs that are there: others read them (a teacher's students,
        MLflow), also when the run itself is done and is handed out no more."""
        there = set(self._store.list(paths.runs_dir()))
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(self._restore, (unit for unit in units if unit.name in there)))

    def _restore(self, unit: Unit) -> None:
        if not self._checked(paths.run_json(unit.name)):
            describe(self._store, unit)
        try:
            self._store.read_json(paths.request_json(unit.name))
        except DamagedFileError as error:
            self.set_aside(error.rel, error.reason)
            write_orders(self._store, unit, attempt_name(0))


def refuse_unsealed(store: Store) -> None:
    """Raises StoreError for a store that was written before files had seals, or whose sealing was
    interrupted: to whoever asks for them, every file of it would look damaged. Looks at a few
    files; one that is sealed tells that damage is damage."""
    if store.exists(paths.sealing()) or _has_no_seals(store):
        raise StoreError(
            f"{store.uri} was written before files carried seals (checksums)",
            f"seal it once: targetsweep store check --seal --store {store.uri}",
        )


def _has_no_seals(store: Store) -> bool:
    names = store.list(paths.runs_dir())
    step = max(1, len(names) // _LOOKED_AT)
    rels = [paths.plan_json(sweep) for sweep in store.list(paths.sweeps_dir())]
    rels += [
        rel
        for name in names[::step]
        for rel in (paths.run_json(name), paths.result(name), paths.request_json(name))
    ]
    missing = 0
    for rel in rels:
        try:
            if store.read_json(rel) is not None:
                return False
        except DamagedFileError as error:
            missing += error.reason == NO_SEAL
    return missing > 0
