"""Files are written beside the training; what is reported of them waits until they are there."""

from __future__ import annotations

import errno
import gc
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from orchestrator import paths
from orchestrator.errors import StoreError
from orchestrator.faults import failure_report
from orchestrator.recording import Report, record
from orchestrator.records import Records
from orchestrator.retry import Cause
from orchestrator.store import Store
from orchestrator.trial import _lockstep
from tests.driving import checkpoints, rows_of
from trainers.distributed import World
from trainers.errors import NonFiniteLossError
from trainers.evaluate import STUDENT_COLUMNS
from trainers.events import (
    Checkpoint,
    Evaluation,
    Event,
    Finished,
    Progress,
    Snapshot,
    Weights,
)

NAME = "teacher-0123456789abcdef"
LONG_S = 30.0  # nothing takes so long unless it is broken


class LoggingStore(Store):
    """Keeps a list of its changes; a change whose name holds `fails` fails as on a full disk, and
    one that holds `gate` waits until it is let through."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.log: list[str] = []
        self.fails: str | None = None
        self.number = errno.ENOSPC
        self.gate: str | None = None
        self.reached, self.let_through = threading.Event(), threading.Event()

    def _change(self, rel: str) -> None:
        name = rel.removeprefix(f"{paths.run_dir(NAME)}/")
        if self.gate is not None and self.gate in name:
            self.reached.set()
            assert self.let_through.wait(LONG_S)
        if self.fails is not None and self.fails in name:
            with self._errors("write", rel):
                raise OSError(self.number, "no")
        self.log.append(name)

    def write_bytes(self, rel: str, data: bytes) -> None:
        self._change(rel)
        super().write_bytes(rel, data)

    def write_stream(self, rel: str, fill: Callable[[BinaryIO], object]) -> None:
        self._change(rel)
        super().write_stream(rel, fill)

    def delete(self, rel: str) -> None:
        self._change(f"{rel} deleted")
        super().delete(rel)


@pytest.fixture
def store(tmp_path: Path) -> LoggingStore:
    return LoggingStore(tmp_path / "store")


def evaluation(step: int) -> Evaluation:
    return Evaluation(row={"step": step, "top1_h": float(step), "images_per_s": 1.0})


def checkpoint(step: int, keep_as: str | None = None) -> Checkpoint:
    return Checkpoint(step=step, state={"step": step, "w": torch.ones(3)}, keep_as=keep_as)


def snapshot(preset: float, step: int) -> Snapshot:
    weights = {"w": torch.full((2,), preset)}
    return Snapshot(preset=preset, step=step, accuracy=preset, alpha=1.0, weights=weights)


def weights(step: int) -> Weights:
    return Weights(step=step, weights={"w": torch.ones(2)})


def recorded(
    store: Store, events: Iterable[Event], world: World | None = None, attempt: str | None = None
) -> Iterator[Report]:
    world = world or World()
    records = Records(store, NAME, STUDENT_COLUMNS, attempt=attempt, writes=world.rank == 0)

    def finish(event: Finished) -> None:
        records.save_result({"step": event.step})

    return record(
        records, events, world, key="k" * 64, teacher_digest="d" * 64, replayed_until=0,
        finish=finish,
    )  # fmt: skip


def names(reports: Iterable[Report]) -> list[tuple[str, int]]:
    return [(report["event"], report["step"]) for report in reports]


DONE = Finished(reason="done", step=9)


# -- order -----------------------------------------------------------------------------------------


def test_files_come_in_the_order_that_the_store_promises(store: LoggingStore) -> None:
    events = [
        evaluation(1), snapshot(10, 1), checkpoint(1, "10"), evaluation(2), weights(2),
        checkpoint(2), evaluation(9), checkpoint(9), DONE,
    ]  # fmt: skip
    reports = names(recorded(store, events))
    assert store.log == [
        "metrics.parquet", "snapshots/acc-10.safetensors", "snapshots/acc-10.json",
        "metrics.parquet", "checkpoint/acc-10.ckpt", "checkpoint/step-00000001.ckpt",
        "snapshots/step-00000002.safetensors", "snapshots/step-00000002.json",
        "metrics.parquet", "checkpoint/step-00000002.ckpt",
        "checkpoint/step-00000001.ckpt deleted",
        "metrics.parquet", "checkpoint/step-00000009.ckpt",
        "checkpoint/step-00000002.ckpt deleted",
        "result.json", "failure.json deleted",
    ]  # fmt: skip
    files = ("snapshot", "weights", "checkpoint", "finished")
    assert [one for one in reports if one[0] in files] == [
        ("snapshot", 1), ("checkpoint", 1), ("weights", 2), ("checkpoint", 2), ("checkpoint", 9),
        ("finished", 9),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("event", "file"),
    [
        (checkpoint(2), "checkpoint/step-00000002.ckpt"),
        (snapshot(10, 2), "snapshots/acc-10.json"),
        (weights(2), "snapshots/step-00000002.json"),
    ],
)
def test_training_goes_on_and_the_report_comes_once_the_file_is_there(
    event: Event, file: str, store: LoggingStore
) -> None:
    store.gate = file
    reports: list[Report] = []

    def training() -> Iterator[Event]:
        yield event
        assert store.reached.wait(LONG_S)
        for step in range(3, 6):  # what trains does not wait
            yield Progress(step=step, top1=None)
        assert names(reports) == [("progress", 3), ("progress", 4), ("progress", 5)]
        assert file not in store.log
        store.let_through.set()
        while reports[-2]["event"] == "progress":
            yield Progress(step=6, top1=None)
        assert store.exists(f"{paths.run_dir(NAME)}/{file}")

    for report in recorded(store, training()):
        reports.append(report)
    assert len([one for one in reports if one["step"] == 2]) == 1


def test_rows_that_come_while_a_checkpoint_is_written_belong_to_the_next(
    store: LoggingStore,
) -> None:
    seen: list[list[int]] = []

    def training() -> Iterator[Event]:
        yield evaluation(1)
        store.gate = "metrics"
        yield checkpoint(1)
        assert store.reached.wait(LONG_S)
        yield evaluation(2)
        store.let_through.set()
        yield checkpoint(2)  # the first one is there now, and this one waits at its own gate
        yield DONE

    class Watching(LoggingStore):
        def write_stream(self, rel: str, fill: Callable[[BinaryIO], object]) -> None:
            seen.append([row["step"] for row in rows_of(self, NAME)])
            super().write_stream(rel, fill)

    store = Watching(store.root)
    list(recorded(store, training()))
    assert seen == [[1], [1, 2]]


@pytest.mark.parametrize("reason", ["done", "stopped"])
def test_the_end_is_reported_when_all_is_written(reason: str, store: LoggingStore) -> None:
    """Who is asked to stop, or leaves a node, has saved what it says it has."""
    store.gate = "ckpt"
    reports = recorded(store, [checkpoint(4), Finished(reason=reason, step=4)])
    threading.Thread(target=lambda: store.reached.wait(LONG_S) and store.let_through.set()).start()
    assert names(reports) == [("checkpoint", 4), ("finished", 4)]
    assert checkpoints(store, NAME) == ["step-00000004.ckpt"]


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize(
    ("fails", "left"),
    [
        ("metrics", []),
        ("ckpt", ["metrics.parquet"]),
        ("safetensors", ["metrics.parquet"]),
        ("acc-10.json", ["metrics.parquet", "snapshots/acc-10.safetensors"]),
    ],
)
def test_a_write_that_fails_ends_the_run_and_is_the_last(
    fails: str, left: list[str], number: int, store: LoggingStore
) -> None:
    store.fails, store.number = fails, number
    first = checkpoint(1) if fails in ("metrics", "ckpt") else snapshot(10, 1)
    reports = recorded(store, [evaluation(1), first, checkpoint(2), checkpoint(3), DONE])
    with pytest.raises(StoreError) as caught:
        list(reports)
    assert (caught.value.errno, failure_report(caught.value)["cause"]) == (number, Cause.STORE)
    assert store.log == left
    assert not store.exists(paths.result(NAME))


@pytest.mark.parametrize("event", [evaluation(2), Progress(step=2, top1=None), weights(2), DONE])
def test_an_error_of_writing_is_raised_at_an_event_after_it_whichever_it_is(
    event: Event, store: LoggingStore
) -> None:
    """Events that do not wait for the writer come until one finds that it has failed."""
    store.fails = "ckpt"
    events = itertools.chain([checkpoint(1)], itertools.repeat(event))
    with pytest.raises(StoreError):
        for _ in recorded(store, events):
            pass
    assert store.log == ["metrics.parquet"]


def test_a_run_that_was_given_to_another_worker_is_refused(store: LoggingStore) -> None:
    store.write_json(paths.request_json(NAME), {"attempt": "first"})

    def training() -> Iterator[Event]:
        yield checkpoint(1)
        yield checkpoint(2)
        store.write_json(paths.request_json(NAME), {"attempt": "second"})
        yield checkpoint(3)
        yield DONE

    with pytest.raises(StoreError, match="given to another worker"):
        list(recorded(store, training(), attempt="first"))
    assert checkpoints(store, NAME)[-1] <= "step-00000002.ckpt"
    assert not store.exists(paths.result(NAME))


def test_what_was_begun_is_written_though_the_run_fails(store: LoggingStore) -> None:
    store.gate = "ckpt"

    def training() -> Iterator[Event]:
        yield checkpoint(1)
        assert store.reached.wait(LONG_S)
        store.let_through.set()
        raise NonFiniteLossError(2)

    with pytest.raises(NonFiniteLossError):
        list(recorded(store, training()))
    assert checkpoints(store, NAME) == ["step-00000001.ckpt"]


# -- memory ----------------------------------------------------------------------------------------


def test_a_state_is_let_go_once_it_is_written(store: LoggingStore) -> None:
    """So there is one that is being written, and at most another that waits for it."""
    store.gate = "step-00000003.ckpt"
    held: list[weakref.ref[torch.Tensor]] = []

    def alive() -> list[bool]:
        gc.collect()
        return [one() is not None for one in held]

    def training() -> Iterator[Event]:
        for step in range(1, 4):
            tensor = torch.ones(3)
            held.append(weakref.ref(tensor))
            yield Checkpoint(step=step, state={"w": tensor})
            del tensor
        yield Progress(step=3, top1=None)
        assert store.reached.wait(LONG_S)
        assert alive() == [False, False, True]
        store.let_through.set()
        yield DONE

    list(recorded(store, training()))
    assert alive() == [False, False, False]


# -- several workers -------------------------------------------------------------------------------


class Wire:
    """What rank 0 says, heard by all who ask as often as it does."""

    def __init__(self, size: int) -> None:
        self._meet = threading.Barrier(size, timeout=LONG_S)
        self._said: Any = None

    def share(self, rank: int, value: Any) -> Any:
        if rank == 0:
            self._said = value
        self._meet.wait()
        heard = self._said
        self._meet.wait()
        return heard


class WiredWorld(World):
    wire: Wire

    def share(self, value: Any) -> Any:
        return self.wire.share(self.rank, value)


def test_workers_report_alike_however_long_rank_0_writes(store: LoggingStore) -> None:
    """Train's reports are a barrier; each worker's clock says when it shows a sign of life."""
    store.gate = "step-00000001.ckpt"
    wire, said = Wire(2), {0: [], 1: []}  # type: ignore[var-annotated]

    def training(rank: int) -> Iterator[Event]:
        yield checkpoint(1)
        yield Progress(step=2, top1=None)
        yield evaluation(50)  # not there yet: both go on
        if rank == 0:
            store.let_through.set()
        else:
            yield Progress(step=60, top1=None)
            yield Progress(step=70, top1=None)
        yield snapshot(10, 80)
        yield checkpoint(80, "10")
        yield evaluation(100)
        yield DONE

    def work(rank: int) -> None:
        world = WiredWorld(rank, 2)
        object.__setattr__(world, "wire", wire)
        said[rank] = names(filter(_lockstep, recorded(store, training(rank), world)))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert said[0] == said[1]
    expected = [("checkpoint", 1), ("snapshot", 80), ("checkpoint", 80), ("finished", 9)]
    assert [one for one in said[0] if one[0] != "evaluation"] == expected
    assert said[0].index(("evaluation", 50)) < said[0].index(("checkpoint", 1))
    assert store.log.count("result.json") == 1
