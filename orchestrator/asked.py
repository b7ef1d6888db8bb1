"""What a command line asks of sweep files, and the plans that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from orchestrator.damage import refuse_unsealed
from orchestrator.datasets import (
    Location,
    check_locations,
    known_infos,
    locations_of,
    wanted_datasets,
)
from orchestrator.errors import UserError, nearest
from orchestrator.inventory import read_inventory
from orchestrator.measure import bind_presets, measuring_plan
from orchestrator.overrides import apply_overrides, limit_sweeps, parse_limit
from orchestrator.plan import Plan, make_plan
from orchestrator.scalefile import load_scale
from orchestrator.scaling import scale_sweep
from orchestrator.spec import Sweep, load_sweeps
from orchestrator.store import Store
from orchestrator.units import Held, Unit
from trainers.data.catalogue import OFFICIAL
from trainers.data.info import DatasetInfo

__all__ = ["Asked", "Inventory", "bound", "limited", "measuring", "read_asked", "store_plan"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asked: files, a scale file, restrictions, overrides, data folders."""

    files: Sequence[str]
    scale: str | None = None
    limits: Sequence[str] = ()
    overrides: Sequence[str] = ()
    data: Sequence[str] = ()


def read_asked(
    asked: Asked, store: Store
) -> tuple[list[Sweep], dict[str, DatasetInfo], dict[str, Location]]:
    """The sweeps, checked against everything that is known of their data sets.

    Raises SpecError with every problem of every file, UserError where the store holds another data
    set of an asked name, StoreError where it was written before files had seals.
    """
    refuse_unsealed(store)
    located = [option.partition("=")[0] for option in asked.data]
    scale = load_scale(asked.scale) if asked.scale else None
    sweeps = load_sweeps(asked.files, known_infos(store, {}), located, scale)
    locations = locations_of(sweeps, asked.data)
    infos = known_infos(store, locations)
    sweeps = load_sweeps(asked.files, infos, located, scale)
    sweeps = [apply_overrides(sweep, list(asked.overrides), infos) for sweep in sweeps]
    _check_names(located, sweeps)
    check_locations(sweeps, locations, store)
    return [scale_sweep(sweep, infos) for sweep in sweeps], infos, locations


def _check_names(located: Sequence[str], sweeps: Sequence[Sweep]) -> None:
    """Raises UserError for the path of a data set that nothing here could mean. One of a known name
    that these sweeps do not train on is fine: a script may give all it has."""
    wanted = wanted_datasets(sweeps)
    known = {*wanted, *OFFICIAL, *(name for sweep in sweeps for name in sweep.data)}
    for name in located:
        if name not in known:
            near = nearest(name, wanted)
            raise UserError(
                f"--data {name}=…: no sweep here trains on a data set of that name"
                + (f"; nearest valid name: {near}" if near else ""),
                f"these train on {', '.join(wanted)}",
            )


def limited(sweeps: Sequence[Sweep], asked: Asked) -> list[Sweep]:
    """The sweeps within `--limit`. Raises SpecError when nothing is left of them."""
    return limit_sweeps(sweeps, parse_limit(asked.limits)) if asked.limits else list(sweeps)


Inventory = Callable[[Iterable[Unit]], dict[str, Held]]
"""What the store holds of units: `read_inventory`, or that of a `Mender`."""


def store_plan(
    sweeps: Sequence[Sweep], infos: Mapping[str, DatasetInfo], inventory: Inventory
) -> Plan:
    """The plan, less what the store holds."""
    plan = make_plan(sweeps, infos)
    return plan.subtract(inventory(plan.units))


def bound(
    sweeps: Sequence[Sweep], infos: Mapping[str, DatasetInfo], store: Store, *, assume: bool
) -> list[Sweep]:
    """The sweeps with the teacher columns of measured pilots mapped by what the store holds.
    assume: those of teachers that are not measured yet count as reached."""
    inventory = partial(read_inventory, store)
    return bind_presets(sweeps, measuring(sweeps, infos, inventory), assume=assume)


def measuring(
    sweeps: Sequence[Sweep],
    infos: Mapping[str, DatasetInfo],
    inventory: Inventory,
    only: Sequence[Sweep] | None = None,
) -> Plan:
    """The plan of the teachers that measured pilots wait for, less what the store holds; `only`
    those of some of the sweeps."""
    teachers = measuring_plan(sweeps, infos, only=only).units
    if not teachers:
        return _EMPTY
    return measuring_plan(sweeps, infos, inventory(teachers), only)


_EMPTY = Plan(units=(), points={}, work={}, infos={})
