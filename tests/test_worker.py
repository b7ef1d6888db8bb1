"""Units executed in this process, from the store into the store, on real images."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import paths
from orchestrator.environment import environment
from orchestrator.errors import StoreError
from orchestrator.identity import from_canonical, run_key
from orchestrator.plan import Plan
from orchestrator.records import Records
from orchestrator.retry import Cause
from orchestrator.store import Store
from orchestrator.trial import failure_report
from orchestrator.units import Unit
from orchestrator.worker import _agreed, execute
from tests.driving import (
    EVERY_STEP,
    RUNTIME,
    TINY,
    Killed,
    MortalStore,
    checkpoints,
    conductor_of,
    digests,
    digits_store,
    drive_here,
    facts,
    numbers,
    rows_of,
    tiny_plan,
    unit_of,
)
from tests.training_helpers import StopAfter
from trainers.errors import NonFiniteLossError
from trainers.spec import Runtime

A = TINY.replace("  teacher: {max_steps: 300}\n", "") + "grids: [{axes: {strategy: [A]}}]\n"
B = TINY + "grids: [{axes: {strategy: [B], teacher.accuracy: [20], seed: [0]}}]\n"


C = B.replace("[B]", "[C]")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One uninterrupted sweep: a teacher, two files of soft targets, five students."""
    folder = tmp_path_factory.mktemp("reference")
    store = digits_store(folder / "store")
    conductor = drive_here(tiny_plan(folder), store)
    assert not [e for e in conductor.ledger.entries.values() if e.attempts.failures]
    return store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return digits_store(tmp_path / "store")


def only(plan: Plan, kind: str = "student") -> Unit:
    (unit,) = plan.of_kind(kind)
    return unit


def order(plan: Plan, store: Store) -> str:
    """The first unit of the plan, ordered as the driver does."""
    config = conductor_of(plan, store).next_trial()
    assert config is not None
    return str(config["unit"])


def run(store: Store, name: str, runtime: Runtime = RUNTIME, stop: Any = None) -> list[dict]:
    return list(execute(store, name, runtime, stop))


def first_step(reports: list[dict]) -> int:
    (started,) = [report for report in reports if report["event"] == "started"]
    return int(started["first_step"])


# -- a sweep, whole ------------------------------------------------------------------------------


def test_teacher_then_targets_then_students(reference: Store, tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, reference)
    assert plan.left == []
    assert len(plan.units) == 1 + 2 + 5
    for unit in plan.units:
        assert facts(reference, unit.name)["status"] == "complete"
    teacher = only(plan, "teacher")
    assert {"acc-20.json", "acc-40.json"} <= digests(reference, teacher.name).keys()
    for preset in (20, 40):
        found = reference.read_json(paths.snapshot_json(teacher.name, preset)) or {}
        assert abs(found["accuracy"] - preset) <= 1.0


def test_students_record_the_snapshot_they_learnt_from(reference: Store, tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, reference)
    found = digests(reference, only(plan, "teacher").name)
    for label, file in [("A", None), ("B t20", "acc-20.json"), ("C t40", "acc-40.json")]:
        recorded = facts(reference, unit_of(plan, label).name)["teacher_digest"]
        assert recorded == (found[file] if file else None)


def test_with_plain_views_b_and_c_are_one(reference: Store, tmp_path: Path) -> None:
    """Without augmentation a view is its sample, so the teacher says the same of both, but for the
    order of its sums (batches of other sizes), which steps enlarge: 0.4% seen on an AMD EPYC."""
    plan = tiny_plan(tmp_path, reference)
    b, c = (numbers(reference, unit_of(plan, f"{s} t20").name) for s in "BC")
    assert [row["train_kl"] for row in b] == pytest.approx([row["train_kl"] for row in c], rel=0.03)


def test_standard_steps_are_evaluated(reference: Store, tmp_path: Path) -> None:
    unit = unit_of(tiny_plan(tmp_path, reference), "A")
    assert [row["step"] for row in rows_of(reference, unit.name)] == [10, 20]


def test_the_last_report_carries_the_last_accuracy(store: Store, tmp_path: Path) -> None:
    """Reports on the way are throttled; what the screen says at the end must not be."""
    name = order(tiny_plan(tmp_path, text=A), store)
    last = run(store, name)[-1]
    assert (last["event"], last["reason"], last["step"]) == ("finished", "done", 20)
    assert last["top1"] == rows_of(store, name)[-1]["top1_h"]


def test_a_result_tells_what_decides_its_last_bits(store: Store, tmp_path: Path) -> None:
    name = order(tiny_plan(tmp_path, text=A), store)
    run(store, name, replace(RUNTIME, threads=2))
    told = facts(store, name)["environment"]
    assert (told["precision"], told["compiled"], told["threads"]) == ("fp32", False, 2)
    assert told["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert told["convolutions"] is None
    assert environment(replace(RUNTIME, compile=True), "fp32")["convolutions"] == "products"


# -- stopping, resuming, extending -----------------------------------------------------------------


def test_stopped_and_resumed_is_as_uninterrupted(
    reference: Store, store: Store, tmp_path: Path
) -> None:
    name = order(tiny_plan(tmp_path, text=A), store)
    stopped = run(store, name, stop=StopAfter(13))
    assert stopped[-1]["reason"] == "stopped"
    assert checkpoints(store, name) == ["step-00000013.ckpt"]
    assert not store.exists(paths.result(name))
    assert first_step(run(store, name)) == 14
    assert numbers(store, name) == numbers(reference, name)
    assert facts(store, name)["first_step"] == 14
    assert not facts(store, name)["replayed"]


def test_soft_targets_stop_between_two_batches_and_leave_nothing(
    reference: Store, store: Store, tmp_path: Path
) -> None:
    """1,438 pictures are two batches."""
    run(store, order(tiny_plan(tmp_path, text=C), store))
    name = order(tiny_plan(tmp_path, store, text=C), store)
    stopped = run(store, name, stop=StopAfter(2))
    assert (stopped[-1]["event"], stopped[-1]["reason"]) == ("finished", "stopped")
    assert not store.exists(paths.result(name))
    assert not store.list("targets")
    assert run(store, name, stop=StopAfter(3))[-1]["reason"] == "done"
    file = facts(store, name)["file"]
    assert store.read_bytes(file) == reference.read_bytes(facts(reference, name)["file"])


def test_stopped_teacher_gives_the_same_snapshots(
    reference: Store, store: Store, tmp_path: Path
) -> None:
    name = order(tiny_plan(tmp_path), store)
    step = 0
    while run(store, name, stop=StopAfter(7))[-1]["reason"] == "stopped":
        step += 7
        assert max(row["step"] for row in rows_of(store, name)) == step
    assert digests(store, name) == digests(reference, name)
    assert numbers(store, name) == numbers(reference, name)


def test_a_longer_horizon_continues_from_the_checkpoint(store: Store, tmp_path: Path) -> None:
    drive_here(tiny_plan(tmp_path, text=A), store)
    longer = tiny_plan(tmp_path, store, "training.steps=30", text=A)
    (unit,) = longer.left
    drive_here(longer, store)
    assert facts(store, unit.name)["first_step"] == 21
    assert facts(store, unit.name)["horizon"] == 30
    assert [row["step"] for row in rows_of(store, unit.name)] == [10, 20, 30]
    assert checkpoints(store, unit.name) == ["step-00000030.ckpt"]
    at_once = digits_store(tmp_path / "at_once")
    drive_here(tiny_plan(tmp_path, at_once, "training.steps=30", text=A), at_once)
    assert numbers(store, unit.name) == numbers(at_once, unit.name)


def test_a_shorter_horizon_needs_no_training(store: Store, tmp_path: Path) -> None:
    drive_here(tiny_plan(tmp_path, text=A), store)
    assert tiny_plan(tmp_path, store, "training.steps=10", text=A).left == []


def test_a_step_that_nobody_asked_then_is_replayed_and_says_so(
    store: Store, tmp_path: Path
) -> None:
    drive_here(tiny_plan(tmp_path, text=A), store)
    before = rows_of(store, only(tiny_plan(tmp_path, text=A)).name)
    later = tiny_plan(tmp_path, store, "training.steps=13", text=A)
    (unit,) = later.left
    drive_here(later, store)
    rows = rows_of(store, unit.name)
    assert [(row["step"], row["replayed"]) for row in rows] == [
        (10, False),
        (13, True),
        (20, False),
    ]
    assert [row for row in rows if row["step"] != 13] == before  # not a byte of the old ones
    assert facts(store, unit.name)["replayed"]
    assert facts(store, unit.name)["horizon"] == 20
    assert checkpoints(store, unit.name) == ["step-00000020.ckpt"]
    assert tiny_plan(tmp_path, store, text=A).left == []


def test_keep_checkpoint_none_leaves_none(store: Store, tmp_path: Path) -> None:
    text = A.replace("set:\n", "set:\n  keep_checkpoint: none\n")
    drive_here(tiny_plan(tmp_path, text=text), store)
    (unit,) = tiny_plan(tmp_path, store, text=text).units
    assert checkpoints(store, unit.name) == []
    longer = tiny_plan(tmp_path, store, "training.steps=30", text=text)
    drive_here(longer, store)
    assert facts(store, unit.name)["first_step"] == 1
    assert [row["step"] for row in rows_of(store, unit.name)] == [10, 20, 30]


# -- teachers --------------------------------------------------------------------------------------


def test_a_preset_asked_later_is_replayed_from_the_nearest_state_below(
    reference: Store, store: Store, tmp_path: Path
) -> None:
    """And has the digest that a search which looked for it from the start would have given it."""
    first = TINY + "grids: [{axes: {strategy: [B], teacher.accuracy: [40], seed: [0]}}]\n"
    drive_here(tiny_plan(tmp_path, text=first), store)
    teacher = only(tiny_plan(tmp_path, text=first), "teacher").name
    both = first.replace("[40]", "[25, 40]")
    drive_here(tiny_plan(tmp_path, store, text=both), store)
    fresh = digits_store(tmp_path / "fresh")
    drive_here(tiny_plan(tmp_path, fresh, text=both), fresh)
    assert digests(store, teacher)["acc-25.json"] == digests(fresh, teacher)["acc-25.json"]
    below = store.read_json(paths.snapshot_json(teacher, 20)) or {}
    assert facts(store, teacher)["first_step"] == below["step"] + 1
    assert facts(store, teacher)["presets"].keys() == facts(fresh, teacher)["presets"].keys()


def test_a_higher_preset_continues_where_the_search_ended(store: Store, tmp_path: Path) -> None:
    drive_here(tiny_plan(tmp_path, text=B), store)
    teacher = only(tiny_plan(tmp_path, text=B), "teacher").name
    end = facts(store, teacher)["step"]
    drive_here(tiny_plan(tmp_path, store, text=B.replace("[20]", "[20, 40]")), store)
    assert facts(store, teacher)["first_step"] == end + 1


def test_an_accuracy_out_of_reach_is_said_and_not_searched_again(
    store: Store, tmp_path: Path
) -> None:
    text = B.replace("max_steps: 300", "max_steps: 5").replace("[20]", "[99]")
    conductor = drive_here(tiny_plan(tmp_path, text=text), store)
    teacher = only(tiny_plan(tmp_path, text=text), "teacher")
    assert facts(store, teacher.name)["missing"] == [99]
    assert (store.read_json(paths.failure(teacher.name)) or {})["cause"] == Cause.UNREACHABLE
    (failed,) = [e for e in conductor.ledger.entries.values() if e.attempts.failures]
    assert failed.task.name == teacher.name
    again = tiny_plan(tmp_path, store, text=text)
    assert again.left == []
    assert [again.work[unit.name].action for unit in again.units] == ["exhausted", "blocked"]


def test_what_was_searched_in_vain_stays_known(store: Store, tmp_path: Path) -> None:
    """Also after another sweep of the same teacher asked for what it had passed."""
    limit = "max_steps: 60"
    vain = B.replace("max_steps: 300", limit).replace("[20]", "[20, 99]")
    drive_here(tiny_plan(tmp_path, text=vain), store)
    teacher = only(tiny_plan(tmp_path, text=vain), "teacher").name
    drive_here(tiny_plan(tmp_path, store, text=vain.replace("[20, 99]", "[25]")), store)
    assert {"20", "25"} <= facts(store, teacher)["presets"].keys()
    assert facts(store, teacher)["missing"] == [99]
    again = tiny_plan(tmp_path, store, text=vain)
    assert again.work[teacher].action == "exhausted"


def test_a_damaged_snapshot_is_named_and_a_deleted_one_is_harvested_again(
    reference: Store, tmp_path: Path
) -> None:
    shutil.copytree(reference.root, tmp_path / "store")
    store = Store(tmp_path / "store")
    plan = tiny_plan(tmp_path, store)
    teacher, student = only(plan, "teacher").name, unit_of(plan, "B t20").name
    before = digests(store, teacher)
    store.delete_tree(paths.run_dir(student))
    weights = store.read_bytes(paths.snapshot_weights(teacher, 20))
    store.write_bytes(paths.snapshot_weights(teacher, 20), weights[:-1] + b"x")
    conductor = drive_here(tiny_plan(tmp_path, store), store)
    (failure,) = conductor.ledger.entries[student].attempts.failures
    assert failure.cause is Cause.DAMAGED
    assert f"{paths.snapshot_weights(teacher, 20)} is damaged" in failure.message
    assert not store.exists(paths.snapshot_weights(teacher, 20))  # it was set aside
    drive_here(tiny_plan(tmp_path, store), store)
    assert digests(store, teacher) == before
    assert numbers(store, student) == numbers(reference, student)
    assert not store.exists(paths.failure(student))


# -- refusals --------------------------------------------------------------------------------------


def test_another_data_set_of_the_same_name_is_refused(store: Store, tmp_path: Path) -> None:
    name = order(tiny_plan(tmp_path, text=A), store)
    content = store.read_json(paths.run_json(name)) or {}
    content["spec"]["dataset"]["fingerprint"] = "0" * 64
    content["key"] = run_key(from_canonical(content["spec"]))
    store.write_json(paths.run_json(name), content)
    with pytest.raises(StoreError, match="digits of this store is not the one"):
        run(store, name)
    assert not store.exists(paths.metrics(name))


def test_a_run_json_changed_by_hand_is_refused(store: Store, tmp_path: Path) -> None:
    name = order(tiny_plan(tmp_path, text=A), store)
    content = store.read_json(paths.run_json(name)) or {}
    content["spec"]["seed"] = 5
    store.write_json(paths.run_json(name), content)
    with pytest.raises(StoreError, match="does not describe the run of its key"):
        run(store, name)


def test_without_orders_nothing_runs(store: Store) -> None:
    with pytest.raises(StoreError, match=r"has no run\.json"):
        run(store, "student-0123456789abcdef")


def test_a_worker_that_was_replaced_writes_no_more(store: Store, tmp_path: Path) -> None:
    """Its driver died, another one began the run anew, and it still lives."""
    plan = tiny_plan(tmp_path, text=A)
    config = conductor_of(plan, store).next_trial()
    assert config is not None
    zombie = execute(store, config["unit"], EVERY_STEP, None, config["attempt"])
    while next(zombie)["event"] != "checkpoint":
        pass
    conductor_of(plan, store).next_trial()
    before = checkpoints(store, config["unit"])
    with pytest.raises(StoreError, match="given to another worker"):
        list(zombie)
    assert checkpoints(store, config["unit"]) == before


def test_a_loss_that_explodes_is_named_with_its_step(store: Store, tmp_path: Path) -> None:
    name = order(tiny_plan(tmp_path, text=A.replace("lr: 0.01", "lr: 1.0e+30")), store)
    with pytest.raises(NonFiniteLossError) as caught:
        run(store, name)
    report = failure_report(caught.value)
    assert report["cause"] == Cause.DIVERGED
    assert "at step" in report["message"]
    assert not store.exists(paths.result(name))


# -- kill -9 at any moment -------------------------------------------------------------------------


def kills(plan: Plan, root: Path, runtime: Runtime) -> Iterator[Store]:
    """The store after a death before its 1st, 2nd, … change; ends when a run survives."""
    for lives in range(1000):
        folder = root / f"store{lives}"
        digits_store(folder)
        name = order(plan, Store(folder))
        try:
            run(MortalStore(folder, lives), name, runtime)
        except Killed:
            yield Store(folder)
        else:
            return


def test_killed_between_any_two_writes_of_a_student(tmp_path: Path) -> None:
    """Checkpoints at every step; resumed, every row is there once and as it should be."""
    plan = tiny_plan(tmp_path, None, "training.steps=6", text=A)
    (unit,) = plan.units
    whole = digits_store(tmp_path / "whole")
    drive_here(plan, whole)
    deaths = 0
    for store in kills(plan, tmp_path, EVERY_STEP):
        deaths += 1
        kept = rows_of(store, unit.name) if store.exists(paths.metrics(unit.name)) else []
        drive_here(tiny_plan(tmp_path, store, "training.steps=6", text=A), store)
        assert numbers(store, unit.name) == numbers(whole, unit.name)
        assert [row for row in rows_of(store, unit.name) if row in kept] == kept
        assert checkpoints(store, unit.name) == ["step-00000006.ckpt"]
        shutil.rmtree(store.root)
    assert deaths > 10


def test_killed_between_any_two_writes_of_a_teacher(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, text=B.replace("[20]", "[12]"))
    teacher = only(plan, "teacher").name
    whole = digits_store(tmp_path / "whole")
    drive_here(plan, whole)
    deaths = 0
    for store in kills(plan, tmp_path, RUNTIME):
        deaths += 1
        run(store, teacher)
        assert digests(store, teacher) == digests(whole, teacher)
        assert numbers(store, teacher) == numbers(whole, teacher)
        shutil.rmtree(store.root)
    assert deaths > 5


MORTAL = """
import io, os, signal, sys
from orchestrator.store import Store
from orchestrator.worker import execute
from trainers.pulse import PULSE
from trainers.spec import Runtime


class Mortal(Store):
    '''Killed in the middle of the state of that step, when training has gone on by another.'''

    def write_stream(self, rel, fill):
        whole = io.BytesIO()
        fill(whole)

        def half(stream):
            stream.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            stream.flush()
            while PULSE.beats <= int(sys.argv[3]):
                pass
            os.kill(os.getpid(), signal.SIGKILL)

        super().write_stream(rel, half if rel.endswith(sys.argv[3] + ".ckpt") else fill)


runtime = Runtime(checkpoint_every_s=0.0)
for report in execute(Mortal(sys.argv[1]), sys.argv[2], runtime, None):
    print(report["event"], report.get("step"))
"""


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_killed_while_a_state_is_written_and_training_goes_on(
    step: int, reference: Store, store: Store, tmp_path: Path
) -> None:
    name = order(tiny_plan(tmp_path, text=A), store)
    command = [sys.executable, "-c", MORTAL, str(store.root), name, f"{step:08}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert f"checkpoint {step}" not in done.stdout  # it was never there
    assert checkpoints(store, name) == [f"step-{step - 1:08}.ckpt"] * (step > 1)
    assert len(store.sweep_temporaries()) == 1
    assert first_step(run(store, name)) == step
    assert numbers(store, name) == numbers(reference, name)


def test_events_without_a_stop_flag(store: Store, tmp_path: Path) -> None:
    """`threading.Event` is a stop flag; one that is never set changes nothing."""
    name = order(tiny_plan(tmp_path, text=A), store)
    assert run(store, name, stop=threading.Event())[-1]["reason"] == "done"


class _Second:
    """Worker 1 of two, told what worker 0 says."""

    rank, size = 1, 2

    def __init__(self, said: int) -> None:
        self.said = said

    def share(self, value: Any) -> Any:
        return self.said


def test_a_worker_that_does_not_see_where_the_first_goes_on_is_tried_again(store: Store) -> None:
    """Its node's view of the store is an old one: no fault of the run."""
    records = Records(store, "student-0123456789abcdef", (), writes=False)
    assert _agreed(_Second(0), records, 0, None) == (0, None)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="step 50, where worker 0 goes on") as caught:
        _agreed(_Second(50), records, 0, None)  # type: ignore[arg-type]
    assert failure_report(caught.value)["cause"] == Cause.STORE
