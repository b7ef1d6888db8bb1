"""Probes executed in this process, from the store into the store: student, weights, probe."""

from __future__ import annotations

from pathlib import Path

import pytest

from dashboards.results import load_plan, load_results
from orchestrator import paths
from orchestrator.ledger import State
from orchestrator.plan import Plan, make_plan
from orchestrator.plandocument import plan_document
from orchestrator.prune import prune_checkpoints
from orchestrator.runstates import RunStates
from orchestrator.spec import load_sweeps
from orchestrator.store import Store
from orchestrator.tracking_view import view
from orchestrator.units import Unit
from orchestrator.worker import execute
from tests.driving import (
    RUNTIME,
    TINY,
    checkpoints,
    conductor_of,
    digits_store,
    drive_here,
    facts,
    killed_in_turn,
    numbers,
    rows_of,
    tiny_plan,
)
from tests.sweep_files import write
from trainers.checkpoint import parse_weights, weights_digest
from trainers.data.catalogue import OFFICIAL
from trainers.errors import NonFiniteLossError

A = TINY.replace("  teacher: {max_steps: 300}\n", "")
OFFLINE = A + "  probe_steps: 30\ngrids: [{axes: {strategy: [A], probe: [offline]}}]\n"
JOINT = A + "grids: [{axes: {strategy: [A], probe: [joint]}}]\n"
MIXED = (
    TINY + "  probe_steps: 30\ngrids: [{axes: {strategy: [B, C], teacher.accuracy: [20], "
    "probe: [joint, offline]}}]\n"
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return digits_store(tmp_path / "store")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A student of 20 steps and its probe of 30, uninterrupted."""
    folder = tmp_path_factory.mktemp("reference")
    store = digits_store(folder / "store")
    drive_here(tiny_plan(folder, text=OFFLINE), store)
    return store


def plan_in(folder: Path, store: Store, text: str = OFFLINE) -> Plan:
    return tiny_plan(folder, store, text=text)


def only(plan: Plan, kind: str) -> Unit:
    (unit,) = plan.of_kind(kind)
    return unit


def kept(store: Store, name: str) -> list[str]:
    return store.list(paths.snapshots_dir(name))


# -- whole ----------------------------------------------------------------------------------------


def test_a_student_keeps_its_weights_and_its_probe_reads_them(
    reference: Store, tmp_path: Path
) -> None:
    plan = plan_in(tmp_path, reference)
    assert plan.left == []
    student, probe = only(plan, "student"), only(plan, "probe")
    assert sorted(kept(reference, student.name)) == [
        "step-00000020.json",
        "step-00000020.safetensors",
    ]
    record = reference.read_json(paths.kept_json(student.name, 20)) or {}
    data = reference.read_bytes(paths.kept_weights(student.name, 20))
    assert record["digest"] == weights_digest(data)
    assert {"backbone.conv1.weight", "classifier.weight"} <= parse_weights(data).keys()
    result = facts(reference, probe.name)
    assert (result["kind"], result["horizon"], result["step"]) == ("probe", 30, 30)
    assert result["student_digest"] == record["digest"]
    assert result["teacher_digest"] is None
    rows = rows_of(reference, probe.name)
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert all(row["top1_h"] > 0 and row["top1_g"] != row["top1_g"] for row in rows)
    assert all(row["correct_g"] is None for row in rows)


def test_one_student_answers_both_ways(store: Store, tmp_path: Path) -> None:
    plan = plan_in(tmp_path, store, MIXED)
    conductor = drive_here(plan, store)
    assert conductor.ledger.count(State.DONE) == 1 + 1 + 2 + 2
    done = plan_in(tmp_path, store, MIXED)
    assert done.left == []
    teacher = only(done, "teacher")
    snapshot = store.read_json(paths.snapshot_json(teacher.name, 20)) or {}
    for probe in done.of_kind("probe"):
        assert facts(store, probe.name)["teacher_digest"] == snapshot["digest"]
        assert facts(store, probe.name)["horizon"] == 30
    for student in done.of_kind("student"):
        assert facts(store, student.name)["teacher_digest"] == snapshot["digest"]
        assert facts(store, student.name)["horizon"] == 20


def test_a_report_reads_both_ways(store: Store, tmp_path: Path) -> None:
    text = MIXED + "report:\n  - {table: ways, rows: [probe], columns: [strategy]}\n"
    (sweep,) = load_sweeps([write(tmp_path, text)], OFFICIAL)
    plan = make_plan([sweep], OFFICIAL)
    drive_here(plan, store)
    store.write_json(paths.plan_json("tiny"), plan_document(sweep, plan))
    results = load_results(store.uri, load_plan(store.uri, "tiny"))
    assert results.problems == ()
    assert set(results.points["complete"]) == {True}
    assert results.points["teacher_digest"].nunique() == 1
    frame = results.frame()
    last = frame[frame["step"] == frame["horizon"]]
    assert set(zip(last["probe"], last["strategy"], last["step"], strict=True)) == {
        ("joint", "B", 20), ("joint", "C", 20), ("offline", "B", 30), ("offline", "C", 30),
    }  # fmt: skip
    assert last["top1_h"].notna().all()
    assert set(last[last["top1_g"].isna()]["probe"]) == {"offline"}
    states = RunStates(store).of(store.read_json(paths.plan_json("tiny")) or {})
    assert set(states.values()) == {"done"}
    assert len(states) == 1 + 2 + 2


def test_mlflow_shows_a_probe_as_a_run(reference: Store, tmp_path: Path) -> None:
    probe = only(plan_in(tmp_path, reference), "probe")
    shown = view(reference, probe.name, live=False)
    assert shown is not None
    assert (shown.status, shown.leading_metric) == ("FINISHED", "top1_h")
    assert shown.tags["targetsweep.kind"] == "probe"
    assert shown.params["student.step"] == "20"
    assert shown.params["student.key"] == only(plan_in(tmp_path, reference), "student").key
    assert {"top1_h", "train_ce"} <= shown.points[-1].values.keys()
    assert "top1_g" not in shown.points[-1].values


# -- weights of students that are there already ---------------------------------------------------


def test_a_finished_student_gives_the_weights_of_its_last_state(
    reference: Store, store: Store, tmp_path: Path
) -> None:
    drive_here(plan_in(tmp_path, store, JOINT), store)
    plan = plan_in(tmp_path, store)
    student, probe = only(plan, "student"), only(plan, "probe")
    assert kept(store, student.name) == []
    before = rows_of(store, student.name)
    conductor = drive_here(plan, store)
    assert conductor.steps_trained == 30  # the probe's alone
    assert rows_of(store, student.name) == before
    assert numbers(store, probe.name) == numbers(reference, probe.name)


@pytest.mark.parametrize("keep", ["final", "none"])
def test_a_student_that_went_further_is_replayed_to_the_step(
    reference: Store, store: Store, tmp_path: Path, keep: str
) -> None:
    further = JOINT.replace("steps: 20", "steps: 25").replace(
        "  augmentation: none\n", f"  augmentation: none\n  keep_checkpoint: {keep}\n"
    )
    drive_here(plan_in(tmp_path, store, further), store)
    plan = plan_in(tmp_path, store)
    student, probe = only(plan, "student"), only(plan, "probe")
    assert plan.work[student.name].action == "replay"
    drive_here(plan, store)
    assert numbers(store, probe.name) == numbers(reference, probe.name)
    assert facts(store, student.name)["horizon"] == 25
    assert [row["step"] for row in rows_of(store, student.name)] == [10, 20, 25]
    if keep == "final":
        assert checkpoints(store, student.name) == ["step-00000025.ckpt"]
    assert plan_in(tmp_path, store).left == []


def test_a_probe_starts_while_its_student_goes_on(store: Store, tmp_path: Path) -> None:
    """The token comes with the weights, not with the student's end."""
    drive_here(plan_in(tmp_path, store, JOINT), store)
    text = (
        A
        + "  probe_steps: 30\n"
        + (
            "grids:\n"
            "  - axes: {strategy: [A], probe: [offline]}\n"
            "  - axes: {strategy: [A], training.steps: [45]}\n"
        )
    )
    plan = plan_in(tmp_path, store, text)
    student, probe = only(plan, "student"), only(plan, "probe")
    conductor = conductor_of(plan, store, slots=2)
    config = conductor.next_trial()
    assert config is not None
    assert config["unit"] == student.name
    assert conductor.next_trial() is None
    for report in execute(store, student.name, RUNTIME, None, config["attempt"]):
        conductor.on_report({"unit": student.name, **report})
        if report["event"] == "weights":
            following = conductor.next_trial()
            assert following is not None
            assert following["unit"] == probe.name
            break
    else:
        pytest.fail("no weights were reported")
    assert facts(store, student.name)["horizon"] == 20  # still the old one


# -- damage, failure, interruption ----------------------------------------------------------------


def test_deleted_weights_are_made_again_for_a_longer_probe(
    reference: Store, store: Store, tmp_path: Path
) -> None:
    drive_here(plan_in(tmp_path, store), store)
    student = only(plan_in(tmp_path, store), "student")
    store.delete_tree(paths.snapshots_dir(student.name))
    assert plan_in(tmp_path, store).left == []  # nobody needs them now
    longer = OFFLINE.replace("probe_steps: 30", "probe_steps: 40")
    plan = plan_in(tmp_path, store, longer)
    assert [unit.kind for unit in plan.left] == ["student", "probe"]
    drive_here(plan, store)
    rows = numbers(store, only(plan, "probe").name)
    assert rows[:-1] == numbers(reference, only(plan, "probe").name)
    assert rows[-1]["step"] == 40


def test_damaged_weights_are_named(store: Store, tmp_path: Path) -> None:
    plan = plan_in(tmp_path, store)
    student, probe = only(plan, "student"), only(plan, "probe")
    drive_here(plan, store)
    store.delete_tree(paths.run_dir(probe.name))
    store.write_bytes(paths.kept_weights(student.name, 20), b"other bytes")
    conductor = drive_here(plan_in(tmp_path, store), store)
    (entry,) = conductor.ledger.in_state(State.REDO)
    damaged = paths.kept_weights(student.name, 20)
    assert f"{damaged} is damaged" in entry.attempts.failures[-1].message
    assert not store.exists(damaged)  # it was set aside
    drive_here(plan_in(tmp_path, store), store)
    assert plan_in(tmp_path, store).left == []


def test_a_student_that_fails_blocks_its_probe(store: Store, tmp_path: Path) -> None:
    def run(*arguments: object) -> None:
        raise NonFiniteLossError(7)

    conductor = drive_here(plan_in(tmp_path, store), store, run=run)  # type: ignore[arg-type]
    assert conductor.ledger.count(State.FAILED) == 1
    (blocked,) = conductor.ledger.in_state(State.BLOCKED)
    assert blocked.task.name == only(plan_in(tmp_path, store), "probe").name
    assert blocked.blocked_by == only(plan_in(tmp_path, store), "student").provides[0]


def test_killed_at_any_change_of_the_store(reference: Store, tmp_path: Path) -> None:
    """Student and probe, killed before each write in turn, end as if nothing had happened."""
    names = [unit.name for unit in plan_in(tmp_path, reference).units]
    for lives, survived in killed_in_turn(tmp_path, plan_in, every=29):
        for name in names:
            assert numbers(survived, name) == numbers(reference, name), lives
        assert plan_in(tmp_path, survived).left == []
    assert lives > 100


# -- what stays -----------------------------------------------------------------------------------


def test_weights_go_with_the_checkpoints_once_no_probe_waits(store: Store, tmp_path: Path) -> None:
    text = OFFLINE.replace("  augmentation: none\n", "  augmentation: none\n  keep_checkpoint: 1\n")
    drive_here(plan_in(tmp_path, store, text), store)
    plan = plan_in(tmp_path, store, text)
    student, probe = only(plan, "student"), only(plan, "probe")
    later = (store.modified(paths.result(probe.name)) or 0.0) + 2 * 86400

    store.delete_tree(paths.run_dir(probe.name))
    waiting = plan_in(tmp_path, store, text)
    assert prune_checkpoints(store, waiting, later) == [student.name]
    assert checkpoints(store, student.name) == []
    assert len(kept(store, student.name)) == 2

    drive_here(waiting, store)
    done = plan_in(tmp_path, store, text)
    assert prune_checkpoints(store, done, later + 86400) == [student.name, probe.name]
    assert kept(store, student.name) == []
    assert plan_in(tmp_path, store, text).left == []


# -- teachers and students of different kinds -----------------------------------------------------


def test_a_vit_learns_from_a_resnet(store: Store, tmp_path: Path) -> None:
    text = TINY.replace("{name: resnet18, width: 4}", "vit_tiny").replace(
        "teacher: {max_steps: 300}",
        "teacher: {max_steps: 300, backbone: {name: resnet18, width: 4}}",
    )
    text = text.replace("steps: 20", "steps: 3")
    text += "grids: [{axes: {strategy: [B, C], teacher.accuracy: [20]}}]\n"
    conductor = drive_here(plan_in(tmp_path, store, text), store)
    assert conductor.ledger.count(State.DONE) == 4
    plan = plan_in(tmp_path, store, text)
    assert only(plan, "teacher").spec.backbone.name == "resnet18"
    rows = {unit.spec.strategy: numbers(store, unit.name) for unit in plan.of_kind("student")}
    assert {unit.spec.backbone.name for unit in plan.of_kind("student")} == {"vit_tiny"}
    b, c = ([row["train_kl"] for row in rows[strategy]] for strategy in "BC")
    assert b == pytest.approx(c, rel=1e-4)  # plain views: the teacher says the same of both
