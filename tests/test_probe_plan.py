"""Offline probes in plans: their runs, what they wait for, and what is left of it all."""

from __future__ import annotations

import dataclasses
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dashboards.seals import seal_parquet
from orchestrator import paths
from orchestrator.estimate import Pace, group_of
from orchestrator.identity import canonical, from_canonical
from orchestrator.inventory import read_inventory
from orchestrator.plan import make_plan
from orchestrator.plandocument import plan_document
from orchestrator.planview import show_plan
from orchestrator.rates import Rates
from orchestrator.runstates import RunStates
from orchestrator.store import Store
from orchestrator.tracking_view import units
from orchestrator.units import Held, HeldSnapshot
from tests.sweep_files import BASE, problems_of, sweep_of
from trainers.data.catalogue import OFFICIAL
from trainers.spec import ProbeSpec, StudentRef

OFFLINE = "  probe: offline\n"
BASE_A = "name: small\nset:\n  dataset: cifar10\n  training: {steps: 400}\n"
BOTH = "grids: [{axes: {probe: [joint, offline]}}]\n"
EPOCH = 390
DIGEST = "d" * 64


def plan_of(*sweeps):
    return make_plan(sweeps, OFFICIAL)


def the(plan, kind):
    (unit,) = plan.of_kind(kind)
    return unit


# -- what is asked --------------------------------------------------------------------------------


def test_a_probe_is_a_run_of_its_own_beside_the_same_student(tmp_path):
    joint = plan_of(sweep_of(tmp_path))
    plan = plan_of(sweep_of(tmp_path, OFFLINE))
    teacher, student, probe = (the(plan, kind) for kind in ("teacher", "student", "probe"))
    assert student.key == the(joint, "student").key
    assert student.request == dataclasses.replace(
        the(joint, "student").request, keep_weights_at=(400,)
    )
    assert probe.spec == ProbeSpec(
        student=StudentRef(key=student.key, step=400),
        dataset=student.spec.dataset,
        backbone=student.spec.backbone,
        augmentation=student.spec.augmentation,
        optimizer=student.spec.optimizer,
        batch_size=128,
        seed=0,
    )
    assert probe.name == f"probe-{probe.key[:16]}"
    assert probe.needs == student.provides == (f"{student.name}/step-00000400",)
    assert student.needs == teacher.provides
    assert probe.provides == ()
    assert (student.answers, probe.answers) == (False, True)
    assert [unit.kind for unit in plan.units] == ["teacher", "student", "probe"]


def test_ten_epochs_unless_told(tmp_path):
    assert the(plan_of(sweep_of(tmp_path, OFFLINE)), "probe").request.horizon == 10 * EPOCH
    told = the(plan_of(sweep_of(tmp_path, OFFLINE + "  probe_steps: 0.5 epochs\n")), "probe")
    assert told.request.horizon == EPOCH // 2


def test_how_long_it_trains_is_no_part_of_a_probe_and_when_its_student_stops_is(tmp_path):
    def key(text, base=BASE):
        return the(plan_of(sweep_of(tmp_path, OFFLINE + text, base)), "probe").key

    assert key("") == key("  probe_steps: 7\n") == key("  evaluate_every: 100\n")
    assert key("") != key("  training.lr: 0.1\n")
    assert key("") != key("  loss: joint\n")
    assert key("") != key("", BASE.replace("400", "300"))


def test_both_ways_share_one_student(tmp_path):
    sweep = sweep_of(tmp_path, BOTH)
    plan = plan_of(sweep)
    student, probe = the(plan, "student"), the(plan, "probe")
    assert student.answers
    assert [(point.run, point.horizon) for point in plan.points["small"]] == [
        (student.name, 400),
        (probe.name, 10 * EPOCH),
    ]
    assert plan.asked_steps - plan.student_steps == 400  # the student's, once
    runs = plan.to_json()["runs"]
    assert runs == {"teacher": 1, "targets": 0, "student": 1, "scores": 0, "probe": 1}


def test_probes_at_several_steps_keep_several_weights(tmp_path):
    long = sweep_of(tmp_path, OFFLINE)
    short = sweep_of(
        tmp_path, "", "name: short\nset: {dataset: cifar10, strategy: B, teacher: {accuracy: 60}, "
        "probe: offline, training: {steps: 300}}\n", "short.yaml",
    )  # fmt: skip
    plan = plan_of(long, short)
    student = the(plan, "student")
    assert student.request.keep_weights_at == (300, 400)
    assert student.request.horizon == 400
    assert {unit.needs for unit in plan.of_kind("probe")} == {
        (token,) for token in student.provides
    }


def test_the_document_says_what_lies_behind_a_probe(tmp_path):
    store = Store(tmp_path / "store")
    sweep = sweep_of(tmp_path, "grids: [{axes: {strategy: [B, C], probe: [joint, offline]}}]\n")
    plan = plan_of(sweep)
    document = plan_document(sweep, plan)
    snapshot = the(plan, "teacher").provides[0]
    assert {point["snapshot"] for point in document["points"]} == {snapshot}
    students = {unit.name: unit for unit in plan.of_kind("student")}
    probes = {unit.name: unit for unit in plan.of_kind("probe")}
    for point in document["points"]:
        if point["settings"]["probe"] == "joint":
            assert point["run"] in students
            assert "weights" not in point
        else:
            assert point["weights"] == probes[point["run"]].needs[0]
    assert set(units(store, document)) == {the(plan, "teacher").name, *students, *probes}
    alone = plan_document(sweep, plan)
    alone["points"] = [point for point in alone["points"] if "weights" in point]
    # The students behind them are runs too.
    assert set(units(store, alone)) == set(units(store, document))


def test_labels(tmp_path):
    plan = plan_of(sweep_of(tmp_path, "grids: [{axes: {lr: [0.1, 0.2], probe: [offline]}}]\n"))
    assert [unit.label for unit in plan.of_kind("probe")] == [
        "probe B t60 std full seed0 at 400 lr=0.1",
        "probe B t60 std full seed0 at 400 lr=0.2",
    ]


def test_a_person_reads_of_probes(tmp_path):
    console = Console(record=True, width=160)
    show_plan(console, plan_of(sweep_of(tmp_path, BOTH)), Rates(), None)
    text = console.export_text()
    assert text.count("1 teacher, 1 student, 1 probe") == 2  # in all, and left to do


def test_a_probe_takes_the_time_of_probes_or_of_its_siblings(tmp_path):
    plan = plan_of(sweep_of(tmp_path, "  strategy: A\n" + OFFLINE, BASE_A))
    student, probe = (group_of(the(plan, kind), plan.infos) for kind in ("student", "probe"))
    assert (student.strategy, probe.strategy) == ("A", "probe")

    def seconds(runs):
        pace = Pace(Rates(runs=runs), plan.infos)
        return pace.total((unit, plan.work[unit.name].steps) for unit in plan.left).seconds

    assert seconds({student: 10.0}) == pytest.approx(40 + 390)
    assert seconds({student: 10.0, probe: 100.0}) == pytest.approx(40 + 39)


def test_report_steps_are_the_probes(tmp_path):
    report = """\
report:
  - table: t
    where: {probe: offline}
    rows: [strategy]
    columns: [teacher.accuracy]
    steps: [123]
"""
    grid = "grids: [{axes: {strategy: [B], teacher.accuracy: [60], probe: [joint, offline]}}]\n"
    plan = plan_of(sweep_of(tmp_path, grid + report))
    assert 123 in the(plan, "probe").request.evaluate_at
    assert 123 not in the(plan, "student").request.evaluate_at


def test_settings_that_do_not_apply(tmp_path):
    (problem,) = problems_of(tmp_path, "  probe_steps: 100\n")
    assert problem.message == "applies to no point"
    assert "probe joint" in problem.remedy
    (problem,) = problems_of(tmp_path, "  probe: later\n")
    assert "joint or offline" in problem.message


# -- less what the store holds --------------------------------------------------------------------


def teacher_held(plan):
    snapshot = HeldSnapshot(step=50, accuracy=60.2, alpha=1.0, digest=DIGEST)
    return {the(plan, "teacher").name: Held(complete=True, presets={60.0: snapshot})}


def work_with(plan, student=None, probe=None):
    held = teacher_held(plan)
    if student is not None:
        held[the(plan, "student").name] = student
    if probe is not None:
        held[the(plan, "probe").name] = probe
    found = plan.subtract(held)
    return found.work[the(plan, "student").name], found.work[the(plan, "probe").name], found


STUDENT_DONE = Held(complete=True, horizon=400, evaluated=frozenset({400}), checkpoints=(400,))
PROBE_DONE = Held(complete=True, horizon=3900, evaluated=frozenset({3900}))


@pytest.fixture(params=[OFFLINE, BOTH], ids=["offline alone", "joint too"])
def plan(tmp_path, request):
    return plan_of(sweep_of(tmp_path, request.param))


def test_nothing_held(plan):
    student, probe, found = work_with(plan)
    assert (student.action, student.missing_weights) == ("new", (400,))
    assert (probe.action, probe.steps) == ("new", 3900)
    assert found.chains()[the(plan, "teacher").name] >= 400 + 3900
    assert found.chains()[the(plan, "student").name] == 400 + 3900


def test_weights_are_taken_from_the_state_of_their_step(plan):
    student, probe, found = work_with(plan, STUDENT_DONE)
    assert (student.action, student.from_step, student.steps) == ("replay", 400, 0)
    assert student.missing_weights == (400,)
    assert probe.is_left
    assert the(plan, "student").provides[0] not in found.held_tokens


@pytest.mark.parametrize(("checkpoints", "start"), [((300, 900), 300), ((), 0), ((900,), 0)])
def test_a_student_that_passed_the_step_is_replayed_from_the_nearest_state(
    plan, checkpoints, start
):
    longer = dataclasses.replace(STUDENT_DONE, horizon=900, checkpoints=checkpoints)
    student, _, _ = work_with(plan, longer)
    assert (student.action, student.from_step, student.steps) == ("replay", start, 400 - start)


def test_a_student_that_goes_on_looks_back_for_weights_it_passed(plan):
    cut_off = Held(checkpoints=(120,))
    assert work_with(plan, cut_off)[0].from_step == 120
    shorter = dataclasses.replace(STUDENT_DONE, horizon=300, checkpoints=(300,))
    assert work_with(plan, shorter)[0].action == "extend"


def test_kept_weights_free_the_probe(plan):
    kept = dataclasses.replace(STUDENT_DONE, kept=frozenset({400}))
    student, probe, found = work_with(plan, kept)
    assert (student.action, probe.action) == ("done", "new")
    assert found.held_tokens >= set(the(plan, "probe").needs)
    assert [unit.kind for unit in found.left] == ["probe"]


def test_a_finished_probe_wants_no_weights(plan):
    student, probe, found = work_with(plan, STUDENT_DONE, PROBE_DONE)
    assert (student.action, probe.action) == ("done", "done")
    assert found.left == []
    longer = dataclasses.replace(PROBE_DONE, horizon=100, checkpoints=(100,))
    student, probe, _ = work_with(plan, STUDENT_DONE, longer)
    assert (student.action, probe.action, probe.from_step) == ("replay", "extend", 100)


def test_a_student_that_is_gone_is_only_wanted_for_itself_or_an_unfinished_probe(tmp_path):
    for_probe = plan_of(sweep_of(tmp_path, OFFLINE))
    assert work_with(for_probe, None, PROBE_DONE)[0].action == "unneeded"
    # A kill between its weights and its result, or damage: nobody else would ever finish it.
    assert work_with(for_probe, Held(checkpoints=(100,)), PROBE_DONE)[0].action == "resume"
    assert work_with(for_probe, Held(), PROBE_DONE)[0].action == "new"
    assert work_with(for_probe, None, PROBE_DONE)[2].left == []
    itself = plan_of(sweep_of(tmp_path, BOTH))
    student, _, _ = work_with(itself, None, PROBE_DONE)
    assert (student.action, student.missing_weights) == ("new", ())


def test_an_accuracy_searched_in_vain_blocks_student_and_probe(plan):
    name = the(plan, "teacher").name
    vain = Held(complete=True, horizon=100_000, searched_to=100_000, missing=(60.0,))
    found = plan.subtract({name: vain})
    assert [found.work[unit.name].action for unit in plan.units] == [
        "exhausted", "blocked", "blocked",
    ]  # fmt: skip
    kept = dataclasses.replace(STUDENT_DONE, kept=frozenset({400}))
    found = plan.subtract({name: vain, the(plan, "student").name: kept})
    assert [unit.kind for unit in found.left] == ["probe"]


# -- what is read from the store ------------------------------------------------------------------


def finish(store, unit, steps):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"step": steps, "top1_h": [1.0] * len(steps)}), buffer)
    store.write_bytes(paths.metrics(unit.name), seal_parquet(buffer.getvalue()))
    result = {"key": unit.key, "status": "complete", "horizon": steps[-1], "step": steps[-1]}
    store.write_json(paths.result(unit.name), result | {"teacher_digest": DIGEST})


def keep(store, unit, step, **facts):
    record = {"step": step, "digest": DIGEST, "student": unit.key, "teacher_digest": DIGEST}
    store.write_bytes(paths.kept_weights(unit.name, step), b"weights")
    store.write_json(paths.kept_json(unit.name, step), record | facts)


def test_kept_weights_in_a_store(plan, tmp_path):
    store = Store(tmp_path / "store")
    student, probe = the(plan, "student"), the(plan, "probe")
    finish(store, student, [100, 400])
    keep(store, student, 400)
    keep(store, student, 200)  # nobody asks for these
    finish(store, probe, [3900])
    held = read_inventory(store, plan.units)
    assert held[student.name].kept == {400}
    assert held[probe.name] == Held(
        complete=True, horizon=3900, evaluated=frozenset({3900}), teacher_digest=DIGEST
    )


@pytest.mark.parametrize("damage", ["no weights", "half a record", "another student", "no record"])
def test_weights_that_are_not_whole_are_not_there(plan, tmp_path, damage):
    store = Store(tmp_path / "store")
    student = the(plan, "student")
    finish(store, student, [400])
    keep(store, student, 400, **({"student": "0" * 64} if damage == "another student" else {}))
    record = paths.kept_json(student.name, 400)
    if damage == "no weights":
        store.delete(paths.kept_weights(student.name, 400))
    elif damage == "half a record":
        store.write_bytes(record, b'{"step": 4')
    elif damage == "no record":
        store.delete(record)
    assert read_inventory(store, plan.units)[student.name].kept == frozenset()


def test_status_counts_students_behind_probes(tmp_path):
    sweep = sweep_of(tmp_path, OFFLINE)
    plan = plan_of(sweep)
    teacher, student, probe = (the(plan, kind).name for kind in ("teacher", "student", "probe"))
    document, store = plan_document(sweep, plan), Store(tmp_path / "store")
    assert RunStates(store).of(document) == dict.fromkeys((teacher, student, probe), "to do")
    finish(store, the(plan, "student"), [400])
    assert RunStates(store).of(document)[student] == "done"
    store.delete(paths.result(student))
    store.write_json(paths.failure(student), {"cause": "error"})
    states = RunStates(store).of(document)
    assert (states[student], states[probe]) == ("failed", "blocked")


# -- backbones and their keys ---------------------------------------------------------------------


def backbone(folder, text):
    return canonical(the(plan_of(sweep_of(folder, text)), "student").spec)["backbone"]


def test_torchvisions_resnet50_keeps_its_key(tmp_path):
    plain = {"name": "resnet50"}
    assert backbone(tmp_path, "  backbone: {name: resnet50}\n") == plain
    assert backbone(tmp_path, "  backbone: {name: resnet50, width: 64}\n") == plain
    narrow = backbone(tmp_path, "  backbone: {name: resnet50, width: 8}\n")
    assert narrow == {"name": "resnet50", "width": 8}
    assert backbone(tmp_path, "") == {"name": "resnet18", "width": 64}


def test_a_teacher_may_be_a_narrow_resnet50(tmp_path):
    def teacher(text):
        spec = the(plan_of(sweep_of(tmp_path, f"  teacher.backbone: {text}\n")), "teacher").spec
        return canonical(spec)["backbone"]

    assert teacher("resnet50") == teacher("{name: resnet50, width: 64}") == {"name": "resnet50"}
    assert teacher("{name: resnet50, width: 8}") == {"name": "resnet50", "width": 8}
    assert teacher("vit_tiny") == {"name": "vit_tiny", "stem": "standard"}


def test_a_width_is_refused_where_there_is_none(tmp_path):
    (problem,) = problems_of(tmp_path, "  backbone: {name: vit_tiny, width: 8}\n")
    assert "resnet18 and resnet50" in problem.remedy
    (problem,) = problems_of(tmp_path, "  teacher.backbone: {name: vgg11, width: 8}\n")
    assert "width belongs to resnet18 and resnet50" in problem.message


def test_a_probe_survives_its_file(tmp_path):
    spec = the(plan_of(sweep_of(tmp_path, OFFLINE)), "probe").spec
    assert from_canonical(canonical(spec)) == spec
