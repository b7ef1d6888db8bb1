"""What a store holds: complete, cut off, damaged, and read fast enough."""

from __future__ import annotations

import dataclasses
import errno
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dashboards.seals import seal_parquet
from orchestrator import paths
from orchestrator.errors import StoreError
from orchestrator.inventory import read_inventory
from orchestrator.plan import make_plan
from orchestrator.store import Store
from orchestrator.units import Held
from tests.sweep_files import sweep_of
from trainers.data.catalogue import OFFICIAL

GRID = "grids: [{axes: {strategy: [A, B, C], teacher.accuracy: [30, 60]}}]\n"


@pytest.fixture
def plan(tmp_path):
    return make_plan([sweep_of(tmp_path, GRID)], OFFICIAL)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


class CountingStore:
    """A store that counts what is asked of it."""

    def __init__(self, store):
        self.store = store
        self.reads = []

    def __getattr__(self, name):
        def ask(rel):
            self.reads.append((name, rel))
            return getattr(self.store, name)(rel)

        return ask


def targets_of(plan, digest):
    """The soft-target file of a snapshot of the plan's one teacher."""
    return paths.targets_file(plan.of_kind("targets")[0].spec, digest)


def finish_student(store, unit, steps=(100, 400), **facts):
    result = {
        "key": unit.key,
        "kind": "student",
        "status": "complete",
        "horizon": steps[-1],
        "step": steps[-1],
        "teacher_digest": "d" * 64,
    }
    write_rows(store, unit, steps)
    store.write_json(paths.result(unit.name), result | facts)


def finish_teacher(store, unit, searched_to, **facts):
    presets = {
        name.removeprefix("acc-").removesuffix(".json"): {"step": 0}
        for name in store.list(paths.snapshots_dir(unit.name))
        if name.endswith(".json")
    }
    result = {"key": unit.key, "status": "complete", "horizon": 100_000, "presets": presets}
    write_rows(store, unit, (0, searched_to))
    store.write_json(paths.result(unit.name), result | {"searched_to": searched_to} | facts)


def unsealed_rows(steps):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"step": list(steps), "top1_h": [1.0] * len(steps)}), buffer)
    return buffer.getvalue()


def write_rows(store, unit, steps):
    store.write_bytes(paths.metrics(unit.name), seal_parquet(unsealed_rows(steps)))


def add_snapshot(store, unit, preset, step, digest="d" * 64, **facts):
    record = {
        "preset": preset,
        "step": step,
        "accuracy": preset + 0.5,
        "alpha": 1.0,
        "digest": digest,
        "teacher": unit.key,
    }
    store.write_bytes(paths.snapshot_weights(unit.name, preset), b"")
    store.write_json(paths.snapshot_json(unit.name, preset), record | facts)


def students(plan):
    return plan.of_kind("student")


def test_an_empty_store_holds_nothing(plan, store):
    assert read_inventory(store, plan.units) == {}


def test_a_complete_student(plan, store):
    unit = students(plan)[0]
    finish_student(store, unit)
    store.write_bytes(paths.checkpoint(unit.name, "step-00000400"), b"")
    held = read_inventory(store, plan.units)
    assert held == {
        unit.name: Held(
            complete=True,
            horizon=400,
            evaluated=frozenset({100, 400}),
            checkpoints=(400,),
            teacher_digest="d" * 64,
        )
    }
    assert plan.subtract(held).work[unit.name].action == "done"


def test_a_cut_off_student_keeps_its_checkpoints(plan, store):
    unit = students(plan)[0]
    store.write_bytes(paths.checkpoint(unit.name, "step-00000120"), b"")
    store.write_bytes(paths.checkpoint_dir(unit.name) + "/notes.txt", b"")
    store.write_json(paths.failure(unit.name), {"cause": "bug"})
    held = read_inventory(store, plan.units)[unit.name]
    assert held == Held(checkpoints=(120,), failure={"cause": "bug"})


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b'{"status": "complete"}', b"\xff\xfe"],
    ids=["empty", "cut off", "a list", "without a key", "binary"],
)
def test_a_damaged_result_is_no_result(plan, store, damage):
    unit = students(plan)[0]
    finish_student(store, unit)
    store.write_bytes(paths.result(unit.name), damage)
    held = read_inventory(store, plan.units)
    assert not held[unit.name].complete
    assert plan.subtract(held).work[unit.name].action == "new"


@pytest.mark.parametrize("facts", [{"key": "0" * 64}, {"status": "failed"}, {"horizon": "many"}])
def test_a_result_of_something_else_is_no_result(plan, store, facts):
    unit = students(plan)[0]
    finish_student(store, unit, **facts)
    assert not read_inventory(store, plan.units)[unit.name].complete


@pytest.mark.parametrize("damage", ["cut", "gone", "a flipped byte", "rows are missing", "no seal"])
def test_a_result_without_its_rows_is_no_result(plan, store, damage):
    unit = students(plan)[0]
    finish_student(store, unit)
    data = store.read_bytes(paths.metrics(unit.name))
    if damage == "gone":
        store.delete(paths.metrics(unit.name))
    elif damage == "rows are missing":
        write_rows(store, unit, (100, 300))
    else:
        flipped = data[:50] + bytes([data[50] ^ 1]) + data[51:]
        other = {"cut": data[:-1], "a flipped byte": flipped, "no seal": unsealed_rows((100, 400))}
        store.write_bytes(paths.metrics(unit.name), other[damage])
    damaged = []
    held = read_inventory(store, plan.units, damaged)
    assert plan.subtract(held).work[unit.name].action == "new"
    named = {paths.result(unit.name)}
    if damage not in ("gone", "rows are missing"):
        named.add(paths.metrics(unit.name))
    assert {one.rel for one in damaged} == named


@pytest.mark.parametrize(
    ("verb", "place"),
    [("read", paths.result), ("read", paths.metrics), ("stamps", paths.checkpoint_dir)],
)
def test_what_cannot_be_read_now_is_neither_damaged_nor_absent(
    plan, store, monkeypatch, verb, place
):
    unit = students(plan)[0]
    finish_student(store, unit)
    real = getattr(store._backend, verb)

    def stuttering(rel):
        if rel == place(unit.name):
            raise OSError(errno.ETIMEDOUT, "Connection timed out")
        return real(rel)

    monkeypatch.setattr(store._backend, verb, stuttering)
    damaged = []
    with pytest.raises(StoreError, match="timed out"):
        read_inventory(store, plan.units, damaged)
    assert not damaged
    assert store.exists(paths.result(unit.name))


def test_a_result_whose_digits_changed_is_no_result(plan, store):
    unit = students(plan)[0]
    finish_student(store, unit)
    text = store.read_bytes(paths.result(unit.name))
    store.write_bytes(paths.result(unit.name), text.replace(b'"horizon": 400', b'"horizon": 900'))
    damaged = []
    assert not read_inventory(store, plan.units, damaged)[unit.name].complete
    (one,) = damaged
    assert (one.rel, one.reason) == (paths.result(unit.name), "its checksum does not fit")


def test_a_teachers_snapshots_and_kept_checkpoints(plan, store):
    (teacher,) = plan.of_kind("teacher")
    add_snapshot(store, teacher, 30.0, 70)
    add_snapshot(store, teacher, 60.0, 200, teacher="0" * 64)  # another teacher's
    store.write_json(paths.snapshot_json(teacher.name, 12.5), {"preset": 12.5})  # damaged
    store.write_bytes(paths.snapshot_weights(teacher.name, 90.0), b"")  # weights without their json
    store.write_bytes(paths.checkpoint(teacher.name, "acc-30"), b"")
    store.write_bytes(paths.checkpoint(teacher.name, "step-00000250"), b"")
    held = read_inventory(store, plan.units)[teacher.name]
    assert not held.complete
    assert held.presets.keys() == {30.0}
    assert held.checkpoints == (70, 250)
    work = plan.subtract({teacher.name: held}).work[teacher.name]
    assert (work.action, work.from_step, work.missing_presets) == ("resume", 250, (60.0,))


def test_a_snapshot_without_weights_is_a_record_alone(plan, store):
    """As a bundle brings it: nobody can learn from it, and soft targets made of it are as good."""
    (teacher,) = plan.of_kind("teacher")
    for preset, step in ((30.0, 70), (60.0, 200)):
        add_snapshot(store, teacher, preset, step, digest=f"{preset:g}".ljust(64, "0"))
        store.delete(paths.snapshot_weights(teacher.name, preset))
    finish_teacher(store, teacher, 200)
    digest = "60".ljust(64, "0")
    store.write_bytes(targets_of(plan, digest), b"")
    held = read_inventory(store, plan.units)
    assert held[teacher.name].presets.keys() == held[teacher.name].weightless == {30.0, 60.0}
    left = plan.subtract(held)
    (made,) = [unit for unit in plan.of_kind("targets") if unit.name in held]
    assert left.held_tokens == {made.name}
    work = left.work[teacher.name]
    assert (work.action, work.from_step) == ("replay", 0)
    assert work.missing_presets == (30.0, 60.0)
    store.write_bytes(paths.snapshot_weights(teacher.name, 30.0), b"")
    work = plan.subtract(read_inventory(store, plan.units)).work[teacher.name]
    assert (work.action, work.missing_presets) == ("replay", (60.0,))


def test_an_exhausted_teacher(plan, store):
    (teacher,) = plan.of_kind("teacher")
    add_snapshot(store, teacher, 30.0, 70)
    finish_teacher(store, teacher, 100_000, missing=[60])
    left = plan.subtract(read_inventory(store, plan.units))
    assert left.work[teacher.name].action == "exhausted"
    assert left.work[teacher.name].unreachable == (60.0,)


def test_the_rule_of_held_snapshots_comes_from_the_last_request(plan, store):
    (teacher,) = plan.of_kind("teacher")
    add_snapshot(store, teacher, 30.0, 70)
    store.write_json(paths.request_json(teacher.name), {"validate_every": 10, "screen": 500})
    held = read_inventory(store, plan.units)[teacher.name]
    assert (held.validate_every, held.screen) == (10, 500)


def test_targets_are_found_by_the_snapshots_digest(plan, store):
    (teacher,) = plan.of_kind("teacher")
    add_snapshot(store, teacher, 30.0, 70, digest="3" * 64)
    add_snapshot(store, teacher, 60.0, 200, digest="6" * 64)
    store.write_bytes(targets_of(plan, "6" * 64), b"")
    held = read_inventory(store, plan.units)
    (made,) = [unit for unit in plan.of_kind("targets") if unit.name in held]
    assert made.spec.teacher.accuracy == 60.0
    assert plan.subtract(held).held_tokens == {
        f"{teacher.name}/acc-30",
        f"{teacher.name}/acc-60",
        made.name,
    }


def test_targets_of_a_vanished_teacher_are_not_trusted(plan, store):
    store.write_bytes(targets_of(plan, "6" * 64), b"")
    assert read_inventory(store, plan.units) == {}


def test_a_finished_sweep_has_nothing_left(plan, store):
    (teacher,) = plan.of_kind("teacher")
    for preset, step in ((30.0, 70), (60.0, 200)):
        add_snapshot(store, teacher, preset, step, digest=f"{preset:g}".ljust(64, "0"))
        digest = f"{preset:g}".ljust(64, "0")
        store.write_bytes(targets_of(plan, digest), b"")
    finish_teacher(store, teacher, 200)
    for unit in students(plan):
        finish_student(store, unit)
    left = plan.subtract(read_inventory(store, plan.units))
    assert left.left == []
    assert {work.action for work in left.work.values()} == {"done"}


def test_a_teacher_with_all_its_presets_and_no_result_is_run_to_its_end(plan, store):
    """Killed before its result, or the result was damaged: nobody waits for it, and yet MLflow and
    `status` would never see it done."""
    (teacher,) = plan.of_kind("teacher")
    for preset, step in ((30.0, 70), (60.0, 200)):
        add_snapshot(store, teacher, preset, step, digest=f"{preset:g}".ljust(64, "0"))
    for unit in students(plan):
        finish_student(store, unit)
    store.write_bytes(paths.checkpoint(teacher.name, "step-00000200"), b"")
    left = plan.subtract(read_inventory(store, plan.units))
    assert left.left == [teacher]
    work = left.work[teacher.name]
    assert (work.action, work.from_step, work.steps) == ("resume", 200, 0)


def test_a_complete_run_costs_three_requests_and_an_absent_one_none(plan, store):
    unit = students(plan)[0]
    finish_student(store, unit)
    counting = CountingStore(store)
    read_inventory(counting, plan.units)
    assert sorted(counting.reads) == sorted(
        [
            ("list", "runs"),
            ("list", "targets"),
            ("read_json", paths.result(unit.name)),
            ("list", paths.checkpoint_dir(unit.name)),
            ("read_bytes", paths.metrics(unit.name)),
        ]
    )


def test_units_of_one_plan_only(plan, store):
    unit = students(plan)[0]
    stranger = dataclasses.replace(unit, key="f" * 64)
    finish_student(store, stranger)
    assert read_inventory(store, plan.units) == {}
