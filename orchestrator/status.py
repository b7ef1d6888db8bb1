"""The commands that look: status, report, sync, doctor, data prepare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dashboards.errors import ReportError
from orchestrator import paths
from orchestrator.bulletin import read_bulletin
from orchestrator.damage import damage_text, refuse_unsealed
from orchestrator.datasets import Location, is_encoded, locations_of, prepare_dataset
from orchestrator.driverstatus import driver_lines, failure_lines
from orchestrator.errors import DamagedFileError, TargetsweepError, UserError
from orchestrator.lease import Lease, holder
from orchestrator.machine import checks
from orchestrator.runstates import RunStates
from orchestrator.scalefile import load_scale
from orchestrator.scalenotes import MAPPED_LATER
from orchestrator.store import Store, store_errors

__all__ = ["prepare_named", "report_sweeps", "show_checks", "show_status", "sync_store"]


def sweep_names(store: Store) -> list[str]:
    """Sweeps the store has a plan of. UserError when there is none, StoreError where the store was
    written before files had seals."""
    refuse_unsealed(store)
    names = [name for name in store.list(paths.sweeps_dir()) if store.exists(paths.plan_json(name))]
    if not names:
        raise UserError(
            f"{store.uri} holds no sweep", "give --store, or `targetsweep run` a sweep file first"
        )
    return names


def show_status(console: Console, store: Store) -> None:
    """Raises UserError, after all others were shown, for sweeps whose plan is damaged."""
    refuse_unsealed(store)
    console.print(f"store   {store.uri}", soft_wrap=True)
    for line in driver_lines(store):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    _show_running(console, store)
    table = Table(box=None, pad_edge=False)
    table.add_column("sweep")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    unmapped: list[str] = []
    failed: set[str] = set()
    broken: list[DamagedFileError] = []
    runs = RunStates(store)
    for name in sweep_names(store):
        try:
            plan = _with_members(store, name)
        except DamagedFileError as error:
            broken.append(error)
            table.add_row(name, "damaged")
            continue
        states = runs.of(plan)
        failed |= {name for name, state in states.items() if state == "failed"}
        counts = Counter(states.values())
        counts["runs"] = counts.total()
        table.add_row(name, *(f"{counts[column]:,}" for column in _COLUMNS))
        if MAPPED_LATER in (plan.get("scale") or {}).get("notes", ()):
            unmapped.append(name)
    console.print(table)
    for line in damage_text(runs.damaged):
        console.print(line, style="yellow", soft_wrap=True, markup=False, highlight=False)
    for line in failure_lines(store, sorted(failed)):
        console.print(line, soft_wrap=True)
    if unmapped:  # their runs are counted then
        console.print(f"{', '.join(unmapped)}: {MAPPED_LATER}", soft_wrap=True)
    if broken:
        raise UserError("\n  ".join(damage_text(broken)), "run these sweeps again")


def _show_running(console: Console, store: Store) -> None:
    """What the driver at work said of its runs, a few seconds ago."""
    driver = holder(store)
    glance = None if driver is None else read_bulletin(store, driver.id)
    if glance is not None:
        console.print(f"        {glance.summary()}", soft_wrap=True, markup=False, highlight=False)
        if glance.going:
            console.print(glance.table())
        console.print()


_COLUMNS = ("runs", "done", "begun", "shorter", "failed", "blocked", "to do")


def _with_members(store: Store, name: str) -> dict[str, Any]:
    """A sweep's plan.json; a group's with the points of its members."""
    plan = store.read_json(paths.plan_json(name)) or {}
    members = [store.read_json(paths.plan_json(member)) or {} for member in plan.get("include", ())]
    return plan | {"points": [p for one in (plan, *members) for p in one.get("points", ())]}


def report_sweeps(
    console: Console,
    store: Store,
    names: Sequence[str],
    out: str | None,
    scale: str | None = None,
    *,
    hardware: str = "",
    precision: str = "",
) -> None:
    """Reports of the named sweeps (all, when none is). out: for one sweep, its folder. scale: a
    scale file; the reports are then those of the sweeps' pilots. hardware, precision: of which runs
    alone; of all sweeps, those that have some."""
    from dashboards.report import write_report
    from dashboards.restriction import NothingLeftError, Restriction
    from orchestrator.publishing import publish

    known = sweep_names(store)
    if scale is not None:
        suffix = f"-{load_scale(scale).name}"
        names = [name.removesuffix(suffix) + suffix for name in names]
        if not (known := [name for name in known if name.endswith(suffix)]):
            remedy = f"targetsweep run FILE --scale {scale} makes one"
            raise UserError(f"the store has no sweep of scale {suffix[1:]}", remedy)
    restriction = Restriction(hardware=hardware, precision=precision)
    if restriction and out is None:
        raise UserError(
            f"a report of {restriction.text} alone does not replace the sweep's own", "give --out"
        )
    nothing: list[NothingLeftError] = []
    unwritten: list[str] = []
    for name in names or known:
        if name not in known:
            raise UserError(f"the store has no sweep {name!r}", f"it has {', '.join(known)}")
        if out is None:
            if not publish(name, store, console):
                unwritten.append(name)
            continue
        folder = Path(out) / name if len(names) != 1 else out
        try:
            with store_errors("write", f"the report of {name}"):
                report = write_report(store.uri, name, folder, restriction)
        except NothingLeftError as error:
            nothing.append(error)
            continue
        except ReportError as error:
            raise UserError(error.problem, error.remedy) from error
        console.print(f"report: {report.index}", soft_wrap=True)
    if unwritten:
        raise UserError(
            f"no report of {', '.join(unwritten)}", "what kept it from being written stands above"
        )
    if nothing and (names or len(nothing) == len(known)):
        raise UserError(nothing[0].problem, nothing[0].remedy)
    for one in nothing:
        console.print(f"note: {one.problem}", style="yellow", soft_wrap=True, markup=False)


def sync_store(console: Console, store: Store, uri: str | None) -> None:
    """Under the lease: a driver at work is MLflow's only writer. Looks at everything, since a
    server may have lost what the store remembers having sent."""
    from orchestrator.publishing import track_results
    from orchestrator.tracking import Tracker

    names = sweep_names(store)
    with Lease(store, "targetsweep sync"):
        tracker = Tracker(store, uri)
        found = track_results(tracker, store, names, force=True)
    for line in found.repaired:
        console.print(line, soft_wrap=True)
    if found.damaged:
        for line in damage_text(found.damaged):
            console.print(line, style="yellow", soft_wrap=True, markup=False, highlight=False)
        raise TargetsweepError(
            f"MLflow at {tracker.uri} agrees with the store but for {len(found.damaged)} damaged "
            "file(s); run their sweeps again, which makes them anew, then sync"
        )
    console.print(f"MLflow at {tracker.uri} agrees with the store", soft_wrap=True)


def show_checks(
    console: Console, store: Store, data: Sequence[str], ray_address: str | None
) -> None:
    """Prints every check. UserError (exit status 2) when something needed is missing."""
    places = {
        name: location.path
        for name, location in locations_of([], data).items()
        if location.path is not None
    }
    found = checks(store, places, ray_address)
    styles = {"ok": "green", "warn": "yellow", "missing": "red"}
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in found:
        detail = check.detail + (f"\n→ {check.remedy}" if check.remedy else "")
        table.add_row(f"[{styles[check.status]}]{check.status}[/]", check.name, detail)
    console.print(table)
    missing = [check.name for check in found if check.status == "missing"]
    if missing:
        raise UserError(f"missing: {', '.join(missing)}", "see the remedies above")


def prepare_named(
    console: Console, store: Store, name: str, location: Location, *, download: bool
) -> None:
    with Lease(store, f"targetsweep data prepare {name}"):
        info = prepare_dataset(store, paths.safe_name(name), location, console, download=download)
        encoded = is_encoded(store, name)
    form = "pictures, encoded," if encoded else f"images of {info.image_size} pixels,"
    console.print(
        f"{name}: {info.num_train:,} training and {info.num_test:,} test {form} "
        f"{info.num_classes} classes, fingerprint {info.fingerprint[:16]}"
    )
