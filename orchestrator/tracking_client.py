"""The MLflow side of tracking: a client with short time-outs, an experiment with known runs.

MLflow is imported on first use: it costs 1.6 s, and creating its SQLite database another 2 s.
Nothing here touches the fluent API or its global state; every call names its run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator import clock
from orchestrator.errors import TargetsweepError, UserError
from orchestrator.paths import mlartifacts_dir
from orchestrator.redaction import redact, redacted
from orchestrator.store_local import temporary_name

__all__ = ["NOTE", "Experiment", "Known", "connect", "explained", "open_experiment", "redacted"]

KIND = "targetsweep.kind"
REPLACED = "targetsweep.replaced"
STORE = "targetsweep.store"
"""Of an experiment: the store whose sweep it shows."""

CELL = "targetsweep.cell"
_KIND_TAG = {"mlflow.experimentKind": "custom_model_development"}
"""Lets the UI open on training runs; it takes an experiment of no kind for one of GenAI."""
NOTE = "mlflow.note.content"
"""The tag that MLflow shows as the description of an experiment or run."""

PARENT = "mlflow.parentRunId"

_ENVIRONMENT = {
    # With MLflow's defaults one call to a dead server blocks for four minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
_SQLITE = "sqlite:///"
_MAX_BATCH = 1000  # metrics in one log_batch
_PAGE = 1000  # runs in one search

Identity = tuple[str, str]


def connect(uri: str) -> Any:
    """An MlflowClient. Values a user has set in the environment are respected."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It prints the whole traceback of what `explained` says in a sentence.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if uri.startswith(_SQLITE):
        _create_database(Path(uri.removeprefix(_SQLITE)))
    return MlflowClient(tracking_uri=uri)


def _create_database(path: Path) -> None:
    """Makes the SQLite database appear whole. MLflow creates one table by table, for two seconds,
    and can neither open nor finish what a kill in between leaves. Its mode follows the umask, as
    that of all other files: SQLite's own would keep the others of a shared store from writing."""
    if path.exists() or not path.parent.is_dir():  # MLflow's own message says what is wrong
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    temporary = path.with_name(temporary_name())
    try:
        artifacts = (path.parent / mlartifacts_dir()).as_uri()
        temporary.touch()
        made = SqlAlchemyStore(f"{_SQLITE}{temporary}", artifacts)  # type: ignore[no-untyped-call]
        made.engine.dispose()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Whatever MLflow, its database or the network raise becomes one sentence with a remedy."""
    try:
        yield
    except TargetsweepError:
        raise
    except Exception as error:
        reason = redact(_reason(error))
        raise UserError(
            f"MLflow at {redacted(uri)} does not take the results: {reason}",
            "nothing is lost: when it works again, run `targetsweep sync`",
        ) from error


def _reason(error: BaseException) -> str:
    """One line. HTTP libraries wrap "connection refused" in five layers; the innermost says it."""
    inner: BaseException | None = error
    while inner is not None:
        if (
            isinstance(inner, (ConnectionError, TimeoutError))
            and type(inner).__module__ == "builtins"
        ):
            return str(inner)
        inner = inner.__cause__ or inner.__context__
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


@dataclass(kw_only=True)
class Known:
    """What MLflow holds of one run. points: step -> timestamps of the leading metric, None before
    they were asked for."""

    run_id: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    points: dict[int, set[int]] | None = None


@dataclass(kw_only=True)
class Experiment:
    """An experiment and all its runs by what they are, kept current by its own methods. Valid while
    nobody else writes; after any failed call it must be opened again."""

    client: Any
    id: str
    runs: dict[Identity, Known] = field(default_factory=dict)
    repaired: list[str] = field(default_factory=list)

    def create(self, tags: Mapping[str, str], *, name: str, start_ms: int | None = None) -> Known:
        """The tags that identify the run are part of its creation: a kill cannot come between."""
        tags = {name: redact(value) for name, value in tags.items()}
        run = self.client.create_run(
            self.id, start_time=start_ms, tags=tags, run_name=redact(name)[:250]
        )
        known = Known(
            run_id=run.info.run_id, status="RUNNING", tags=dict(tags), params={}, points={}
        )
        self.runs[_identity(tags)] = known
        return known

    def discard(self, identity: Identity) -> None:
        """MLflow deletes softly; the tag tells our deletions from those of a person. `mlflow gc`
        frees the space."""
        known = self.runs.pop(identity)
        _discard(self.client, known.run_id)

    def points(self, known: Known, metric: str) -> dict[int, set[int]]:
        if known.points is None:
            known.points = {}
            for point in self.client.get_metric_history(known.run_id, metric):
                known.points.setdefault(point.step, set()).add(point.timestamp)
        return known.points

    def log_points(
        self, known: Known, rows: Iterable[tuple[int, int, Mapping[str, float]]]
    ) -> None:
        """rows: (step, timestamp_ms, values). A row never spans two batches, and a batch is one
        transaction: a row is there with all its values or not at all."""
        from mlflow.entities import Metric

        todo = list(rows)
        widest = max((len(values) for _, _, values in todo), default=1)
        size = max(1, _MAX_BATCH // max(1, widest))
        for batch in (todo[start : start + size] for start in range(0, len(todo), size)):
            metrics = [
                Metric(name, value, timestamp_ms, step)
                for step, timestamp_ms, values in batch
                for name, value in values.items()
            ]
            self.client.log_batch(known.run_id, metrics=metrics)
            for step, timestamp_ms, _ in batch:
                if known.points is not None:
                    known.points.setdefault(step, set()).add(timestamp_ms)

    def log_facts(
        self, known: Known, *, params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Writes what is new or different, in one call or none."""
        from mlflow.entities import Param, RunTag

        params = {name: redact(value) for name, value in params.items()}
        tags = {name: redact(value) for name, value in tags.items()}
        new_params = {name: params[name] for name in params if name not in known.params}
        new_tags = {name: tags[name] for name in tags if known.tags.get(name) != tags[name]}
        if not new_params and not new_tags:
            return
        self.client.log_batch(
            known.run_id,
            params=[Param(name, value) for name, value in new_params.items()],
            tags=[RunTag(name, value) for name, value in new_tags.items()],
        )
        known.params.update(new_params)
        known.tags.update(new_tags)

    def set_status(self, known: Known, status: str, *, end_ms: int | None = None) -> None:
        if known.status == status:
            return
        if status == "RUNNING":
            self.client.update_run(known.run_id, status=status)
        else:
            self.client.set_terminated(known.run_id, status=status, end_time=end_ms)
        known.status = status


def open_experiment(
    client: Any, name: str, *, artifacts: str | None, own: bool, note: str, store_id: str
) -> Experiment:
    """The experiment `name`, made when it is missing, restored when somebody deleted it.

    store_id: whose it is. Where another store has one of that name, this one's gets its id behind
    it: two stores would replace each other's runs for ever. note: its description, where it has
    none yet. artifacts: where its artifacts lie, None where a server decides. own: the database
    belongs to the store; when the store was moved, the old experiment still points to the old
    folder (MLflow keeps absolute locations and cannot change them), so it is put aside and a new
    one begun.
    """
    found = client.get_experiment_by_name(name)
    if found is not None and not own and found.tags.get(STORE, store_id) != store_id:
        name = f"{name} [{store_id}]"
        found = client.get_experiment_by_name(name)
    if found is not None and own and found.artifact_location != artifacts:
        if found.lifecycle_stage == "deleted":  # MLflow renames no such experiment
            client.restore_experiment(found.experiment_id)
        client.rename_experiment(found.experiment_id, f"{name} (moved {clock.now_ns()})")
        client.delete_experiment(found.experiment_id)
        found = None
    if found is None:
        tags = _KIND_TAG | {NOTE: note, STORE: store_id}
        experiment_id = client.create_experiment(name, artifact_location=artifacts, tags=tags)
        return Experiment(client=client, id=experiment_id)
    repaired = []
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
        repaired.append(f"restored the deleted experiment {name}")
    if NOTE not in found.tags:
        client.set_experiment_tag(found.experiment_id, NOTE, note)
    if found.tags.get(STORE) != store_id:  # an older version's; or copied, with its database
        client.set_experiment_tag(found.experiment_id, STORE, store_id)
    experiment = Experiment(client=client, id=found.experiment_id, repaired=repaired)
    _index(experiment)
    return experiment


def _index(experiment: Experiment) -> None:
    """Finds every run of ours once: one active run per identity stays; further ones (a create whose
    answer was lost) are deleted, a run that somebody deleted is restored."""
    groups: dict[Identity, list[Any]] = {}
    for run in _all_runs(experiment):
        if REPLACED not in run.data.tags and KIND in run.data.tags:
            groups.setdefault(_identity(run.data.tags), []).append(run)
        elif REPLACED in run.data.tags and run.info.lifecycle_stage == "active":
            experiment.client.delete_run(run.info.run_id)
    for identity, runs in groups.items():
        experiment.runs[identity] = _only_one(experiment, runs)


def _only_one(experiment: Experiment, runs: Sequence[Any]) -> Known:
    active = [run for run in runs if run.info.lifecycle_stage == "active"]
    label = runs[0].info.run_name
    if not active:
        experiment.client.restore_run(runs[0].info.run_id)
        experiment.repaired.append(f"restored the deleted run {label}")
        active = [runs[0]]
    for surplus in active[1:]:
        _discard(experiment.client, surplus.info.run_id)
        experiment.repaired.append(f"removed a second copy of the run {label}")
    kept = active[0]
    return Known(
        run_id=kept.info.run_id,
        status=kept.info.status,
        tags=dict(kept.data.tags),
        params=dict(kept.data.params),
    )


def _all_runs(experiment: Experiment) -> Iterator[Any]:
    from mlflow.entities import ViewType

    token = None
    while True:
        page = experiment.client.search_runs(
            [experiment.id],
            run_view_type=ViewType.ALL,
            max_results=_PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def _identity(tags: Mapping[str, str]) -> Identity:
    """What a run is, whichever MLflow id it has: the sweep itself, an aggregate, or a run key."""
    kind = tags[KIND]
    if kind in ("sweep", "aggregate"):
        return kind, tags.get(CELL, "")
    return "run", tags["run_key"]


def _discard(client: Any, run_id: str) -> None:
    client.set_tag(run_id, REPLACED, "true")
    client.delete_run(run_id)
