"""A sweep of a second or two on handwritten digits, and a driver without Ray: the same ledger,
conductor and worker, one unit after the other in this process."""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from orchestrator import paths
from orchestrator.admission import Capacity, Shape
from orchestrator.conductor import Conductor, TrialSettings
from orchestrator.inventory import read_inventory
from orchestrator.ledger import Ledger
from orchestrator.listener import Listener
from orchestrator.overrides import apply_overrides
from orchestrator.plan import Plan, make_plan
from orchestrator.spec import load_sweeps
from orchestrator.store import Store
from orchestrator.trial import failure_report
from orchestrator.units import Unit
from orchestrator.worker import execute
from tests.sweep_files import write
from trainers.data.catalogue import OFFICIAL
from trainers.data.prepare import prepare
from trainers.spec import Runtime

TINY = """\
name: tiny
title: Digits in seconds
set:
  dataset: digits
  backbone: {name: resnet18, width: 4}
  training: {steps: 20, batch_size: 32, lr: 0.01}
  teacher: {max_steps: 300}
  augmentation: none
"""
GRID = """\
grids:
  - axes: {strategy: [A, B, C], teacher.accuracy: [20, 40], seed: [0]}
"""

CLOCKS = ("images_per_s", "wall_time_s", "timestamp_ms")
RUNTIME = Runtime(checkpoint_every_s=1e9)
EVERY_STEP = Runtime(checkpoint_every_s=0.0)


@cache
def _digits() -> Path:
    folder = Path(mkdtemp(prefix="targetsweep-test-"))
    atexit.register(shutil.rmtree, folder)
    prepare("digits", out=folder / "digits")
    return folder / "digits"


def digits_store(root: Path) -> Store:
    """A store with nothing in it but the data set."""
    shutil.copytree(_digits(), root / "datasets" / "digits")
    return Store(root)


def tiny_plan(
    folder: Path, store: Store | None = None, *sets: str, text: str = TINY + GRID
) -> Plan:
    """The plan of a sweep file, less what the store holds."""
    (sweep,) = load_sweeps([write(folder, text)], OFFICIAL)
    plan = make_plan([apply_overrides(sweep, sets, OFFICIAL)], OFFICIAL)
    return plan if store is None else plan.subtract(read_inventory(store, plan.units))


def unit_of(plan: Plan, label: str) -> Unit:
    """The one unit whose label begins so."""
    (found,) = [unit for unit in plan.units if unit.label.startswith(label)]
    return found


SETTINGS = TrialSettings(store_uri="", scratch="", use_gpu=False, runtime=RUNTIME)


class Clock:
    """Seconds of a clock that goes on by `step` at every look. With an hour's step nobody ever has
    to wait before an attempt is repeated."""

    def __init__(self, step: float = 0.0) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def conductor_of(
    plan: Plan,
    store: Store,
    listeners: Sequence[Listener] = (),
    *,
    slots: float = 1,
    clock: Clock | None = None,
    **options: Any,
) -> Conductor:
    """options: the conductor's own, such as `kill`. clock: None lets no attempt wait."""
    ledger = Ledger(
        plan.left, Capacity(slots), held=plan.held_tokens, shape_of=lambda task: Shape()
    )
    clock = clock or Clock(step=3600.0)
    return Conductor(ledger, store, SETTINGS, list(listeners), clock=clock, **options)


Reports = Iterator[dict[str, Any]]


def drive_here(
    plan: Plan,
    store: Store,
    *listeners: Listener,
    runtime: Runtime = RUNTIME,
    run: Callable[..., Reports] = execute,
) -> Conductor:
    """Everything that is left of the plan. run: what executes a unit."""
    conductor = conductor_of(plan, store, listeners)
    while not conductor.finished:
        config = conductor.next_trial()
        assert config is not None
        name = config["unit"]
        try:
            for report in run(store, name, runtime, None, config["attempt"]):
                conductor.on_report({"unit": name, **report})
        except Exception as error:
            conductor.on_report({"unit": name, **failure_report(error)})
        conductor.on_end(name, lost=False)
    return conductor


def rows_of(store: Store, name: str) -> list[dict[str, Any]]:
    return list(pq.read_table(store.local(paths.metrics(name))).to_pylist())


def numbers(store: Store, name: str) -> list[dict[str, Any]]:
    """Rows without what describes an execution; equal for equal runs."""
    return [
        {
            field: None if value != value else value  # NaN equals nothing
            for field, value in row.items()
            if field not in (*CLOCKS, "replayed")
        }
        for row in rows_of(store, name)
    ]


def facts(store: Store, name: str) -> dict[str, Any]:
    result = store.read_json(paths.result(name))
    assert result is not None
    return result


def checkpoints(store: Store, name: str) -> list[str]:
    return store.list(paths.checkpoint_dir(name))


def digests(store: Store, name: str) -> dict[str, str]:
    """Of a teacher's snapshots, by file."""
    found = {}
    for file in store.list(paths.snapshots_dir(name)):
        if file.endswith(".json"):
            content = store.read_json(f"{paths.snapshots_dir(name)}/{file}")
            assert content is not None
            found[file] = content["digest"]
    return found


class Killed(BaseException):
    """Stands for kill -9: nothing but the test may catch it."""


class MortalStore(Store):
    """Dies at its `lives`-th change, before making it."""

    def __init__(self, root: str | Path, lives: int) -> None:
        super().__init__(root)
        self.lives = lives

    def _change(self) -> None:
        if self.lives == 0:
            raise Killed
        self.lives -= 1

    def write_bytes(self, rel: str, data: bytes) -> None:
        self._change()
        super().write_bytes(rel, data)

    def write_stream(self, rel: str, fill: Callable[[BinaryIO], object]) -> None:
        self._change()
        super().write_stream(rel, fill)

    def upload(self, local: Path, rel: str) -> None:
        self._change()
        super().upload(local, rel)

    def delete(self, rel: str) -> None:
        self._change()
        super().delete(rel)

    def delete_tree(self, rel: str) -> None:
        self._change()
        super().delete_tree(rel)


def killed_in_turn(
    folder: Path, plan_in: Callable[[Path, Store], Plan], *, every: int
) -> Iterator[tuple[int, Store]]:
    """Stores in which a sweep was killed before a change and then driven to its end, with the
    number of changes it lived for: 1, 1 + every, …; at last one that was not killed. every: a
    prime, so that each kind of write is hit in the end."""
    lives, finished = 1, False
    while not finished:
        root = digits_store(folder / f"lives-{lives}").root
        mortal = MortalStore(root, lives)
        try:
            drive_here(plan_in(folder, mortal), mortal, runtime=EVERY_STEP)
            finished = True
        except Killed:
            whole = Store(root)
            drive_here(plan_in(folder, whole), whole, runtime=EVERY_STEP)
        yield lives, Store(root)
        lives += every
