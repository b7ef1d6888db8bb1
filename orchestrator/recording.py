"""What a run's events leave in the store, and what is reported of them to whoever watches.

Files are written beside the training (`writing`), in the order of the events. What is reported of a
file is reported once it is there, with whatever event comes after; so are errors of writing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from orchestrator import clock
from orchestrator.records import Records
from orchestrator.writing import Writer
from trainers.distributed import World
from trainers.events import (
    Checkpoint,
    Evaluation,
    Event,
    Finished,
    Progress,
    Row,
    Scored,
    Snapshot,
    Weights,
)

__all__ = ["Report", "record"]

Report = dict[str, Any]


def record(
    records: Records,
    events: Iterable[Event],
    world: World,
    *,
    key: str,
    teacher_digest: str | None,
    replayed_until: int,
    finish: Callable[[Finished], None],
) -> Iterator[Report]:
    """Stores what the events bring (rank 0) and reports it. Rows at steps the run had already
    passed, once before, are marked as replayed. key: of the run. teacher_digest: of the snapshot
    behind a student. finish: called on rank 0 when all that came before is written, before the end
    is reported. Raises what writing raised, at the latest at the next event."""
    with Writer() as writer:
        recorder = _Recorder(
            records, writer, world, key=key, teacher_digest=teacher_digest,
            replayed_until=replayed_until, finish=finish,
        )  # fmt: skip
        for event in events:
            yield from recorder.record(event)


class _Recorder:
    """due: the report of the last write, until it is told; on every worker, though rank 0 alone
    writes."""

    def __init__(
        self,
        records: Records,
        writer: Writer,
        world: World,
        *,
        key: str,
        teacher_digest: str | None,
        replayed_until: int,
        finish: Callable[[Finished], None],
    ) -> None:
        self._records = records
        self._writer = writer
        self._world = world
        self._key = key
        self._teacher_digest = teacher_digest
        self._replayed_until = replayed_until
        self._finish = finish
        self._due: Report | None = None

    def record(self, event: Event) -> Iterator[Report]:
        yield from self._written(event)
        if isinstance(event, Evaluation):
            yield self._evaluation(event)
        elif isinstance(event, Progress):
            yield {"event": "progress", "step": event.step, "top1": event.top1}
        elif isinstance(event, Finished):
            if self._world.rank == 0:
                self._finish(event)
            yield self._finished(event)
        else:
            self._due = self._report(event)
            if self._world.rank == 0:
                self._writer.begin(partial(self._write, event, self._records.sorted_rows()))

    def _written(self, event: Event) -> Iterator[Report]:
        """The report of the last write if it is through; before another one and before the end,
        waits until it is. Workers must report alike at the same events, so all follow rank 0, and
        not at a sign of life: that comes when each worker's own clock says."""
        done = self._writer.is_done()
        if self._due is None or (isinstance(event, Progress) and self._world.size > 1):
            return
        if not isinstance(event, Evaluation | Progress):
            self._writer.wait()
            done = True
        if self._world.share(done):
            report, self._due = self._due, None
            yield report

    def _write(self, event: Checkpoint | Snapshot | Weights | Scored, rows: Sequence[Row]) -> None:
        """In the writer's thread. rows: as they were at the event; more are added meanwhile."""
        if isinstance(event, Checkpoint):
            self._records.save_checkpoint(event, rows)
        elif isinstance(event, Snapshot):
            self._records.save_rows(rows)
            self._records.save_snapshot(event, self._key)
        elif isinstance(event, Scored):
            assert event.scores_N is not None
            self._records.save_scores(event.scores_N, self._key)
        else:
            self._records.save_weights(event, self._key, self._teacher_digest)

    def _report(self, event: Checkpoint | Snapshot | Weights | Scored) -> Report:
        if isinstance(event, Scored):
            return {"event": "scores"}
        if isinstance(event, Snapshot):
            found = {"preset": event.preset, "accuracy": event.accuracy}
            return {"event": "snapshot", "step": event.step, **found}
        name = "checkpoint" if isinstance(event, Checkpoint) else "weights"
        return {"event": name, "step": event.step}

    def _evaluation(self, event: Evaluation) -> Report:
        step = int(event.row["step"])
        row = {**event.row, "timestamp_ms": clock.now_ms()}
        self._records.add(row, replayed=step <= self._replayed_until)
        top1 = event.row.get("top1_h", event.row.get("top1"))
        rate = event.row["images_per_s"]
        return {"event": "evaluation", "step": step, "top1": top1, "images_per_s": rate}

    def _finished(self, event: Finished) -> Report:
        rows = self._records.rows
        last = rows[max(rows)] if rows else {}
        return {
            "event": "finished",
            "reason": event.reason,
            "step": event.step,
            "top1": last.get("top1_h", last.get("top1")),
            "missing": list(event.missing),
            "warnings": self._records.take_warnings(),
        }
