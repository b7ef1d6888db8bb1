"""The commands that look: status, report, sync, doctor, data prepare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dashboards.errors import ReportError
from dashboards.report import write_report
from orchestrator import paths
from orchestrator.datasets import Location, locations_of, prepare_dataset
from orchestrator.errors import StoreError, UserError
from orchestrator.lease import Lease, holder
from orchestrator.machine import checks
from orchestrator.store import Store

__all__ = ["prepare_named", "report_sweeps", "show_checks", "show_status", "sync_store"]


def sweep_names(store: Store) -> list[str]:
    """Sweeps the store has a plan of. UserError when there is none."""
    names = [name for name in store.list("sweeps") if store.exists(paths.plan_json(name))]
    if not names:
        raise UserError(
            f"{store.uri} holds no sweep", "give --store, or `targetsweep run` a sweep file first"
        )
    return names


def show_status(console: Console, store: Store) -> None:
    driver = holder(store)
    console.print(f"store   {store.uri}", soft_wrap=True)
    console.print(f"driver  {driver or 'none'}", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("sweep")
    for name in ("runs", "done", "begun", "failed", "to do"):
        table.add_column(name, justify="right")
    for name in sweep_names(store):
        counts = _count(store, store.read_json(paths.plan_json(name)) or {})
        table.add_row(name, *(f"{counts[column]:,}" for column in
                              ("runs", "done", "begun", "failed", "to do")))  # fmt: skip
    console.print(table)


def _count(store: Store, plan: dict[str, Any]) -> Counter[str]:
    counts: Counter[str] = Counter()
    wanted: dict[str, int] = {}
    for point in plan["points"]:
        wanted[point["run"]] = max(point["horizon"], wanted.get(point["run"], 0))
    for run, horizon in wanted.items():
        counts["runs"] += 1
        counts[_state(store, run, horizon)] += 1
    return counts


def _state(store: Store, run: str, horizon: int) -> str:
    result = _json(store, paths.result(run))
    if result and result.get("status") == "complete" and result.get("horizon", 0) >= horizon:
        return "done"
    if store.exists(paths.failure(run)):
        return "failed"
    return "begun" if store.list(paths.checkpoint_dir(run)) else "to do"


def _json(store: Store, rel: str) -> dict[str, Any] | None:
    try:
        return store.read_json(rel)
    except StoreError:
        return None


def report_sweeps(console: Console, store: Store, names: Sequence[str], out: str | None) -> None:
    """Reports of the named sweeps (all, when none is). out: for one sweep, its folder."""
    from orchestrator.sweeping import publish

    known = sweep_names(store)
    for name in names or known:
        if name not in known:
            raise UserError(f"the store has no sweep {name!r}", f"it has {', '.join(known)}")
        if out is None:
            publish(name, store, console)
            continue
        try:
            report = write_report(store.uri, name, Path(out) / name if len(names) != 1 else out)
        except ReportError as error:
            raise UserError(str(error)) from error
        console.print(f"report: {report.index}", soft_wrap=True)


def sync_store(console: Console, store: Store, uri: str | None) -> None:
    """Under the lease: a driver at work is MLflow's only writer. Looks at everything, since a server
    may have lost what the store remembers having sent."""
    from orchestrator.sweeping import track_results
    from orchestrator.tracking import Tracker

    names = sweep_names(store)
    with Lease(store, "targetsweep sync"):
        tracker = Tracker(store, uri)
        repaired = track_results(tracker, store, names, force=True)
    for line in repaired:
        console.print(line, soft_wrap=True)
    console.print(f"MLflow at {tracker.uri} agrees with the store", soft_wrap=True)


def show_checks(
    console: Console, store: Store, data: Sequence[str], ray_address: str | None
) -> None:
    """Prints every check. UserError (exit status 2) when something needed is missing."""
    locations = {name: location.path for name, location in locations_of([], data).items()}
    found = checks(store, locations, ray_address)
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
    console: Console,
    store: Store,
    name: str,
    path: str | None,
    image_size: int | None,
    *,
    download: bool,
) -> None:
    location = Location(Path(path).expanduser(), image_size) if path else None
    with Lease(store, f"targetsweep data prepare {name}"):
        info = prepare_dataset(store, paths.safe_name(name), location, console, download=download)
    console.print(
        f"{name}: {info.num_train:,} training and {info.num_test:,} test images of "
        f"{info.image_size} pixels, {info.num_classes} classes, fingerprint {info.fingerprint[:16]}"
    )
