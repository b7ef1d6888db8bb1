"""Plans: every point answered once, nothing trained twice, nothing that the store holds."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import merge
from orchestrator.errors import SpecError, UserError
from orchestrator.overrides import apply_overrides
from orchestrator.plan import make_plan
from orchestrator.plandocument import plan_document
from orchestrator.resolve import PROVISIONAL
from orchestrator.settings import FIELDS, INDEX, UNREPORTED
from orchestrator.spec import load_sweeps
from orchestrator.units import Held, HeldSnapshot
from tests.sweep_files import BASE, sweep_of, write
from tests.test_second_study import SECOND_STUDY
from trainers.data.catalogue import OFFICIAL
from trainers.spec import AUGMENTATIONS, Request, StudentSpec

GRID = """\
grids:
  - axes: {strategy: [A, B, C], teacher.accuracy: [30, 60], seed: [0, 1]}
"""


def plan_of(*sweeps):
    return make_plan(sweeps, OFFICIAL)


def one_student(folder, text="", base=BASE):
    (unit,) = plan_of(sweep_of(folder, text, base)).of_kind("student")
    return unit


def other(folder, text, name="other"):
    return sweep_of(folder, text, BASE.replace("small", name), f"{name}.yaml")


# --- resolution -----------------------------------------------------------------------------------


def test_a_point_becomes_the_papers_run(tmp_path):
    spec = one_student(tmp_path).spec
    assert isinstance(spec, StudentSpec)
    assert (spec.optimizer.lr, spec.optimizer.weight_decay, spec.batch_size) == (1e-3, 0.01, 128)
    assert (spec.backbone.name, spec.backbone.width, spec.backbone.stem) == (
        "resnet18",
        64,
        "small",
    )
    assert (spec.temperature, spec.student_temperature, spec.precision) == (2.0, 1.0, "fp32")
    assert spec.augmentation == AUGMENTATIONS["std"]
    assert spec.dataset.fingerprint == OFFICIAL["cifar10"].fingerprint
    assert spec.teacher is not None
    assert spec.teacher.accuracy == 60.0


def test_the_subset_follows_the_seed_unless_told(tmp_path):
    assert one_student(tmp_path, "  ipc: 10\n  seed: 4\n").spec.dataset.subset_seed == 4
    told = one_student(tmp_path, "  ipc: 10\n  seed: 4\n  subset_seed: 1\n")
    assert told.spec.dataset.subset_seed == 1


def test_all_images_are_the_full_data_set(tmp_path):
    full, all_images = one_student(tmp_path), one_student(tmp_path, "  ipc: 5000\n")
    assert full.key == all_images.key
    assert one_student(tmp_path, "  ipc: 4999\n").key != full.key
    digits = BASE.replace("cifar10", "digits")  # not balanced: 139 of each are not all of them
    assert (
        one_student(tmp_path, "  ipc: 139\n", digits).key != one_student(tmp_path, "", digits).key
    )


def test_norm_batch_of_the_whole_batch_is_the_default(tmp_path):
    assert one_student(tmp_path, "  norm_batch: 128\n").key == one_student(tmp_path).key


def test_how_a_run_executes_is_no_part_of_it(tmp_path):
    text = "  workers: 4\n  keep_checkpoint: none\n  evaluate_every: 7\n  teacher.max_steps: 9\n"
    assert one_student(tmp_path, text).key == one_student(tmp_path).key


def test_a_teacher_is_the_students_unless_told(tmp_path):
    text = "  lr: 1e-2\n  batch_size: 256\n  ipc: 10\n  seed: 7\n"
    told = "  teacher.lr: 1e-3\n  teacher.batch_size: 128\n  teacher.backbone: vgg11\n"
    (same,) = plan_of(sweep_of(tmp_path, text)).of_kind("teacher")
    assert (same.spec.optimizer.lr, same.spec.batch_size, same.spec.seed) == (1e-2, 256, 0)
    assert same.spec.dataset.ipc is None
    (own,) = plan_of(sweep_of(tmp_path, text + told)).of_kind("teacher")
    assert (own.spec.optimizer.lr, own.spec.batch_size) == (1e-3, 128)
    assert (own.spec.backbone.name, own.spec.backbone.width) == ("vgg11", None)


def test_custom_augmentation(tmp_path):
    spec = one_student(tmp_path, "  augmentation: {base: std, brightness: 0.8}\n").spec
    assert spec.augmentation == dataclasses.replace(AUGMENTATIONS["std"], brightness=0.8)


@pytest.mark.parametrize(
    ("steps", "batch", "horizon"),
    [("50 epochs", 128, 19_500), ("1 epoch", 512, 97), ("0.1 epochs", 128, 39), (7, 128, 7)],
)
def test_epochs_are_of_the_full_training_set(tmp_path, steps, batch, horizon):
    base = BASE.replace("400", str(steps))
    unit = one_student(tmp_path, f"  ipc: 10\n  batch_size: {batch}\n", base)
    assert unit.request.horizon == horizon


# --- sharing --------------------------------------------------------------------------------------


def test_units_needs_and_order(tmp_path):
    plan = plan_of(sweep_of(tmp_path, GRID))
    assert [len(plan.of_kind(kind)) for kind in ("teacher", "targets", "student")] == [1, 2, 2 + 8]
    (teacher,) = plan.of_kind("teacher")
    assert teacher.request == Request(horizon=100_000, presets=(30.0, 60.0))
    targets = {unit.needs: unit.name for unit in plan.of_kind("targets")}
    snapshots = {(f"{teacher.name}/acc-30",), (f"{teacher.name}/acc-60",)}
    assert targets.keys() == snapshots
    needs = {unit.spec.strategy: set() for unit in plan.of_kind("student")}
    for unit in plan.of_kind("student"):
        needs[unit.spec.strategy].add(unit.needs)
    assert needs["A"] == {()}
    assert needs["B"] == snapshots
    assert needs["C"] == {(name,) for name in targets.values()}
    provided = {token for unit in plan.units for token in unit.provides}
    assert all(token in provided for unit in plan.units for token in unit.needs)
    names = [unit.name for unit in plan.units]
    assert len(set(names)) == len(names)


def test_lengths_merge_into_the_longest(tmp_path):
    short = sweep_of(tmp_path, "  evaluate_at: [33]\n")
    long = apply_overrides(other(tmp_path, "  evaluate_every: 250\n"), ["steps=1000"])
    plan = plan_of(short, long)
    (unit,) = plan.of_kind("student")
    assert unit.request.horizon == 1000
    assert unit.request.evaluate_at == (33, 250, 400, 500, 750, 1000)
    assert unit.sweeps == ("small", "other")
    assert [point.horizon for points in plan.points.values() for point in points] == [400, 1000]
    totals = plan.to_json()
    assert totals["steps"]["asked"] == 1400
    assert totals["steps"]["saved_by_sharing"] == 400
    assert totals["shared_across_sweeps"] == 2  # the student and its teacher


def test_the_most_that_anybody_asks(tmp_path):
    text = "  workers: 2\n  keep_checkpoint: 3\n  teacher: {accuracy: 60, max_steps: 500}\n"
    base = BASE.replace("  teacher: {accuracy: 60}\n", "")
    first = sweep_of(tmp_path, text, base)
    second = other(tmp_path, "  workers: 4\n  keep_checkpoint: none\n")
    plan = plan_of(first, second)
    (student,), (teacher,) = plan.of_kind("student"), plan.of_kind("teacher")
    assert (student.workers, student.keep_checkpoint) == (4, 3)
    assert teacher.request.horizon == 100_000


def test_teacher_workers(tmp_path):
    text = "  scaling: {workers: 4, teacher_workers: 2}\n"
    plan = plan_of(sweep_of(tmp_path, text))
    assert [unit.workers for unit in plan.units] == [2, 4]


def test_steps_of_report_items_are_evaluated(tmp_path):
    text = "report: [{table: t, rows: [step], steps: [123, 400], where: {strategy: B}}]\n"
    assert one_student(tmp_path, text).request.evaluate_at == (123, 400)


def test_two_rules_for_one_teacher_are_refused(tmp_path):
    second = other(tmp_path, "  teacher.validate_every: 10\n")
    with pytest.raises(UserError, match="two validation rules"):
        plan_of(sweep_of(tmp_path), second)


def test_two_runs_never_share_a_folder(tmp_path, monkeypatch):
    key = merge.run_key
    monkeypatch.setattr(merge, "run_key", lambda spec: "0" * 16 + key(spec)[16:])
    with pytest.raises(UserError, match="would share the folder"):
        plan_of(sweep_of(tmp_path, "grids: [{axes: {seed: [0, 1]}}]\n"))


def test_half_precision_targets_above_200_classes(tmp_path):
    base = BASE.replace("strategy: B", "strategy: C")
    for num_classes, dtype in ((200, "float32"), (201, "float16")):
        infos = {"cifar10": dataclasses.replace(OFFICIAL["cifar10"], num_classes=num_classes)}
        plan = make_plan([sweep_of(tmp_path, "", base)], infos)
        (targets,) = plan.of_kind("targets")
        assert targets.spec.dtype == dtype


def test_a_data_set_nobody_opened_is_provisional(tmp_path):
    base = BASE.replace("cifar10", "birds")
    sweep = sweep_of(tmp_path, "data: {birds: {path: /birds}}\n", base)
    plan = plan_of(sweep)
    assert plan.provisional == ("birds",)
    assert {unit.spec.dataset.fingerprint for unit in plan.units} == {PROVISIONAL}
    info = dataclasses.replace(OFFICIAL["cifar10"], name="birds", image_size=96)
    known = make_plan([sweep], {"birds": info})
    assert known.provisional == ()
    assert {unit.spec.backbone.stem for unit in known.units} == {"standard"}


def test_cells_are_numbers_not_runs(tmp_path):
    sweep = sweep_of(tmp_path, GRID)
    assert plan_of(sweep).cells == 5  # A, B and C with two teachers; without the seeds
    report = """\
report:
  - {table: t, rows: [strategy, teacher.accuracy, metric], metrics: {g: top1_g, h: top1_h}}
  - {table: u, rows: [strategy, teacher.accuracy, step], steps: [50, 400]}
  - {figure: f, hue: strategy, panel: teacher.accuracy, where: {strategy: B}}
"""
    # 5 x 2 at the end; 5 more at 50 (400 is shared); B's curves: 10, 20, …, 300, 400 less those two
    assert plan_of(sweep_of(tmp_path, GRID + report)).cells == 10 + 5 + 2 * (8 - 2)


@given(st.permutations(range(3)))
@settings(max_examples=6, deadline=None)
def test_the_order_of_sweeps_changes_no_run(tmp_path_factory, order):
    folder = tmp_path_factory.mktemp("order")
    sweeps = [
        sweep_of(folder, GRID),
        other(folder, "  evaluate_at: [33]\n", "second"),
        other(folder, "  workers: 2\n", "third"),
    ]
    plan = plan_of(*(sweeps[index] for index in order))
    units = {unit.name: dataclasses.replace(unit, sweeps=()) for unit in plan.units}
    straight = {unit.name: dataclasses.replace(unit, sweeps=()) for unit in plan_of(*sweeps).units}
    assert units == straight


def test_bytes_count_what_stays(tmp_path):
    plan = plan_of(sweep_of(tmp_path, GRID))
    size = plan.store_bytes(lambda backbone, *, image_size, num_classes: 1000)
    students, targets = 10 * 3 * 4_000, 2 * 50_000 * 10 * 4
    # nine snapshots on the way to 60%; a checkpoint each ten points, and the last
    teacher = 9 * 4_000 + 7 * 3 * 4_000
    assert size == students + targets + teacher


def test_a_thousand_points_are_distinct_runs(tmp_path):
    axes = "{strategy: [A, B, C], teacher.accuracy: [10, 30, 50], ipc: [10, full], seed: %s}"
    sweep = sweep_of(tmp_path, f"grids: [{{axes: {axes % list(range(80))}}}]\n")
    plan = plan_of(sweep)
    assert plan.num_points == len(plan.of_kind("student")) == 2 * 80 * (1 + 3 + 3)


# --- less what is held ----------------------------------------------------------------------------

SNAPSHOT = HeldSnapshot(step=100, accuracy=60.2, alpha=1.0, digest="d" * 64)
LATER = dataclasses.replace(SNAPSHOT, step=900)


def held_student(**facts):
    return Held(**({"complete": True, "horizon": 400, "evaluated": frozenset({400})} | facts))


@pytest.mark.parametrize(
    ("held", "work"),
    [
        (None, ("new", 0, 400, ())),
        (Held(), ("new", 0, 400, ())),
        (Held(checkpoints=(50, 150)), ("resume", 150, 250, ())),
        (held_student(), ("done", 0, 0, ())),
        (held_student(horizon=500, evaluated=frozenset({400, 500})), ("done", 0, 0, ())),
        (held_student(horizon=300, checkpoints=(300,)), ("extend", 300, 100, ())),
        (held_student(horizon=300, checkpoints=(350,)), ("extend", 350, 50, ())),
        (held_student(horizon=300), ("extend", 0, 400, ())),
        (held_student(horizon=500, checkpoints=(350,)), ("done", 0, 0, ())),
        (
            held_student(horizon=500, evaluated=frozenset({500}), checkpoints=(350, 500)),
            ("replay", 350, 50, (400,)),
        ),
        (held_student(horizon=500, evaluated=frozenset()), ("replay", 0, 400, (400,))),
    ],
)
def test_what_is_left_of_a_student(tmp_path, held, work):
    sweep = sweep_of(tmp_path)
    (unit,) = plan_of(sweep).of_kind("student")
    plan = make_plan([sweep], OFFICIAL, {} if held is None else {unit.name: held})
    left = plan.work[unit.name]
    assert (left.action, left.from_step, left.steps, left.missing_steps) == work


@pytest.mark.parametrize(
    ("held", "action", "from_step", "student"),
    [
        (Held(), "new", 0, "new"),
        (Held(checkpoints=(70,)), "resume", 70, "new"),
        (Held(complete=True, presets={60.0: SNAPSHOT}), "done", 0, "new"),
        (Held(presets={60.0: SNAPSHOT}), "resume", 0, "new"),  # it lacks its result
        (Held(complete=True, presets={30.0: SNAPSHOT}, checkpoints=(1, 200)), "extend", 200, "new"),
        (Held(complete=True, presets={30.0: SNAPSHOT, 90.0: LATER}, checkpoints=(100, 900)),
         "replay", 100, "new"),
        (Held(complete=True, searched_to=100_000, missing=(60.0,)), "exhausted", 0, "blocked"),
        (Held(complete=True, searched_to=99_999, missing=(60.0,), checkpoints=(99_999,)),
         "extend", 99_999, "new"),
    ],
)  # fmt: skip
def test_what_is_left_of_a_teacher(tmp_path, held, action, from_step, student):
    plan = plan_of(sweep_of(tmp_path))
    (teacher,), (unit,) = plan.of_kind("teacher"), plan.of_kind("student")
    plan = plan.subtract({teacher.name: held})
    work = plan.work[teacher.name]
    assert (work.action, work.from_step) == (action, from_step)
    assert plan.work[unit.name].action == student
    held_tokens = {f"{teacher.name}/acc-{preset:g}" for preset in held.presets}
    assert plan.held_tokens == held_tokens


def test_only_missing_presets_are_searched(tmp_path):
    plan = plan_of(sweep_of(tmp_path, GRID))
    (teacher,) = plan.of_kind("teacher")
    plan = plan.subtract({teacher.name: Held(complete=True, presets={30.0: SNAPSHOT})})
    assert plan.work[teacher.name].missing_presets == (60.0,)


def test_a_failed_search_blocks_what_needs_it_and_nothing_else(tmp_path):
    plan = plan_of(sweep_of(tmp_path, GRID))
    (teacher,) = plan.of_kind("teacher")
    held = Held(complete=True, searched_to=100_000, missing=(60.0,), presets={30.0: SNAPSHOT})
    plan = plan.subtract({teacher.name: held})
    actions = {
        (unit.spec.strategy, unit.spec.teacher.accuracy if unit.spec.teacher else None): plan.work[
            unit.name
        ].action
        for unit in plan.of_kind("student")
    }
    assert actions == {
        ("A", None): "new",
        ("B", 30.0): "new",
        ("B", 60.0): "blocked",
        ("C", 30.0): "new",
        ("C", 60.0): "blocked",
    }
    assert sorted(plan.work[unit.name].action for unit in plan.of_kind("targets")) == [
        "blocked",
        "new",
    ]


def test_done_students_need_no_teacher(tmp_path):
    plan = plan_of(sweep_of(tmp_path, GRID))
    held = {unit.name: held_student() for unit in plan.of_kind("student")}
    done = plan.subtract(held)
    assert done.left == []
    assert {done.work[unit.name].action for unit in done.units} == {"done", "unneeded"}
    assert done.student_steps_left == done.teacher_steps_left_at_most == 0


def test_another_rule_than_the_stores_is_refused(tmp_path):
    plan = plan_of(sweep_of(tmp_path))
    (teacher,) = plan.of_kind("teacher")
    with pytest.raises(UserError, match=r"validate_every 10 .* now asked with 1"):
        plan.subtract({teacher.name: Held(presets={60.0: SNAPSHOT}, validate_every=10)})


def test_chains_run_through_the_targets(tmp_path):
    plan = plan_of(sweep_of(tmp_path, GRID))
    chains = plan.chains()
    (teacher,) = plan.of_kind("teacher")
    assert chains[teacher.name] == 100_000 + 400
    assert {chains[unit.name] for unit in plan.of_kind("targets")} == {400}
    json.dumps(plan.to_json())


# --- plan.json ------------------------------------------------------------------------------------


def test_the_document_is_what_the_architecture_says(tmp_path):
    report = "report: [{table: t, rows: [strategy, teacher.accuracy]}]\n"
    sweep = sweep_of(tmp_path, GRID + report)
    plan = plan_of(sweep)
    document = plan_document(sweep, plan)
    assert set(document) == {
        "sweep", "title", "description", "semantics", "scale", "settings", "fields", "points",
        "report", "schedules",
    }  # fmt: skip
    assert [steps[-1] for steps in document["schedules"]] == [400]
    assert {point["schedule"] for point in document["points"]} == {0}
    assert document["fields"][:3] == ["strategy", "teacher.accuracy", "seed"]
    assert not set(document["fields"]) & set(document["settings"])
    assert set(document["fields"]) | set(document["settings"]) == set(FIELDS) - set(UNREPORTED)
    assert document["settings"]["ipc"] == "full"
    assert document["scale"] is None
    first, second = document["points"][0], document["points"][2]
    assert first["settings"]["strategy"] == "A"
    assert first["settings"]["teacher.accuracy"] is None
    assert second["settings"]["teacher.accuracy"] == 30.0
    assert second["horizon"] == 400
    assert {point["run"] for point in document["points"]} == {
        unit.name for unit in plan.of_kind("student")
    }
    assert document["report"][0]["metric"] == "top1_h"
    assert document == json.loads(json.dumps(document))


def test_equal_sweeps_give_equal_documents_wherever_they_lie(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    one, two = sweep_of(tmp_path, GRID), sweep_of(tmp_path / "elsewhere", GRID)
    assert json.dumps(plan_document(one, plan_of(one))) == json.dumps(
        plan_document(two, plan_of(two))
    )


def test_points_that_differ_in_execution_alone_stand_once(tmp_path):
    text = "grids: [{axes: {workers: [1, 2], evaluate_every: [100, 50]}}]\n"
    sweep = sweep_of(tmp_path, text)
    assert len(plan_document(sweep, plan_of(sweep))["points"]) == 1


def test_mappings_come_out_as_mappings(tmp_path):
    text = "grids: [{axes: {augmentation: [std, {base: std, crop_scale: [0.5, 1]}]}}]\n"
    sweep = sweep_of(tmp_path, text)
    settings_ = [point["settings"] for point in plan_document(sweep, plan_of(sweep))["points"]]
    assert settings_ == [
        {"augmentation": "std"},
        {"augmentation": {"base": "std", "crop_scale": [0.5, 1.0]}},
    ]


def test_every_reported_field_is_read_somewhere(tmp_path):
    """A field that changes no key and is not declared as execution would be read nowhere."""
    joint = BASE.replace("strategy: B", "strategy: C")
    changed = {
        "dataset": "cifar100", "backbone.name": "vgg11", "backbone.width": 8,
        "backbone.stem": "standard", "strategy": "B", "ipc": 11, "augmentation": "crop", "seed": 1,
        "subset_seed": 5, "temperature": 3, "student_temperature": 3, "loss": "decoupled",
        "ce_weight": 0.5, "teacher.accuracy": 30, "teacher.seed": 1, "teacher.augmentation": "crop",
        "teacher.backbone": "vgg11", "teacher.batch_size": 64, "teacher.lr": 0.5,
        "teacher.weight_decay": 0.5, "teacher.validate_every": 2, "teacher.screen": 100,
        "training.batch_size": 64, "training.lr": 0.5, "training.weight_decay": 0.5,
        "training.precision": "bf16", "training.norm_batch": 32,
        "probe": "offline", "image_size": 16,
    }  # fmt: skip
    without_choice = {"target_view", "training.steps"}
    elsewhere = set(SECOND_STUDY)  # tests/test_second_study.py
    assert changed.keys() == set(FIELDS) - set(UNREPORTED) - without_choice - elsewhere
    sweep = sweep_of(tmp_path, "  loss: joint\n  ipc: 10\n", joint)
    (base,) = plan_of(sweep).points["small"]
    for name, value in changed.items():
        (point,) = plan_of(apply_overrides(sweep, [f"{name}={value}"])).points["small"]
        assert point.run != base.run, name
    (longer,) = plan_of(apply_overrides(sweep, ["steps=500"])).of_kind("student")
    assert longer.request.horizon == 500


def test_execution_fields_reach_the_unit(tmp_path):
    options = ["workers=2", "scaling.teacher_workers=4", "keep_checkpoint=2", "teacher.max_steps=7"]
    plan = plan_of(apply_overrides(sweep_of(tmp_path), [*options, "evaluate_at=[3]"]))
    (teacher,), (student,) = plan.of_kind("teacher"), plan.of_kind("student")
    assert (teacher.workers, teacher.request.horizon) == (4, 7)
    assert (student.workers, student.keep_checkpoint) == (2, 2)
    assert student.request.evaluate_at == (3, 400)
    every = plan_of(apply_overrides(sweep_of(tmp_path), ["evaluate_every=0.5 epochs"]))
    assert every.of_kind("student")[0].request.evaluate_at == (195, 390, 400)


def test_overrides_that_make_another_experiment_stand_in_the_plan(tmp_path):
    sweep = sweep_of(tmp_path)
    plain = plan_document(sweep, plan_of(sweep))
    assert "overrides" not in plain
    same = ["batch_size=128", "teacher.accuracy=60", "precision=bf16", "teacher.screen=100"]
    execution = ["workers=2", "keep_checkpoint=none", "teacher.max_steps=7", "evaluate_at=[3]"]
    assert apply_overrides(sweep, [*same, *execution]).overrides == ()
    changed = apply_overrides(sweep, ["steps=200", "lr=0.1", "augmentation={base: std, flip_p: 0}"])
    document = plan_document(changed, plan_of(changed))
    assert document["overrides"][1:] == ["training.steps=200", "training.lr=0.1"]
    assert document["overrides"][0].startswith("augmentation={")


def test_an_override_that_empties_a_table_is_refused(tmp_path):
    report = "report: [{table: t, where: {training.steps: 400}, rows: [strategy]}]\n"
    sweep = sweep_of(tmp_path, report)
    assert apply_overrides(sweep, ["steps=400", "lr=0.1"]).overrides == ("training.lr=0.1",)
    with pytest.raises(SpecError, match=r"leaves t of .* empty") as caught:
        apply_overrides(sweep, ["steps=200"])
    assert [problem.key for problem in caught.value.problems] == ["training.steps"]


def test_points_keep_the_order_of_the_file(tmp_path):
    (sweep,) = load_sweeps([write(tmp_path, BASE + GRID)])
    planned = plan_of(sweep).points["small"]
    assert [point.point for point in planned] == list(sweep.points)
    assert [point.point[INDEX["seed"]] for point in planned[:4]] == [0, 1, 0, 1]
