"""Sweep files: what is read, and what a person is told when something is wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from orchestrator.backbones import TORCHVISION_BACKBONES
from orchestrator.errors import SpecError
from orchestrator.overrides import apply_overrides, limit_sweeps, parse_limit
from orchestrator.settings import ALIASES, FIELDS, INDEX, BadValueError
from orchestrator.spec import load_sweeps
from orchestrator.sweepschema import json_schema
from tests.sweep_files import BASE, problems_of, sweep_of, write
from trainers.data.catalogue import OFFICIAL

SWEEPS = Path(__file__).parent.parent / "sweeps"


def value(sweep, name, index=0):
    return sweep.points[index][INDEX[name]]


# --- reading --------------------------------------------------------------------------------------


def test_a_file_without_grids_is_one_point_with_defaults(tmp_path):
    sweep = sweep_of(tmp_path)
    assert len(sweep.points) == 1
    assert value(sweep, "training.lr") == 1e-3
    assert value(sweep, "training.batch_size") == 128
    assert value(sweep, "temperature") == 2.0
    assert value(sweep, "student_temperature") == 1.0
    assert value(sweep, "teacher.max_steps") == 100_000


@pytest.mark.parametrize("spelling", ["lr: 1e-2", "training.lr: 0.01", "training: {lr: 1.e-2}"])
def test_spellings_of_one_setting(tmp_path, spelling):
    base = BASE.replace("  training: {steps: 400}", "  steps: 400")
    sweep = sweep_of(tmp_path, f"  {spelling}\n", base)
    assert value(sweep, "training.lr") == 0.01


def test_yaml_1_1_numbers_in_strings_are_numbers(tmp_path):
    assert yaml.safe_load("1e-3") == "1e-3"  # the trap
    sweep = sweep_of(tmp_path, "grids:\n  - axes: {lr: [1e-3, 1E-4, 0.01]}\n")
    assert [value(sweep, "training.lr", i) for i in range(3)] == [1e-3, 1e-4, 1e-2]


def test_none_is_the_name_of_an_augmentation(tmp_path):
    assert value(sweep_of(tmp_path, "  augmentation: none\n"), "augmentation") == "none"


def test_backbone_may_be_a_name(tmp_path):
    sweep = sweep_of(tmp_path, "  backbone: mobilenet_v2\n")
    assert value(sweep, "backbone.name") == "mobilenet_v2"
    assert value(sweep, "backbone.width") is None


def test_merge_keys_and_anchors(tmp_path):
    text = """\
name: merged
set: &base {dataset: cifar10, strategy: A, training: {steps: 10}}
grids:
  - set: {<<: *base, strategy: B, teacher.accuracy: 30}
"""
    assert value(load_sweeps([write(tmp_path, text)])[0], "strategy") == "B"


def test_report_items_speak_dotted_names_and_checked_values(tmp_path):
    text = """\
grids: [{axes: {lr: [1e-2, 1e-3], seed: [0, 1]}}]
report: [{table: t, where: {lr: [1e-3]}, rows: [metric], columns: [batch_size]}]
"""
    item = sweep_of(tmp_path, text).report[0]
    assert item.where == {"training.lr": [1e-3]}
    assert item.columns == ("training.batch_size",)


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_sweeps_are_valid(path):
    located = ("tiny-imagenet", "imagenet")
    (sweep,) = load_sweeps([path], located=located)
    assert sweep.points
    assert sweep.report
    jsonschema.validate(yaml.safe_load(path.read_text()), json_schema())


# --- the schema -----------------------------------------------------------------------------------


def test_schema_is_current():
    held = json.loads((SWEEPS / "schema.json").read_text(encoding="utf-8"))
    assert held == json_schema(), "write orchestrator.sweepschema.json_schema() to schema.json"


def test_schema_knows_every_field_as_an_axis():
    jsonschema.Draft202012Validator.check_schema(json_schema())
    axes = json_schema()["$defs"]["GridFile"]["properties"]["axes"]["properties"]
    assert axes.keys() == FIELDS.keys() | ALIASES.keys()


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a", "sett": {}},
        {"name": "a", "set": {"strategy": "D"}},
        {"name": "a", "grids": [{"axes": {"strategy": "A"}}]},
        {"name": "a", "grids": [{"axes": {"nothing": [1]}}]},
        {"name": "a", "report": [{"tabel": "t"}]},
    ],
)
def test_schema_refuses_what_the_reader_refuses(wrong, tmp_path):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json_schema())
    with pytest.raises(SpecError):
        load_sweeps([write(tmp_path, yaml.safe_dump(wrong))])


def test_pinned_backbones_are_torchvisions():
    models = pytest.importorskip("torchvision.models")
    known = set(models.list_models(module=models)) - {"resnet18"}
    assert set(TORCHVISION_BACKBONES) == known


# --- what is wrong --------------------------------------------------------------------------------

# What is added to BASE, the key and line named, a part of the message, the nearest name.
WRONG = [
    ("  straegy: A\n", "set.straegy", 7, "unknown setting", "strategy"),
    ("  teacher.acuracy: 5\n", "set.teacher.acuracy", 7, "unknown setting", "teacher.accuracy"),
    (
        "  teacher.screen: adaptiv\n",
        "set.teacher.screen",
        7,
        "is 'adaptiv', expected a number",
        "adaptive",
    ),
    (
        "  teacher.screen: 0\n",
        "set.teacher.screen",
        7,
        "a number of test images of at least 1",
        None,
    ),
    ("  ipc: no\n", "set.ipc", 7, "is False, expected images per class", None),
    ("  seed: yes\n", "set.seed", 7, "is True, expected a whole number", None),
    ("  seed: ~\n", "set.seed", 7, "is empty (null)", None),
    ("  seed: -1\n", "set.seed", 7, "is -1, expected a whole number of at least 0", None),
    ("  seed: 1.5\n", "set.seed", 7, "is 1.5, expected a whole number", None),
    ("  ipc: 0\n", "set.ipc", 7, "images per class", None),
    ("  ipc: 6000\n", "set.ipc", 7, "smallest class of cifar10 has 5000", None),
    ("  ipc: ful\n", "set.ipc", 7, "or full", "full"),
    ("  temperature: 0\n", "set.temperature", 7, "a number above 0", None),
    ("  temperature: .nan\n", "set.temperature", 7, "a number above 0", None),
    ("  augmentation: sdt\n", "set.augmentation", 7, "an augmentation's name", "std"),
    ("  augmentation: ~\n", "set.augmentation", 7, "is empty (null)", None),
    (
        "  augmentation: {base: std, brightnes: 1}\n",
        "set.augmentation",
        7,
        "nearest valid name: brightness",
        None,
    ),
    (
        "  augmentation: {base: mixup, cutmix_alpha: 1}\n",
        "set.augmentation",
        7,
        "mixed one way",
        None,
    ),
    ("  augmentation: {flip_p: 2}\n", "set.augmentation", 7, "between 0 and 1", None),
    ("  augmentation: {crop_scale: [1, 0.5]}\n", "set.augmentation", 7, "low ≤ high", None),
    ("  backbone: resnet81\n", "set.backbone", 7, "torchvision", "resnet18"),
    ("  backbone: {widht: 8}\n", "set.backbone.widht", 7, "unknown setting", "backbone.width"),
    ("  backbone: {name: vgg11, width: 8}\n", "set.backbone.width", 7, "applies to no point", None),
    ("  teacher.backbone: {name: vgg11, width: 8}\n", "set.teacher.backbone", 7, "has none", None),
    ("  keep_checkpoint: finl\n", "set.keep_checkpoint", 7, "final, none, or", "final"),
    ("  loss: joit\n", "set.loss", 7, "decoupled or joint", "joint"),
    ("  ce_weight: 0.5\n", "set.ce_weight", 7, "applies to no point", None),
    ("  subset_seed: 3\n", "set.subset_seed", 7, "applies to no point", None),
    ("  workers: 3\n", "set.workers", 7, "does not divide the batch of 128", None),
    ("  norm_batch: 30\n", "set.norm_batch", 7, "does not divide a worker's batch", None),
    ("  evaluate_at: [500]\n", "set.evaluate_at", 7, "the run ends at 400", None),
    ("  evaluate_every: 0 epochs\n", "set.evaluate_every", 7, "no epochs at all", None),
    ("  training.batch_size: 64\n  batch_size: 32\n", "set.batch_size", 8, "sets too", None),
    ("  scaling: 2\n", "set.scaling", 7, "a group of settings", None),
    ("  strategy: C\n", "set.strategy", 7, "stands twice (first in line 4)", None),
    ("titel: x\n", "titel", 7, "unknown key", "title"),
    ("grids: 3\n", "grids", 7, "list", None),
    ("grids: [3]\n", "grids[0]", 7, "expected a mapping", None),
    ("grids:\n  - axis: {}\n", "grids[0].axis", 8, "unknown key", "axes"),
    ("grids:\n  - axes: {seeds: [1]}\n", "grids[0].axes.seeds", 8, "unknown setting", "seed"),
    ("grids:\n  - axes: {seed: []}\n", "grids[0].axes.seed", 8, "without values", None),
    ("grids:\n  - axes: {seed: [1, 1]}\n", "grids[0].axes.seed[1]", 8, "repeats the value 1", None),
    (
        "grids:\n  - axes:\n      strategy:\n        - B\n        - D\n",
        "grids[0].axes.strategy[1]",
        11,
        "expected A, B or C",
        None,
    ),
    (
        "grids:\n  - axes: {teacher.accuracy: [30, 101]}\n",
        "grids[0].axes.teacher.accuracy[1]",
        8,
        "above 0 and at most 100",
        None,
    ),
    (
        "grids:\n  - axes: {ipc: [10, 5001]}\n",
        "grids[0].axes.ipc[1]",
        8,
        "is 5001, but the smallest class",
        None,
    ),
    (
        "grids:\n  - axes: {seed: [1]}\n    exclude: [{seed: 2}]\n",
        "grids[0]",
        8,
        "excludes seed 2",
        None,
    ),
    (
        "grids:\n  - axes: {seed: [1]}\n    exclude: [{seed: 1}]\n",
        "grids[0]",
        8,
        "has no points",
        None,
    ),
    ("data: {birds: {pth: x}}\n", "data.birds.pth", 7, "unknown key", "path"),
    ("report: [{tabel: t}]\n", "report[0]", 7, "exactly one of the keys", None),
    ("report: [{table: t}]\n", "report[0].rows", 7, "field required", None),
    ("report: [{table: t, rows: [seeed]}]\n", "report[0].rows", 7, "no point has a field", "seed"),
    ("report: [{table: t, rowz: [step]}]\n", "report[0].rowz", 7, "unknown key", "rows"),
    (
        "report: [{table: t, rows: [workers]}]\n",
        "report[0].rows",
        7,
        "no point has a field 'scaling.workers'",
        None,
    ),
    (
        "report: [{table: t, rows: [metric], where: {strategy: A}}]\n",
        "report[0].where.strategy",
        7,
        "no point has strategy 'A'",
        None,
    ),
    (
        "report: [{table: t, rows: [metric], metric: top_h}]\n",
        "report[0].metric",
        7,
        "top1_h",
        "top1_h",
    ),
    (
        "report: [{table: t, rows: [step], steps: [300, 500]}]\n",
        "report[0].steps",
        7,
        "step 500 is after the last step, 400",
        None,
    ),
    (
        "report: [{table: t, rows: [strategy], ratio: {field: strategy, of: C, to: B}}]\n",
        "report[0].ratio.of",
        7,
        "no point has strategy 'C'",
        None,
    ),
    (
        "grids: [{axes: {ipc: [10, full]}}]\nreport: [{table: t, rows: [metric]}]\n",
        "report[0]",
        8,
        "would mix points that differ in ipc",
        None,
    ),
    (
        "report: [{table: t, rows: [metric]}, {figure: t}]\n",
        "report[1].figure",
        7,
        "the name of an earlier item",
        None,
    ),
]


@pytest.mark.parametrize(("text", "key", "line", "message", "nearest"), WRONG)
def test_a_wrong_line_is_named(tmp_path, text, key, line, message, nearest):
    problems = problems_of(tmp_path, text)
    found = [problem for problem in problems if problem.key == key and message in problem.message]
    assert found, "\n".join(map(str, problems))
    assert len(problems) == 1, "one mistake, one problem:\n" + "\n".join(map(str, problems))
    assert found[0].line == line
    assert found[0].nearest == nearest
    assert found[0].file.endswith("sweep.yaml")


@pytest.mark.parametrize(
    ("base", "key"),
    [
        (BASE.replace("  dataset: cifar10\n", ""), "dataset"),
        (BASE.replace("  strategy: B\n", ""), "strategy"),
        (BASE.replace("  training: {steps: 400}\n", ""), "training.steps"),
        (BASE.replace("  teacher: {accuracy: 60}\n", ""), "teacher.accuracy"),
    ],
)
def test_what_must_be_given(tmp_path, base, key):
    problems = problems_of(tmp_path, "", base)
    assert [problem.key for problem in problems] == [key]
    assert "is missing" in problems[0].message


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("name: [a\nset: {", 2, "expected"),
        ("name: a\n\tset: 1\n", 2, "cannot start any token"),
        ("- a\n", 1, "not a mapping"),
        ("", 1, "not a mapping"),
        ("? [a]\n: b\n", 1, "a key must be a name"),
    ],
)
def test_what_is_no_yaml_is_one_problem(tmp_path, text, line, message):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_sweeps([path])
    (problem,) = caught.value.problems
    assert problem.line == line
    assert message in problem.message


def test_a_missing_file_and_a_binary_one(tmp_path):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError) as caught:
        load_sweeps([tmp_path / "none.yaml", binary])
    messages = [problem.message for problem in caught.value.problems]
    assert messages == ["cannot be read: No such file or directory", "is not UTF-8 (byte 0)"]


def test_unknown_data_sets_need_a_place(tmp_path):
    base = BASE.replace("cifar10", "cifar")
    (problem,) = problems_of(tmp_path, "", base)
    assert problem.nearest == "cifar10"
    assert "data: {cifar:" in problem.remedy
    assert sweep_of(tmp_path, "data: {cifar: {path: /somewhere}}\n", base).points
    assert load_sweeps([write(tmp_path, base)], located=["cifar"])


def test_epochs_of_an_unprepared_data_set(tmp_path):
    base = BASE.replace("cifar10", "birds").replace("400", "5 epochs")
    (problem,) = problems_of(tmp_path, "data: {birds: {path: /somewhere}}\n", base)
    assert problem.key == "set.training.steps"
    assert "counted the images of birds" in problem.message


def test_all_problems_of_all_files_come_at_once(tmp_path):
    first = write(tmp_path, BASE + "  ipc: no\n  straegy: A\n", "first.yaml")
    second = write(
        tmp_path,
        BASE.replace("B", "X").replace("small", "other") + "grids: [{axes: {ipc: [9999]}}]\n",
        "b.yaml",
    )
    with pytest.raises(SpecError) as caught:
        load_sweeps([first, second])
    keys = [problem.key for problem in caught.value.problems]
    assert keys == ["set.ipc", "set.straegy", "set.strategy", "grids[0].axes.ipc[0]"]
    assert "nearest valid name: strategy" in str(caught.value)


def test_two_sweeps_of_one_name(tmp_path):
    files = [write(tmp_path, BASE, "a.yaml"), write(tmp_path, BASE, "b.yaml")]
    with pytest.raises(SpecError, match=r"b\.yaml: name: 'small' is the name of .*a\.yaml too"):
        load_sweeps(files)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_default_passes_its_own_check(name):
    setting = FIELDS[name]
    assert setting.check(setting.default) == setting.default
    if setting.is_flag:
        return
    with pytest.raises(BadValueError, match="YAML reads"):
        setting.check(True)


# --- --set and --limit ----------------------------------------------------------------------------


def test_set_changes_every_grid(tmp_path):
    text = "grids: [{axes: {seed: [0, 1]}}, {set: {steps: 300}, axes: {seed: [2]}}]\n"
    sweep = apply_overrides(sweep_of(tmp_path, text), ["training.steps=200", "lr=1e-2"])
    assert {point[INDEX["training.steps"]] for point in sweep.points} == {200}
    assert value(sweep, "training.lr") == 1e-2


def test_set_may_cut_evaluations_short(tmp_path):
    sweep = sweep_of(tmp_path, "  evaluate_at: [10, 400]\n")
    assert value(apply_overrides(sweep, ["steps=100"]), "training.steps") == 100


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("seed=3", "--limit 'seed=3'"),
        ("stepz=3", "nearest valid name: steps"),
        ("steps", "has no value"),
        ("steps=", "is missing"),
        ("steps=many", "expected a number of steps"),
        ("augmentation=sdt", "nearest valid name: std"),
        ("batch_size=[", "not a YAML value"),
        ("ipc=6000", "--set: ipc: is 6000, but"),
        ("workers=3", "does not divide"),
        ("dataset=cifar11", "nearest valid name: cifar10"),
    ],
)
def test_wrong_set(tmp_path, option, message):
    sweep = sweep_of(tmp_path, "grids: [{axes: {seed: [0, 1]}}]\n")
    with pytest.raises(SpecError, match=message):
        apply_overrides(sweep, [option])


def test_limit_takes_lists_and_combines(tmp_path):
    text = "grids: [{axes: {strategy: [A, B, C], teacher.accuracy: [30, 60], seed: [0, 1]}}]\n"
    sweep = sweep_of(tmp_path, text)
    (limited,) = limit_sweeps([sweep], parse_limit(["strategy=C,B", "teacher.accuracy=60"]))
    assert len(limited.points) == 4
    assert set(limited.points) < set(sweep.points)
    assert dataclasses.replace(limited, limit={}).points == sweep.points


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["strategy=D"], "expected A, B or C"),
        (["seed=7"], r"no point has seed 7 \(there are 0, 1\)"),
        (["sed=1"], "nearest valid name: seed"),
        (["seed"], "has no value"),
        (["strategy=A", "teacher.accuracy=60"], "at once"),
    ],
)
def test_wrong_limit(tmp_path, options, message):
    text = "grids: [{axes: {strategy: [A, B], seed: [0, 1]}}]\n"
    with pytest.raises(SpecError, match=message):
        limit_sweeps([sweep_of(tmp_path, text)], parse_limit(options))


def test_official_data_sets_are_known():
    assert {"digits", "cifar10", "cifar100"} <= OFFICIAL.keys()
