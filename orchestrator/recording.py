"""What a run's events leave in the store, and what is reported of them to whoever watches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator import clock
from orchestrator.records import Records
from trainers.distributed import World
from trainers.events import Checkpoint, Evaluation, Event, Finished, Progress, Snapshot, Weights

__all__ = ["Report", "record"]

Report = dict[str, Any]


def record(
    records: Records, event: Event, world: World, *, replayed_until: int
) -> Iterator[Report]:
    """Stores rows and checkpoints (rank 0; snapshots and kept weights are stored before) and
    reports. Rows at steps the run had already passed, once before, are marked as replayed."""
    if isinstance(event, Evaluation):
        step = int(event.row["step"])
        row = {**event.row, "timestamp_ms": clock.now_ms()}
        records.add(row, replayed=step <= replayed_until)
        top1 = event.row.get("top1_h", event.row.get("top1"))
        yield {"event": "evaluation", "step": step, "top1": top1,
               "images_per_s": event.row["images_per_s"]}  # fmt: skip
    elif isinstance(event, Progress):
        yield {"event": "progress", "step": event.step, "top1": event.top1}
    elif isinstance(event, Snapshot):
        yield {"event": "snapshot", "preset": event.preset, "step": event.step,
               "accuracy": event.accuracy}  # fmt: skip
    elif isinstance(event, Weights):
        yield {"event": "weights", "step": event.step}
    elif isinstance(event, Checkpoint):
        if world.rank == 0:
            records.save_checkpoint(event)
        yield {"event": "checkpoint", "step": event.step}
    elif isinstance(event, Finished):
        last = records.rows[max(records.rows)] if records.rows else {}
        yield {"event": "finished", "reason": event.reason, "step": event.step,
               "top1": last.get("top1_h", last.get("top1")),
               "missing": list(event.missing), "warnings": records.take_warnings()}  # fmt: skip
