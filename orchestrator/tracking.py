"""MLflow as a projection of the store: written by the driver alone, rebuilt by `targetsweep sync`.

One experiment a sweep; in it a parent run for the sweep, a child run for every run of its plan (a
run two sweeps share is a child in both) and an aggregate run for every cell group, because the UI
has no mean ± std over seeds. Every operation reads the store, looks at what MLflow has, and writes
the difference; so all of them may be repeated, and be interrupted anywhere.

What was projected is remembered in `sweeps/<name>/tracking.json`, per tracking URI, so that a sweep
in which nothing changed costs a listing of its runs and no import of MLflow.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from orchestrator import clock, paths
from orchestrator import tracking_groups as groups
from orchestrator.errors import DamagedFileError, UserError
from orchestrator.store import Store
from orchestrator.tracking_client import (
    CELL,
    KIND,
    NOTE,
    PARENT,
    Experiment,
    Known,
    connect,
    explained,
    open_experiment,
)
from orchestrator.tracking_groups import Aggregate
from orchestrator.tracking_record import Record
from orchestrator.tracking_view import RunView, fingerprint, units, view

__all__ = ["Aggregate", "OutOfTimeError", "SyncReport", "Tracker", "tracking_uri"]

_CURVE = "targetsweep.curve"
_CONTENT = "targetsweep.content"
T = TypeVar("T")


class OutOfTimeError(UserError):
    """MLflow is behind the store; `sync` brings it up."""


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """projected: runs compared with MLflow. unchanged: sweeps skipped. repaired: one line each.
    damaged: files of runs that were passed over for it."""

    projected: int
    unchanged: tuple[str, ...]
    repaired: tuple[str, ...]
    damaged: tuple[DamagedFileError, ...] = ()


def tracking_uri(store: Store, uri: str | None = None) -> str:
    """`uri`, else MLFLOW_TRACKING_URI, else the store's own SQLite database."""
    chosen = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if chosen:
        return chosen
    if store.is_local:
        return f"sqlite:///{store.root / paths.mlflow_db()}"
    raise UserError(
        f"{store.uri} is an object store, and MLflow's SQLite database needs a local path",
        "set MLFLOW_TRACKING_URI to a tracking server (or to sqlite:////local/path/mlflow.db)",
    )


class Tracker:
    """All methods raise UserError when MLflow does not answer, within about 12 s of a dead server.
    Not for two threads at once; for a driver, see `tracking_writer`. has_time: asked before each
    run; without, OutOfTimeError."""

    def __init__(
        self,
        store: Store,
        uri: str | None = None,
        has_time: Callable[[], bool] = lambda: True,
    ) -> None:
        self.uri = tracking_uri(store, uri)
        self._has_time = has_time
        self._store = store
        self._record = Record(store, self.uri)
        self._client: Any = None
        self._experiments: dict[str, Experiment] = {}
        self._begun: set[str] = set()

    def project(self, sweep: str, unit: str) -> None:
        """Makes the child run of `unit` agree with the store while a driver is at work; the sweep
        then says RUNNING until `sync`. A unit that is no run (targets), or that has not begun, is
        nothing to show."""
        shown = view(self._store, unit, live=True)
        if shown is not None:
            self._guarded(sweep, lambda experiment: self._put_live(experiment, sweep, shown))

    def aggregates(self, sweep: str, found: Iterable[Aggregate], *, force: bool = False) -> None:
        """One run a cell group; a changed group is replaced, one that is gone removed. force: as in
        `sync`."""
        wanted = {groups.cell(group): group for group in found}
        digest = groups.digest([groups.content_digest(wanted[cell]) for cell in sorted(wanted)])
        if force or self._record.read(sweep, "aggregates") != digest:
            self._guarded(sweep, lambda experiment: self._put_groups(experiment, sweep, wanted))
            self._remember(sweep, "aggregates", digest)

    def log_report(self, sweep: str, report_dir: Path, *, force: bool = False) -> None:
        """Attaches the report's files to the parent run. force: as in `sync`."""
        digest = groups.tree_digest(report_dir)
        if force or self._record.read(sweep, "report") != digest:
            self._guarded(sweep, lambda experiment: self._attach(experiment, sweep, report_dir))
            self._remember(sweep, "report", digest)

    def sync(self, sweeps: Iterable[str] | None = None, *, force: bool = False) -> SyncReport:
        """Projects the given sweeps (default: all of the store) with no driver at work: a run left
        RUNNING is closed as KILLED. force: also what the record says is up to date (a server may
        have lost its database). For the holder of the store's lease."""
        projected: list[str] = []
        unchanged: list[str] = []
        repaired: list[str] = []
        damaged: list[DamagedFileError] = []
        for sweep in self._store.list(paths.sweeps_dir()) if sweeps is None else sweeps:
            plan = self._store.read_json(paths.plan_json(sweep))
            if plan is None:
                continue
            names = units(self._store, plan)
            now = fingerprint(self._store, plan, names)
            if not force and self._record.read(sweep, "runs") == now:
                unchanged.append(sweep)
                continue
            found: list[DamagedFileError] = []
            repaired += self._sync_one(sweep, names, found)
            if not found:  # else it is looked at again
                self._remember(sweep, "runs", now)
            damaged += found
            projected += names
        return SyncReport(
            projected=len(projected),
            unchanged=tuple(unchanged),
            repaired=tuple(repaired),
            damaged=tuple({error.rel: error for error in damaged}.values()),
        )

    def _sync_one(
        self, sweep: str, names: Sequence[str], damaged: list[DamagedFileError]
    ) -> list[str]:
        self._begun.discard(sweep)
        self._experiments.pop(sweep, None)  # look again: what a lost answer left is repaired
        return self._guarded(
            sweep, lambda experiment: self._put_all(experiment, sweep, names, damaged)
        )

    def _remember(self, sweep: str, what: str, digest: str) -> None:
        runs = self._experiments[sweep].runs
        ids = {
            paths.run_name(known.tags[KIND], key): known.run_id
            for (kind, key), known in runs.items()
            if kind == "run"
        }
        self._record.write(sweep, what, digest, parent=runs["sweep", ""].run_id, ids=ids)

    def _guarded(self, sweep: str, act: Callable[[Experiment], T]) -> T:
        """Runs `act` on the sweep's experiment; after a failure nothing remembered is trusted."""
        self._heed_time()
        with explained(self.uri):
            try:
                return act(self._experiment(sweep))
            except BaseException:
                self._experiments.pop(sweep, None)
                raise

    def _heed_time(self) -> None:
        if not self._has_time():
            raise OutOfTimeError("there is no time left for MLflow", "run `targetsweep sync`")

    def _experiment(self, sweep: str) -> Experiment:
        if sweep not in self._experiments:
            if self._client is None:
                if self._is_own:
                    self._store.root.mkdir(parents=True, exist_ok=True)
                self._client = connect(self.uri)
            self._experiments[sweep] = open_experiment(
                self._client, sweep, artifacts=self._artifacts(sweep), own=self._is_own,
                note=self._note(sweep), store_id=self._store_id(),
            )  # fmt: skip
        return self._experiments[sweep]

    def _store_id(self) -> str:
        """Made when MLflow is first told of the store, by the holder of its lease."""
        try:
            found = self._store.read_json(paths.store_id())
        except DamagedFileError as error:
            self._store.set_aside(error.rel, error.reason)
            found = None
        if found is None:
            found = {"id": secrets.token_hex(8)}
            self._store.write_json(paths.store_id(), found)
        return str(found["id"])

    def _note(self, sweep: str) -> str:
        """What the sweep is, for the descriptions of its experiment and of its own run."""
        plan = self._store.read_json(paths.plan_json(sweep)) or {}
        return "\n\n".join(filter(None, [plan.get("title"), plan.get("description")])) or sweep

    @property
    def _is_own(self) -> bool:
        return self._store.is_local and self.uri == f"sqlite:///{self._store.root}/mlflow.db"

    def _artifacts(self, sweep: str) -> str | None:
        """A server knows where artifacts go. For a database it would be ./mlruns of the current
        folder, so: the store, or beside the database when the store is remote."""
        if not self.uri.startswith("sqlite:"):
            return None
        if self._store.is_local:
            home = self._store.root
        else:
            home = Path(self.uri.removeprefix("sqlite:///")).absolute().parent
        return (home / paths.mlartifacts_dir() / paths.safe_name(sweep)).as_uri()

    def _parent(self, experiment: Experiment, sweep: str) -> Known:
        """The sweep's own run, found or made."""
        known = experiment.runs.get(("sweep", ""))
        if known is None:
            known = experiment.create({KIND: "sweep", NOTE: self._note(sweep)}, name=sweep)
        return known

    def _begin(self, experiment: Experiment, sweep: str) -> None:
        """From here on MLflow shows a driver at work, so the record must not say "up to date"."""
        if sweep not in self._begun:
            self._record.forget(sweep, "runs")
            self._begun.add(sweep)
        experiment.set_status(self._parent(experiment, sweep), "RUNNING")

    def _put_live(self, experiment: Experiment, sweep: str, shown: RunView) -> None:
        self._begin(experiment, sweep)
        self._put(experiment, sweep, shown)

    def _put(self, experiment: Experiment, sweep: str, shown: RunView) -> None:
        """The child run of `shown`. Order: points, curve, facts, status; so that a run that says it
        is finished has everything, wherever an interruption fell."""
        known = self._child(experiment, sweep, shown)
        there = experiment.points(known, shown.leading_metric)
        new = [point for point in shown.points if point.step not in there]
        experiment.log_points(known, [(p.step, p.timestamp_ms, p.values) for p in new])
        tags = dict(shown.tags)
        if shown.curve is not None and known.tags.get(_CURVE) != shown.curve:
            name = paths.run_name(shown.tags[KIND], shown.key)
            curve = self._store.local(paths.metrics(name))
            self._client.log_artifact(known.run_id, str(curve), "curve")
            tags[_CURVE] = shown.curve
        experiment.log_facts(known, params=shown.params, tags=tags)
        experiment.set_status(known, shown.status, end_ms=shown.end_ms)

    def _child(self, experiment: Experiment, sweep: str, shown: RunView) -> Known:
        identity = ("run", shown.key)
        known = experiment.runs.get(identity)
        if known is not None and _contradicts(experiment, known, shown):
            experiment.discard(identity)
            experiment.repaired.append(f"replaced {shown.label}: the store holds other rows now")
            known = None
        if known is None:
            tags = {**shown.tags, PARENT: self._parent(experiment, sweep).run_id}
            known = experiment.create(tags, name=shown.label, start_ms=shown.start_ms)
        return known

    def _put_all(
        self,
        experiment: Experiment,
        sweep: str,
        names: Iterable[str],
        damaged: list[DamagedFileError],
    ) -> list[str]:
        """Everything of a sweep that nobody drives; returns what had to be repaired. damaged: gets
        the files for which a run was passed over."""
        statuses = set()
        running = (
            paths.run_name(known.tags[KIND], key)
            for (kind, key), known in experiment.runs.items()
            if kind == "run" and known.status == "RUNNING"
        )  # a student behind scores that were never begun is known to the driver alone
        for name in dict.fromkeys([*names, *running]):
            self._heed_time()
            try:
                shown = view(self._store, name, live=False)
            except DamagedFileError as error:
                damaged.append(error)
                continue
            if shown is None:
                continue
            known = experiment.runs.get(("run", shown.key))
            if known is not None and known.status == "RUNNING" and shown.status == "KILLED":
                experiment.repaired.append(f"closed {shown.label}, left running by a killed driver")
            self._put(experiment, sweep, shown)
            statuses.add(shown.status)
        worst = next((status for status in ("FAILED", "KILLED") if status in statuses), "FINISHED")
        experiment.set_status(self._parent(experiment, sweep), worst)
        repaired, experiment.repaired = experiment.repaired, []
        return [f"{sweep}: {line}" for line in repaired]

    def _put_groups(
        self, experiment: Experiment, sweep: str, wanted: Mapping[str, Aggregate]
    ) -> None:
        parent = self._parent(experiment, sweep)
        fields = groups.varying(wanted.values())
        for identity in [identity for identity in experiment.runs if identity[0] == "aggregate"]:
            if identity[1] not in wanted:
                experiment.discard(identity)
        for cell, group in wanted.items():
            self._heed_time()
            known = experiment.runs.get(("aggregate", cell))
            content = groups.content_digest(group)
            if known is not None and known.tags.get(_CONTENT) == content:
                continue
            if known is not None:
                experiment.discard(("aggregate", cell))
            tags = {KIND: "aggregate", CELL: cell, PARENT: parent.run_id}
            known = experiment.create(tags, name=groups.name(group, fields))
            experiment.log_points(known, groups.rows(group, clock.now_ms()))
            # The content tag comes last: a half-written aggregate is replaced next time.
            facts = {_CONTENT: content}
            experiment.log_facts(known, params=groups.params(group), tags=facts)
            experiment.set_status(known, "FINISHED")

    def _attach(self, experiment: Experiment, sweep: str, report_dir: Path) -> None:
        parent = self._parent(experiment, sweep)
        self._client.log_artifacts(parent.run_id, str(report_dir), "report")


def _contradicts(experiment: Experiment, known: Known, shown: RunView) -> bool:
    """MLflow has a point or a parameter that the store does not: the run was trained anew after its
    rows were lost, or written by something else. Points cannot be deleted, only their run."""
    there = experiment.points(known, shown.leading_metric)
    if any(stamps != {shown.rows.get(step)} for step, stamps in there.items()):
        return True
    return any(shown.params.get(name) != value for name, value in known.params.items())
