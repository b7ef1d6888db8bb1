"""`targetsweep run` as a person gives it, with Ray: whole, killed, stopped, extended, failed.

All on handwritten digits with a tiny network. An uninterrupted sweep is made once; every sweep that
was disturbed must end with the very same tables.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from orchestrator import paths
from orchestrator.lease import holder
from orchestrator.store import Store
from tests.commands import check_tracking, running, tables, targetsweep
from tests.driving import checkpoints, digits_store, drive_here, facts, rows_of, tiny_plan
from tests.sweep_files import write

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

TINY = """\
name: tiny
title: Digits in seconds
set:
  dataset: digits
  backbone: {name: resnet18, width: 4}
  training: {steps: 40, batch_size: 64, lr: 0.005}
  teacher: {max_steps: 400}
  augmentation: none
grids:
  - axes:
      strategy: [A, B, C]
      teacher.accuracy: [20, 40]
      seed: [0, 1]
report:
  - table: strategies
    rows: [step, strategy]
    columns: [teacher.accuracy]
    steps: [20, 40]
"""
NUM_UNITS = 1 + 2 + 10
KEPT = "--checkpoint-every=0.05"  # seconds: a run of a second has states to be killed between


@dataclass
class Reference:
    """The uninterrupted sweep. tables: as they were before other tests used the store."""

    file: Path
    store: Store
    log: str
    trained: list[str]
    tables: dict[str, bytes]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("end-to-end")
    file = write(folder, TINY)
    store = digits_store(folder / "store")
    command = targetsweep("run", file, "--store", store.root)
    return Reference(file, store, command.text, command.trained, tables(store, "tiny"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return digits_store(tmp_path / "store")


def assert_as_uninterrupted(store: Store, reference: Reference) -> None:
    assert tables(store, "tiny") == reference.tables
    check_tracking(store, "tiny")
    assert_nothing_left_behind(store)


def assert_nothing_left_behind(store: Store) -> None:
    assert holder(store) is None
    assert not [name for name in store.list(paths.control_dir()) if name.startswith("stop")]
    hidden = {file.name for file in store.root.iterdir() if file.name.startswith(".")}
    assert hidden <= {".lease.lock"}
    assert not [file for file in store.root.rglob(".ts-*")]


def student(store: Store, label: str) -> str:
    """The folder of the one student whose label begins so."""
    runs = {name: store.read_json(paths.run_json(name)) or {} for name in store.list("runs")}
    (name,) = [name for name, run in runs.items() if run["label"].startswith(label)]
    return name


# -- whole -----------------------------------------------------------------------------------------


def test_a_sweep_from_file_to_tables(reference: Reference) -> None:
    assert len(reference.trained) == len(set(reference.trained)) == NUM_UNITS
    assert {"strategies.md", "strategies.csv", "strategies.tex"} <= reference.tables.keys()
    assert b"40%" in reference.tables["strategies.md"]
    assert "### strategies" in reference.log
    assert "targetsweep ui --store" in reference.log
    assert_as_uninterrupted(reference.store, reference)


def test_the_same_command_again_trains_nothing(reference: Reference) -> None:
    before = {file: file.stat().st_mtime_ns for file in (reference.store.root / "runs").rglob("*")}
    again = targetsweep("run", reference.file, "--store", reference.store.root)
    assert not again.started_ray
    assert again.trained == []
    assert "nothing to train" in again.text
    after = {file: file.stat().st_mtime_ns for file in (reference.store.root / "runs").rglob("*")}
    assert after == before
    assert_as_uninterrupted(reference.store, reference)


# -- killed ----------------------------------------------------------------------------------------


def test_kill_9_of_the_driver_and_then_of_a_worker(reference: Reference, store: Store) -> None:
    """The second run is disturbed as well, and still ends well: it is its worker that dies."""
    with running("run", reference.file, "--store", store.root, KEPT) as first:
        first.until(r"A .*: done at step")
        first.until(r"(starts|continues) at step")
        first.kill()
        first.end()
    assert holder(store) is None
    ended = [name for name in store.list("runs") if store.exists(paths.result(name))]
    assert ended
    times = {name: store.modified(paths.result(name)) for name in ended}

    with running("run", reference.file, "--store", store.root, KEPT) as second:
        second.until(r"(starts|continues) at step")
        for trial in second.trials():
            trial.send_signal(signal.SIGKILL)
        assert second.end() == 0, second.text
    assert "worker lost" in second.text
    assert "tried again" in second.text
    assert {name: store.modified(paths.result(name)) for name in ended} == times
    assert not [name for name in store.list("runs") if store.exists(paths.failure(name))]
    assert_as_uninterrupted(store, reference)


# -- stopped ---------------------------------------------------------------------------------------


def test_ctrl_c_and_a_second_driver(reference: Reference, store: Store) -> None:
    """Long runs, so that there is something to stop; the horizon of the table is passed on the
    way, so that the shorter sweep then finds its answers."""
    longer = ("run", reference.file, "--store", store.root, "--set", "training.steps=40000")
    with running(*longer) as first:
        first.until(r"A .*: starts at step 1")
        other = targetsweep("run", reference.file, "--store", store.root, status=2)
        assert f"is driven by {holder(store)}" in other.text
        first.until(r"reached 40%")
        first.interrupt()
        status = first.end()
    assert status == 130, first.text
    assert "Traceback" not in first.text
    assert re.search(r"targetsweep run .* --set training.steps=40000$", first.lines[-1])
    stopped = student(store, "A none full seed0")
    assert checkpoints(store, stopped)
    assert not store.exists(paths.failure(stopped))
    assert_nothing_left_behind(store)

    with running("run", reference.file, "--store", store.root) as second:
        assert second.end() == 0, second.text
    assert_as_uninterrupted(store, reference)


# -- extended and shared ---------------------------------------------------------------------------


def test_a_longer_horizon_continues_from_the_checkpoints(reference: Reference) -> None:
    longer = targetsweep(
        "run", reference.file, "--store", reference.store.root,
        "--set", "training.steps=60", "--limit", "strategy=A",
    )  # fmt: skip
    assert sorted(longer.trained) == ["A none full seed0 @41", "A none full seed1 @41"]
    assert facts(reference.store, student(reference.store, "A none full seed0"))["first_step"] == 41


def test_one_more_seed_and_an_overlap_train_only_what_is_new(
    reference: Reference, tmp_path: Path
) -> None:
    """Two sweeps in one call: `more` adds seed 2 to the reference, `other` shares some of it."""
    more = TINY.replace("name: tiny", "name: more").replace("seed: [0, 1]", "seed: [0, 1, 2]")
    other = TINY.replace("name: tiny", "name: other").replace("seed: [0, 1]", "seed: [2, 3]")
    other = other.replace("[A, B, C]", "[A, B]").replace("[20, 40]", "[20]")
    files = [write(tmp_path, more, "more.yaml"), write(tmp_path, other, "other.yaml")]
    both = targetsweep("run", *files, "--store", reference.store.root)
    assert len(both.trained) == len(set(both.trained)) == 5 + 2
    assert {line.rpartition("seed")[2] for line in both.trained} == {"2 @1", "3 @1"}
    for sweep in ("more", "other"):
        check_tracking(reference.store, sweep)


# -- two workers, and MLflow away ------------------------------------------------------------------

ONE_RUN = """\
name: one
set:
  dataset: digits
  strategy: A
  backbone: {name: resnet18, width: 4}
  training: {steps: 40, batch_size: 64}
  augmentation: std
"""


def test_two_workers_and_a_dead_mlflow(store: Store, tmp_path: Path) -> None:
    alone = digits_store(tmp_path / "alone")
    drive_here(tiny_plan(tmp_path, text=ONE_RUN), alone)
    command = targetsweep(
        "run", tmp_path / "sweep.yaml", "--store", store.root, "--workers-per-run", "2",
        "--tracking-uri", "http://127.0.0.1:9",
    )  # fmt: skip
    (name,) = store.list("runs")
    assert [name] == alone.list("runs")  # the same key
    assert facts(store, name)["environment"]["workers"] == 2
    one, two = ({row["step"]: row for row in rows_of(place, name)} for place in (alone, store))
    assert two.keys() == {10, 20, 40}
    for step in (10, 20):
        assert two[step]["train_kl"] == pytest.approx(one[step]["train_kl"], rel=1e-3)
        assert two[step]["train_ce"] == pytest.approx(one[step]["train_ce"], rel=1e-3)
    assert two[40]["top1_h"] == pytest.approx(one[40]["top1_h"], abs=2.0)

    assert "warning" in command.text
    assert "targetsweep sync" in command.text
    good = f"sqlite:///{tmp_path}/mlflow.db"
    synced = targetsweep("sync", "--store", store.root, "--tracking-uri", good)
    assert "agrees with the store" in synced.text


# -- failed ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_fails_blocks_only_its_own(reference: Reference, store: Store) -> None:
    """A damaged snapshot, which is harvested again in the same command, and an accuracy that no
    search reaches, beside runs that go through."""
    shutil.copytree(reference.store.root / "runs", store.root / "runs")
    teacher = next(name for name in store.list("runs") if name.startswith("teacher"))
    for label in ("B t20 none full seed0", "B t40 none full seed0"):
        store.delete_tree(paths.run_dir(student(store, label)))
    weights = store.read_bytes(paths.snapshot_weights(teacher, 20))
    store.write_bytes(paths.snapshot_weights(teacher, 20), weights[:-1] + b"\xff")
    text = TINY.replace("accuracy: [20, 40]", "accuracy: [20, 40, 99.5]").replace(
        "[A, B, C]", "[B]"
    )
    text = text.replace("seed: [0, 1]", "seed: [0]").replace("max_steps: 400", "max_steps: 200")
    file = write(store.root.parent, text)

    first = targetsweep("run", file, "--store", store.root, status=1)
    assert f"{paths.snapshot_weights(teacher, 20)} is damaged" in first.text
    assert store.list(paths.damaged_dir())
    assert store.read_bytes(paths.snapshot_weights(teacher, 20)) == weights
    assert "accuracy never reached: 99.5%" in first.text
    for label in ("B t20 none full seed0", "B t40 none full seed0"):
        assert facts(store, student(store, label))["status"] == "complete"
    failure = store.read_json(paths.failure(teacher)) or {}
    assert failure["cause"] == "accuracy not reached"
    end = first.text[first.text.rindex("targetsweep: ") :]
    assert "1 failed, 1 blocked" in end
    assert paths.failure(teacher) in end
    assert f"targetsweep run {file}" in end

    second = targetsweep("run", file, "--store", store.root, status=1)
    assert second.trained == []
    assert not second.started_ray
    assert "searched in vain" in second.text


def test_interrupted_while_ray_starts(reference: Reference, store: Store) -> None:
    with running("run", reference.file, "--store", store.root) as command:
        command.until("units to do")
        command.interrupt()
        status = command.end()
    assert status == 130, command.text
    assert "Traceback" not in command.text
    assert f"targetsweep run {reference.file}" in command.lines[-1]
    assert_nothing_left_behind(store)


def test_ended_by_sigterm(reference: Reference, store: Store) -> None:
    """What a cluster's scheduler sends; here before the first trial."""
    with running("run", reference.file, "--store", store.root) as command:
        command.until("units to do")
        os.kill(command.process.pid, signal.SIGTERM)
        status = command.end()
    assert status == 130, command.text
    assert "Traceback" not in command.text
    assert f"targetsweep run {reference.file}" in command.lines[-1]
    assert_nothing_left_behind(store)


# -- real photographs ------------------------------------------------------------------------------

CIFAR = """\
name: photographs
data: {cifar10: {path: FOLDER}}
set:
  dataset: cifar10
  backbone: {name: resnet18, width: 4}
  training: {steps: 40, batch_size: 64}
  teacher: {accuracy: 15, max_steps: 400}
  ipc: 100
  augmentation: std
grids:
  - axes: {strategy: [A, B, C]}
report:
  - table: strategies
    rows: [step]
    columns: [strategy]
    steps: [20, 40]
"""
SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_photographs = pytest.mark.skipif(
    not (SHARED / "cifar10_test.parquet").exists(), reason="no CIFAR-10 in ../shared/data"
)


def cut(name: str, rows: int, target: Path) -> None:
    """The first rows of a shared file."""
    pq.write_table(pq.read_table(SHARED / name).slice(0, rows), target)


@needs_photographs
def test_cifar10_in_little(tmp_path: Path) -> None:
    """Real images, 1,500 and 300 of them: B and C need a teacher that learnt from them."""
    (tmp_path / "raw").mkdir()
    cut("cifar10_train-00000-of-00002.parquet", 1500, tmp_path / "raw/cifar10_train.parquet")
    cut("cifar10_test.parquet", 300, tmp_path / "raw/cifar10_test.parquet")
    file = write(tmp_path, CIFAR.replace("FOLDER", "raw"))
    store = Store(tmp_path / "store")
    command = targetsweep("run", file, "--store", store.root)
    assert "preparing data set cifar10" in command.text
    assert len(command.trained) == 1 + 1 + 3
    assert tables(store, "photographs")["strategies.csv"].count(b"\n") > 2
    check_tracking(store, "photographs")


@needs_photographs
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_cifar10_whole(tmp_path: Path) -> None:
    """All 60,000 images, 200 steps of each strategy, which beats guessing (10%)."""
    text = CIFAR.replace("FOLDER", str(SHARED)).replace("steps: 40", "steps: 200")
    text = text.replace("[20, 40]", "[100, 200]").replace("ipc: 100", "ipc: full")
    text = text.replace("batch_size: 64", "batch_size: 64, lr: 0.005").replace("std", "none")
    text = text.replace("accuracy: 15", "accuracy: 25")
    text = text.replace("max_steps: 400", "max_steps: 400, screen: 1000")
    store = Store(tmp_path / "store")
    targetsweep("run", write(tmp_path, text), "--store", store.root)
    for label in ("A", "B", "C"):
        last = rows_of(store, student(store, label))[-1]
        assert (last["step"], last["count"]) == (200, 10_000)
        assert last["top1_h"] > 15.0, label
    check_tracking(store, "photographs")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_workers_through_teacher_and_students(reference: Reference, store: Store) -> None:
    """Every kind of run on two workers, one of them killed in mid-run: the same keys, and snapshots
    and tables that differ by the order of sums alone."""
    wide = ("run", reference.file, "--store", store.root, "--workers-per-run", "2", KEPT)
    with running(*wide, "--limit", "seed=0", "--limit", "teacher.accuracy=20") as command:
        command.until(r"(starts|continues) at step")
        command.workers()[-1].send_signal(signal.SIGKILL)
        assert command.end() == 0, command.text
    assert "worker lost" in command.text
    assert set(store.list("runs")) < set(reference.store.list("runs"))
    for name in store.list("runs"):
        if not name.startswith("targets"):
            assert facts(store, name)["environment"]["workers"] == 2
    assert_nothing_left_behind(store)


LONG = ("--set", "training.steps=40000", "--limit", "strategy=A", "--limit", "seed=0")


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(reference: Reference, store: Store) -> None:
    with running("run", reference.file, "--store", store.root, *LONG) as command:
        command.until(r"A .*: starts at step")
        command.interrupt()
        command.until("again to stop at once")
        command.interrupt()
        status = command.end()
    assert status == 130, command.text
    assert "Traceback" not in command.text
    assert not store.exists(paths.failure(student(store, "A none full seed0")))
    assert_nothing_left_behind(store)


@pytest.mark.slow
def test_ctrl_c_of_two_workers_saves_a_checkpoint(reference: Reference, store: Store) -> None:
    wide = ("run", reference.file, "--store", store.root, *LONG, "--workers-per-run", "2")
    with running(*wide) as command:
        command.until(r"A .*: starts at step")
        command.interrupt()
        status = command.end()
    assert status == 130, command.text
    stopped = student(store, "A none full seed0")
    assert checkpoints(store, stopped)
    assert not store.exists(paths.failure(stopped))
    assert_nothing_left_behind(store)
