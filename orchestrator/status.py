"""The commands that look: status, report, sync, doctor, data prepare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dashboards.errors import ReportError
from orchestrator import paths
from orchestrator.behind import scorer, snapshot_behind
from orchestrator.damage import damage_text, refuse_unsealed
from orchestrator.datasets import Location, is_encoded, locations_of, prepare_dataset
from orchestrator.driverstatus import driver_lines, failure_lines
from orchestrator.errors import DamagedFileError, StoreError, UserError
from orchestrator.lease import Lease
from orchestrator.machine import checks
from orchestrator.scalefile import load_scale
from orchestrator.scalenotes import MAPPED_LATER
from orchestrator.store import Store, store_errors
from orchestrator.units import provider, snapshot_token

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
    refuse_unsealed(store)
    console.print(f"store   {store.uri}", soft_wrap=True)
    for line in driver_lines(store):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("sweep")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    unmapped: list[str] = []
    failed: set[str] = set()
    damaged: list[DamagedFileError] = []
    for name in sweep_names(store):
        plan = _with_members(store, name)
        states = run_states(store, plan, damaged)
        failed |= {name for name, state in states.items() if state == "failed"}
        counts = Counter(states.values())
        counts["runs"] = counts.total()
        table.add_row(name, *(f"{counts[column]:,}" for column in _COLUMNS))
        if MAPPED_LATER in (plan.get("scale") or {}).get("notes", ()):
            unmapped.append(name)
    console.print(table)
    for line in damage_text(damaged):
        console.print(line, style="yellow", soft_wrap=True, markup=False, highlight=False)
    for line in failure_lines(store, sorted(failed)):
        console.print(line, soft_wrap=True)
    if unmapped:  # their runs are counted then
        console.print(f"{', '.join(unmapped)}: {MAPPED_LATER}", soft_wrap=True)


_COLUMNS = ("runs", "done", "begun", "failed", "blocked", "to do")


def _with_members(store: Store, name: str) -> dict[str, Any]:
    """A sweep's plan.json; a group's with the points of its members."""
    plan = store.read_json(paths.plan_json(name)) or {}
    members = [store.read_json(paths.plan_json(member)) or {} for member in plan.get("include", ())]
    return plan | {"points": [p for one in (plan, *members) for p in one.get("points", ())]}


def run_states(
    store: Store, plan: Mapping[str, Any], damaged: list[DamagedFileError] | None = None
) -> dict[str, str]:
    """The students and probes of a plan, and the teachers and students behind them: each done,
    begun, failed, blocked (by one that failed to give what it waits for) or to do; soft targets and
    scores that failed are among them. damaged: gets the results that are not what was once written;
    they count as absent."""
    damaged = [] if damaged is None else damaged
    horizons: dict[str, int] = {}
    tokens: dict[str, str] = {}
    probed: dict[str, str] = {}
    for run, horizon, snapshot, weights in _asked(plan):
        horizons[run] = max(horizon, horizons.get(run, 0))
        if snapshot:
            tokens[run] = snapshot
        if weights:
            probed[run] = weights
    lost: set[str] = set()
    states: dict[str, str] = {}
    for teacher, presets in _presets(tokens.values()).items():
        states[teacher], missing = _teacher_state(store, teacher, presets, damaged)
        lost |= {snapshot_token(teacher, float(preset)) for preset in missing}
    spoilt = _spoilt(store, plan, states)
    for run, horizon in horizons.items():
        if run in spoilt:
            is_lost = True
        elif run in probed:
            is_lost = states[provider(probed[run])] in ("failed", "blocked")
        else:
            is_lost = tokens.get(run) in lost
        states[run] = _state(store, run, horizon, damaged, is_lost=is_lost)
    return states


def _asked(plan: Mapping[str, Any]) -> Iterator[tuple[str, int, str | None, str | None]]:
    """(run, horizon, snapshot token, token of a student's weights) of the students, then of the
    probes of the plan's points; students behind probes come with the probes' step."""
    probes = []
    for point in plan["points"]:
        if point["run"] is None:
            continue  # nothing a scaled sweep could train
        weights = point.get("weights")
        horizon = point.get("actual", {}).get("horizon", point["horizon"])
        if weights:
            student, _, step = weights.partition("/step-")
            yield student, int(step), point.get("snapshot"), None
            probes.append((point["run"], horizon, None, weights))
        else:
            yield point["run"], horizon, point.get("snapshot"), None
    yield from probes


def _spoilt(store: Store, plan: Mapping[str, Any], states: dict[str, str]) -> set[str]:
    """Runs whose soft targets or scores, or the student behind those, failed; what failed is added
    to `states`."""
    failed = {
        name
        for name in store.list(paths.runs_dir())
        if name.startswith(("targets-", "scores-")) and store.exists(paths.failure(name))
    }
    targets = {snapshot_behind(store, name): name for name in failed if name.startswith("targets")}
    scorers = {
        name: scorer(store, name) for name in {p.get("scores") for p in plan["points"]} if name
    }
    failed |= {name for name in scorers.values() if name and store.exists(paths.failure(name))}
    spoilt: set[str] = set()
    for point in plan["points"]:
        settings = {**plan.get("settings", {}), **point.get("settings", {})}
        scores = point.get("scores")
        behind = {scores, scorers.get(scores)}
        if settings.get("strategy") == "C":
            behind.add(targets.get(point.get("snapshot")))
        if point["run"] is not None and (lost := behind & failed):
            spoilt.add(point["run"])
            states |= dict.fromkeys(lost, "failed")
    return spoilt


def _presets(tokens: Iterable[str]) -> dict[str, set[str]]:
    """What is asked of each teacher, by preset name."""
    asked: dict[str, set[str]] = {}
    for token in tokens:
        asked.setdefault(provider(token), set()).add(token.partition("/acc-")[2])
    return asked


def _teacher_state(
    store: Store, teacher: str, presets: set[str], damaged: list[DamagedFileError]
) -> tuple[str, set[str]]:
    """Its state, and the presets that will not come unless it is tried again."""
    there = {file.removesuffix(".json") for file in store.list(paths.snapshots_dir(teacher))}
    absent = {preset for preset in presets if f"acc-{preset}" not in there}
    result = _json(store, paths.result(teacher), damaged) or {}
    if presets <= set(result.get("presets", {})):
        return "done", set()  # also where its snapshots were deleted since
    missing = absent & {paths.preset_name(preset) for preset in result.get("missing", [])}
    if missing or store.exists(paths.failure(teacher)):
        return "failed", missing or absent
    return _begun(store, teacher), set()


def _state(
    store: Store, run: str, horizon: int, damaged: list[DamagedFileError], *, is_lost: bool
) -> str:
    result = _json(store, paths.result(run), damaged)
    if result and result.get("status") == "complete" and result.get("horizon", 0) >= horizon:
        return "done"
    if store.exists(paths.failure(run)):
        return "failed"
    return "blocked" if is_lost else _begun(store, run)


def _begun(store: Store, run: str) -> str:
    return "begun" if store.list(paths.checkpoint_dir(run)) else "to do"


def _json(store: Store, rel: str, damaged: list[DamagedFileError]) -> dict[str, Any] | None:
    try:
        return store.read_json(rel)
    except DamagedFileError as error:
        damaged.append(error)
        return None
    except StoreError:
        return None


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
        repaired = track_results(tracker, store, names, force=True)
    for line in repaired:
        console.print(line, soft_wrap=True)
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
