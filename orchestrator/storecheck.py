"""`targetsweep store check`: reads every file of a store that carries a checksum.

Weights are held against the digest in their record, runs against their key, arrays against their
fingerprint. Files in `damaged/`, MLflow's and reports, which are written anew, are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track

from orchestrator import paths
from orchestrator.errors import DamagedFileError, StoreError, TargetsweepError
from orchestrator.identity import from_canonical, kind_of, run_key
from orchestrator.lease import Lease, holder
from orchestrator.metricsfile import read_metrics
from orchestrator.sealing import seal_store
from orchestrator.store import Store, refuse_absent
from orchestrator.units import ARTEFACTS
from trainers.checkpoint import check_state, weights_digest
from trainers.data.verify import verify
from trainers.errors import TrainerError
from trainers.targets import SoftTargets

__all__ = ["DamagedStoreError", "check_store", "find_damage"]

_THREADS = 8


class DamagedStoreError(TargetsweepError):
    """Some files are not what was once written."""


class _Check(NamedTuple):
    """rel: what to read, a file or a data set's folder. read: raises DamagedFileError, StoreError,
    TrainerError."""

    rel: str
    read: Callable[[], object]


def check_store(console: Console, store: Store, *, repair: bool, seal: bool) -> None:
    """repair: sets damaged files aside. seal: first seals those of a store that was written before
    files had seals. Raises DamagedStoreError (exit status 1) when anything is damaged and stays,
    UserError where there is no store."""
    refuse_absent(store)
    if seal:
        sealed = seal_store(store)
        console.print(f"{sealed:,} files sealed", highlight=False)
    elif repair:
        with Lease(store, "targetsweep store check --repair"):
            for one in _checked(console, store):
                kept = store.set_aside(one.rel, one.reason)
                _say(console, f"{one.rel} ({one.reason}), set aside as {kept}")
                _set_aside_result(console, store, one.rel)
        console.print("what was set aside is made again by the next `targetsweep run`")
        return
    elif (driver := holder(store)) is not None:
        console.print(f"note: {driver} is at work; what it writes meanwhile may look damaged")
    damaged = _checked(console, store)
    if damaged:
        lines = "\n".join(f"  {one.rel}: {one.reason}" for one in damaged)
        raise DamagedStoreError(
            f"damaged files in {store.uri}, {len(damaged)}:\n{lines}\n"
            "  `targetsweep run` sets aside what it meets and makes it again, but for data sets; "
            "`targetsweep store check --repair` sets aside all of them"
        )


def _set_aside_result(console: Console, store: Store, rel: str) -> None:
    """A result without its rows is none: it goes with them, so that nobody counts the run as
    done."""
    name = rel.split("/")[1] if rel.startswith(f"{paths.runs_dir()}/") else ""
    if name and rel == paths.metrics(name) and store.exists(paths.result(name)):
        reason = "its rows were damaged"
        kept = store.set_aside(paths.result(name), reason)
        _say(console, f"{paths.result(name)} ({reason}), set aside as {kept}")


def _say(console: Console, line: str) -> None:
    console.print(f"damaged: {line}", style="yellow", soft_wrap=True, markup=False, highlight=False)


def _checked(console: Console, store: Store) -> list[DamagedFileError]:
    checks = list(_checks(store))
    found = find_damage(store, checks, console)
    console.print(f"{len(checks):,} files read, {len(found):,} damaged", highlight=False)
    return found


def find_damage(
    store: Store, checks: Sequence[_Check] | None = None, console: Console | None = None
) -> list[DamagedFileError]:
    """By name. checks: None for all of the store. console: shows progress on a terminal."""
    checks = list(_checks(store)) if checks is None else checks
    with ThreadPoolExecutor(_THREADS) as pool:
        answers: Any = pool.map(_fault, checks)
        if console is not None and console.is_terminal:
            answers = track(answers, "reading", len(checks), console=console, transient=True)
        found = {one.rel: one for answer in answers for one in answer}
    return [found[rel] for rel in sorted(found)]


def _fault(check: _Check) -> list[DamagedFileError]:
    try:
        check.read()
    except DamagedFileError as error:
        return [error]
    except TrainerError as error:
        return [DamagedFileError(check.rel, error.problem)]
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return []  # it went while we looked
        raise
    return []


# -- what there is to read ----------------------------------------------------------------------


def _checks(store: Store) -> Iterator[_Check]:
    for name in store.list(paths.runs_dir()):
        yield from _run_checks(store, name)
    for file in store.list(paths.targets_dir()):
        rel = f"{paths.targets_dir()}/{file}"
        yield _Check(rel, partial(_read_targets, store, rel))
    for sweep in store.list(paths.sweeps_dir()):
        there = store.list(paths.sweep_dir(sweep))
        for file in ("plan.json", "tracking.json"):
            if file in there:
                yield _json_check(store, f"{paths.sweep_dir(sweep)}/{file}")
    for file in store.list("rates"):
        yield _json_check(store, f"rates/{file}")
    for name in store.list(paths.datasets_dir()):
        if store.exists(paths.dataset_meta(name)):
            rel = paths.dataset_dir(name)
            yield _Check(rel, partial(_read_dataset, store, rel))


def _json_check(store: Store, rel: str) -> _Check:
    return _Check(rel, partial(store.read_json, rel))


def _run_checks(store: Store, name: str) -> Iterator[_Check]:
    folder, there = paths.run_dir(name), store.list(paths.run_dir(name))
    for file in there:
        rel = f"{folder}/{file}"
        if file == "run.json":
            yield _Check(rel, partial(_read_run, store, name))
        elif file.endswith(".json"):
            yield _json_check(store, rel)
        elif file == "metrics.parquet":
            yield _Check(rel, partial(read_metrics, store, name))
    if "result.json" in there and "metrics.parquet" not in there:
        if name.partition("-")[0] not in ARTEFACTS:
            yield _Check(f"{folder}/result.json", partial(_no_rows, f"{folder}/result.json"))
    for file in store.list(paths.checkpoint_dir(name)) if "checkpoint" in there else ():
        rel = f"{paths.checkpoint_dir(name)}/{file}"
        if file.endswith(".ckpt"):
            yield _Check(rel, partial(_read_state, store, rel))
    files = store.list(paths.snapshots_dir(name)) if "snapshots" in there else []
    for file in files:
        if file.endswith(".json"):
            rel = f"{paths.snapshots_dir(name)}/{file}"
            weights = file.removesuffix(".json") + ".safetensors"
            yield _Check(rel, partial(_read_weights, store, rel, weights in files))


def _read_run(store: Store, name: str) -> None:
    rel = paths.run_json(name)
    run = store.read_json(rel)
    if run is None:
        return
    try:
        spec = from_canonical(run["spec"])
        fits = run["key"] == run_key(spec) and paths.run_name(kind_of(spec), run["key"]) == name
    except (KeyError, TypeError, AttributeError, ValueError, StoreError) as error:
        raise DamagedFileError(rel, f"it describes no run: {error}") from error
    if not fits:
        raise DamagedFileError(rel, "it does not describe the run of its key")


def _no_rows(rel: str) -> None:
    raise DamagedFileError(rel, "its metrics.parquet is gone")


def _read_state(store: Store, rel: str) -> None:
    check_state(store.read_bytes(rel))


def _read_weights(store: Store, rel: str, has_weights: bool) -> None:
    """The record, and the weights where they are there: without them it is a record alone."""
    record = store.read_json(rel)
    if record is None or not has_weights:
        return
    weights = rel.removesuffix(".json") + ".safetensors"
    if weights_digest(store.read_bytes(weights)) != record.get("digest"):
        raise DamagedFileError(weights, "its digest does not fit")


def _read_targets(store: Store, rel: str) -> None:
    SoftTargets(store.local(rel), None)


def _read_dataset(store: Store, rel: str) -> None:
    verify(store.local(rel), threads=2)
