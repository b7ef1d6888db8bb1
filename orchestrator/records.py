"""What a run leaves in the store: rows, checkpoints, snapshots, its result. One writer per run.

Rows are never replaced: a step that is computed again (after a crash, for a replay) keeps the row
and the time stamp it had, so that MLflow, which already has it, absorbs it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from dashboards.seals import seal_parquet
from orchestrator import paths
from orchestrator.errors import DamagedFileError, StoreError, SupersededError
from orchestrator.metricsfile import read_metrics
from orchestrator.store import Store, stale_error
from orchestrator.weightsfiles import SCORES
from trainers.checkpoint import (
    dump_weights,
    parse_state,
    weights_digest,
    write_state,
)
from trainers.errors import CheckpointError
from trainers.events import Checkpoint, Row, Snapshot, Weights

__all__ = ["Records", "differing_column"]

_EXECUTION = frozenset({"images_per_s", "wall_time_s", "timestamp_ms", "hostname", "replayed"})
"""Columns that describe who computed a row and when, not what came out."""

_ROLLING = re.compile(r"step-(\d{8})\.ckpt")
_KEPT = re.compile(r"acc-(\d+(?:\.\d+)?)\.ckpt")
_KEPT_WEIGHTS = re.compile(r"step-(\d{8})\.json")


def differing_column(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """The first measured column, of those both rows have, whose values differ. NaN equals NaN."""
    for column, here in ours.items():
        if column in _EXECUTION or column not in theirs:
            continue
        there = theirs[column]
        if here != there and not (here != here and there != there):
            return column
    return None


class Records:
    """The files of one run, for the one process that writes them. Two threads may use it where the
    one that writes files is given the rows that they cover (`sorted_rows`), and the other one only
    adds rows until nothing is under way any more.

    rows: by step, with what the store already has; none after damage. attempt: the driver's name
    for this attempt; once request.json names another, every write is refused. writes: False for
    the other workers of a distributed run, which only read.

    A damaged file of the run is set aside with a warning: the run goes on from what is sound.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        columns: tuple[str, ...],
        *,
        attempt: str | None = None,
        writes: bool = True,
    ) -> None:
        self._store = store
        self._name = name
        self._columns = columns
        self._attempt = attempt
        self._writes = writes
        self.warnings: list[str] = []
        self._differs = False
        self.rows: dict[int, Row] = {int(row["step"]): row for row in self._read_rows() or ()}

    def take_warnings(self) -> list[str]:
        """Those that nobody was told of yet."""
        taken, self.warnings = self.warnings, []
        return taken

    def _read_rows(self) -> list[Row] | None:
        """None when there is no sound file. What rests on the rows is of no use without them: a
        result, which says that they are there, and states, which no row would lead to."""
        try:
            table = read_metrics(self._store, self._name)
        except DamagedFileError as error:
            self._set_aside(error.rel, error.reason)
            if self._store.exists(paths.result(self._name)):
                self._set_aside(paths.result(self._name), "its rows are damaged")
            table = None
        if table is None:
            if self._columns:
                self.drop_checkpoints()
            return None
        rows: list[Row] = table.to_pylist()
        return rows

    def _set_aside(self, rel: str, reason: str) -> None:
        if self._writes:
            kept = self._store.set_aside(rel, reason)
            self.warnings.append(
                f"damaged: {rel} ({reason}), set aside as {kept}; it is made again"
            )

    def _own_json(self, rel: str) -> dict[str, Any] | None:
        """None for a damaged one, which is set aside."""
        try:
            return self._store.read_json(rel)
        except DamagedFileError as error:
            self._set_aside(error.rel, error.reason)
            return None

    def _refuse_if_superseded(self) -> None:
        """A worker whose driver or network died may live on for a while beside its successor."""
        if self._attempt is None:
            return
        request = self._store.read_json(paths.request_json(self._name)) or {}
        if request.get("attempt") != self._attempt:
            raise SupersededError(
                f"{self._name} was given to another worker; this one writes no more"
            )

    # -- checkpoints -------------------------------------------------------------------------

    def checkpoint_steps(self) -> dict[int, str]:
        """Resumable states by step. A teacher's kept ones carry their step in the snapshot."""
        steps: dict[int, str] = {}
        snapshots = self.snapshots()
        for file in self._store.list(paths.checkpoint_dir(self._name)):
            if match := _ROLLING.fullmatch(file):
                steps[int(match[1])] = file
            elif (match := _KEPT.fullmatch(file)) and float(match[1]) in snapshots:
                steps.setdefault(int(snapshots[float(match[1])]["step"]), file)
        return steps

    def load_state(self, before: int | None = None) -> tuple[int, dict[str, Any] | None]:
        """The latest resumable state at a step below `before` (None: of all), as (step, state);
        (0, None) when there is none. A damaged file is set aside, with a warning. Raises StoreError
        where one is there and cannot be read, or is listed and not there, by an old listing of the
        folder: the trial is tried again, not the training. Workers that only read pass that over:
        what counts is the start of the one that writes."""
        step, state, absent = self._latest_state(before)
        has_begun = bool(self.rows) or not self._columns  # rows come before states
        if absent or (state is None and has_begun):
            self._list_anew()
            step, state, absent = self._latest_state(before)
        if state is None and absent and self._writes:
            raise stale_error(absent[0])
        self.warnings += [f"{self._name}: {rel} passed over: it is listed only" for rel in absent]
        return step, state

    def _latest_state(self, before: int | None) -> tuple[int, dict[str, Any] | None, Sequence[str]]:
        """As `load_state`, and the later states that are listed but are not there."""
        absent: list[str] = []
        for step, file in sorted(self.checkpoint_steps().items(), reverse=True):
            if before is not None and step >= before:
                continue
            rel = f"{paths.checkpoint_dir(self._name)}/{file}"
            try:
                return step, parse_state(self._store.read_bytes(rel)), absent
            except CheckpointError as error:
                self._set_aside(rel, error.problem)
            except StoreError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                absent.append(rel)
        return 0, None, absent

    def _list_anew(self) -> None:
        """Has the next listing of the states be one of now. An NFS client goes by an old one for up
        to a minute, in which a run's states came and went on another node; but not in a folder
        that it has changed itself."""
        if self._writes and self._store.is_local:
            with suppress(StoreError):  # where nothing can be written, the run's own writes say so
                self._store.write_bytes(paths.listing_probe(self._name), b"")
                self._store.delete(paths.listing_probe(self._name))

    def save_checkpoint(self, event: Checkpoint, rows: Sequence[Row] | None = None) -> None:
        """Rows first, then the state that covers them, then older states go: at every moment the
        store can be resumed from. A replay never puts a state before a later one. rows: as in
        `save_rows`."""
        self.save_rows(rows)
        rolling = self._rolling()
        if event.keep_as is not None:
            self._write_state(f"acc-{event.keep_as}", event)
        if event.step > max(rolling, default=-1):
            self._write_state(paths.step_name(event.step), event)
            self._drop(rolling)

    def _write_state(self, stem: str, event: Checkpoint) -> None:
        rel = paths.checkpoint(self._name, stem)
        self._store.write_stream(rel, partial(write_state, event.state))

    def _rolling(self) -> list[int]:
        """Steps of the rolling states: one, or two where a kill came between write and delete."""
        files = self._store.list(paths.checkpoint_dir(self._name))
        return sorted(int(match[1]) for file in files if (match := _ROLLING.fullmatch(file)))

    def _drop(self, rolling: Iterable[int]) -> None:
        for step in rolling:
            self._store.delete(paths.checkpoint(self._name, paths.step_name(step)))

    def drop_older_checkpoints(self) -> None:
        self._drop(self._rolling()[:-1])

    def drop_checkpoints(self) -> None:
        """For the one process that writes; nothing in others."""
        if self._writes:
            self._store.delete_tree(paths.checkpoint_dir(self._name))

    # -- rows --------------------------------------------------------------------------------

    def add(self, row: Row, *, replayed: bool) -> bool:
        """Keeps a new row; False when the step has one already, with a warning where that one says
        other numbers: it came from another machine, and so will what follows it."""
        step = int(row["step"])
        if step in self.rows:
            self._compare(self.rows[step], row)
            return False
        self.rows[step] = {**row, "replayed": replayed}
        return True

    def seen_again(self, start: int, horizon: int) -> set[int]:
        """The last stored row that training from `start` passes once more, for want of later states
        (an imported run has none). Computed again, it tells whether the run goes on as it was;
        costs one evaluation."""
        passed = [step for step in self.rows if start < step <= horizon]
        return {max(passed)} if passed else set()

    def _compare(self, stored: Row, row: Row) -> None:
        column = None if self._differs else differing_column(stored, row)
        if column is not None:
            self._differs = True
            self.warnings.append(
                f"{self._name}: step {row['step']} now gives {column} {row[column]}, the stored "
                f"row (kept) has {stored[column]}: another machine, other libraries or a device "
                "that does not repeat itself; the rows after it do not continue it exactly"
            )

    def sorted_rows(self) -> list[Row]:
        """Those of now, which `add` will not change."""
        return [self.rows[step] for step in sorted(self.rows)]

    def save_rows(self, rows: Sequence[Row] | None = None) -> None:
        """rows: by step, as they were when something was begun that they cover; None: those of now.
        Costs 3 ms of the CPU's time for a thousand rows, 200 to 400 ms for a hundred thousand."""
        self._refuse_if_superseded()
        if not self._columns:
            return  # of a run that makes a file and has no rows
        rows = self.sorted_rows() if rows is None else rows
        table = pa.table({name: [row.get(name) for row in rows] for name in self._columns})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        self._store.write_bytes(paths.metrics(self._name), seal_parquet(buffer.getvalue()))

    # -- snapshots and the result ------------------------------------------------------------

    def snapshots(self) -> dict[float, dict[str, Any]]:
        """Snapshots by preset, whose JSON is there and whole; others are harvested again."""
        found = {}
        for file in self._store.list(paths.snapshots_dir(self._name)):
            if not file.endswith(".json"):
                continue
            content = self._own_json(f"{paths.snapshots_dir(self._name)}/{file}") or {}
            if content.keys() >= {"preset", "step", "accuracy", "alpha", "digest"}:
                found[float(content["preset"])] = content
        return found

    def traced(self) -> set[float]:
        """Presets that need not be looked for: harvested, and with the rows up to there. Where rows
        were lost, the search goes over that stretch again, for them."""
        reached = max(self.rows, default=-1)
        return {preset for preset, one in self.harvested().items() if int(one["step"]) <= reached}

    def harvested(self) -> dict[float, dict[str, Any]]:
        """Snapshots whose weights are there too: of an imported teacher there are records alone."""
        there = set(self._store.list(paths.snapshots_dir(self._name)))
        return {
            preset: found
            for preset, found in self.snapshots().items()
            if paths.snapshot_weights(self._name, preset).rpartition("/")[2] in there
        }

    def save_snapshot(self, event: Snapshot, teacher_key: str) -> None:
        """Weights, then the JSON that makes the snapshot exist. One that is there stays: students
        may have learnt from it. A warning where a record says other weights: students that learnt
        from those name their digest."""
        self._refuse_if_superseded()
        data = dump_weights(event.weights)
        before = self.snapshots().get(event.preset)
        if before is not None and before["digest"] != weights_digest(data):
            self.warnings.append(
                f"{self._name}: snapshot acc-{event.preset:g} is not the one recorded: "
                f"{weights_digest(data)[:16]} here, {before['digest'][:16]} there"
            )
        if event.preset in self.harvested():
            return
        self._store.write_bytes(paths.snapshot_weights(self._name, event.preset), data)
        self._store.write_json(
            paths.snapshot_json(self._name, event.preset),
            {
                "preset": event.preset,
                "step": event.step,
                "accuracy": event.accuracy,
                "alpha": event.alpha,
                "digest": weights_digest(data),
                "teacher": teacher_key,
            },
        )

    def kept_steps(self) -> set[int]:
        """Steps whose weights this student kept, going by sound records."""
        files = set(self._store.list(paths.snapshots_dir(self._name)))
        found = set()
        for match in filter(None, map(_KEPT_WEIGHTS.fullmatch, files)):
            step = int(match[1])
            content = self._own_json(paths.kept_json(self._name, step)) or {}
            if "digest" in content and f"{paths.step_name(step)}.safetensors" in files:
                found.add(step)
        return found

    def save_weights(self, event: Weights, student_key: str, teacher_digest: str | None) -> None:
        """Weights, then the JSON that makes them exist. teacher_digest: of the snapshot behind the
        student, which is behind its probes too."""
        self._refuse_if_superseded()
        data = dump_weights(event.weights)
        self._store.write_bytes(paths.kept_weights(self._name, event.step), data)
        self._store.write_json(
            paths.kept_json(self._name, event.step),
            {
                "step": event.step,
                "digest": weights_digest(data),
                "student": student_key,
                "teacher_digest": teacher_digest,
            },
        )

    def take_weights(
        self, asked: set[int], student_key: str, teacher_digest: str | None
    ) -> list[int]:
        """Keeps the weights of those steps of `asked` at which there is a state, and says which: no
        student is replayed for a probe of where it ended."""
        taken = []
        for step in sorted(asked & self.checkpoint_steps().keys() - self.kept_steps()):
            found, state = self.load_state(before=step + 1)
            if found == step and state is not None:
                event = Weights(step=step, weights=state["model"])
                self.save_weights(event, student_key, teacher_digest)
                taken.append(step)
        return taken

    def save_scores(self, scores_N: Tensor, scores_key: str) -> None:
        """The scores, then the JSON that makes them exist. One that is there stays: students may
        have selected by it."""
        self._refuse_if_superseded()
        record, weights = paths.scores_json(self._name), paths.scores_weights(self._name)
        if self._own_json(record) is not None and self._store.exists(weights):
            return
        data = dump_weights({SCORES: scores_N})
        self._store.write_bytes(weights, data)
        facts = {"scores": scores_key, "digest": weights_digest(data), "count": len(scores_N)}
        self._store.write_json(record, facts)

    def save_result(self, result: dict[str, Any]) -> None:
        """Last: it makes the run complete."""
        self._refuse_if_superseded()
        self._store.write_json(paths.result(self._name), result)
        self._store.delete(paths.failure(self._name))
