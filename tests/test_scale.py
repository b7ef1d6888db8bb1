"""Scales: a pilot keeps its sweep's layout, and trains smaller points."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import Problem, SpecError
from orchestrator.grid import Point
from orchestrator.overrides import apply_overrides, limit_sweeps
from orchestrator.plan import make_plan
from orchestrator.plandocument import plan_document
from orchestrator.scale import (
    batch_map,
    measuring_grid,
    norm_batch_for,
    pick_ends,
    preset_map,
    step_map,
    workers_for,
)
from orchestrator.scalefile import load_scale
from orchestrator.scaling import scale_sweep
from orchestrator.settings import INDEX
from orchestrator.spec import Sweep, load_sweeps
from orchestrator.sweepschema import json_schema
from tests.sweep_files import write
from trainers.data.catalogue import OFFICIAL
from trainers.spec import StudentSpec

STEPS = st.sets(st.integers(1, 300_000), min_size=1, max_size=40)
PRESETS = st.sets(st.integers(1, 100).map(float), min_size=1, max_size=12)

# -- the maps --------------------------------------------------------------------------------------


@given(STEPS, st.integers(1, 2_000))
def test_steps_stay_apart_and_end_at_the_last(steps: set[int], max_steps: int) -> None:
    found = step_map(steps, max_steps)
    assert set(found) == steps
    values = [found[step] for step in sorted(steps)]
    assert values == sorted(set(values))
    assert values[0] >= 1
    assert values[-1] == min(max(steps), max(max_steps, len(steps)))
    assert all(its <= step for step, its in found.items())


@given(STEPS)
def test_steps_are_never_stretched(steps: set[int]) -> None:
    assert step_map(steps, max(steps)) == step_map(steps, None) == {step: step for step in steps}


def test_steps_keep_their_proportions_where_there_is_room() -> None:
    assert step_map([1_950, 7_800, 39_000, 58_500], 600) == {
        1_950: 20, 7_800: 80, 39_000: 400, 58_500: 600,
    }  # fmt: skip
    assert step_map([10, 20, 50, 39_000], 600) == {10: 1, 20: 2, 50: 3, 39_000: 600}


@given(st.sets(st.integers(1, 4096), min_size=1, max_size=8), st.integers(1, 512))
def test_batches_stay_apart(batches: set[int], divisor: int) -> None:
    found = batch_map(batches, divisor)
    values = [found[batch] for batch in sorted(batches)]
    assert values == sorted(set(values))
    assert all(min(batch, 2) <= its <= batch for batch, its in found.items())
    assert divisor > 1 or all(its == batch for batch, its in found.items())


@given(st.integers(2, 512), st.integers(2, 512), st.integers(1, 64))
def test_norm_batches_divide_a_workers_batch(norm: int, batch: int, divisor: int) -> None:
    found = norm_batch_for(norm, batch, divisor)
    assert batch % found == 0
    assert found >= 2
    assert found == batch or found <= max(2, norm // divisor)


@given(st.integers(1, 16), st.integers(1, 512), st.integers(1, 8) | st.none())
def test_workers_share_the_batch(workers: int, batch: int, at_most: int | None) -> None:
    found = workers_for(workers, batch, at_most)
    assert 1 <= found <= min(workers, at_most or workers)
    assert batch % found == 0


@given(st.lists(st.integers(), unique=True, max_size=30), st.integers(1, 10))
def test_the_ends_are_kept(values: list[int], at_most: int) -> None:
    found = pick_ends(values, at_most)
    assert len(found) == min(len(values), at_most)
    assert [value for value in values if value in found] == list(found)
    if values:
        assert found[0] == values[0]
        assert at_most == 1 or found[-1] == values[-1]


@given(PRESETS, PRESETS)
def test_presets_keep_their_order(presets: set[float], reached: set[float]) -> None:
    found = preset_map(presets, reached)
    assert found.keys() <= presets
    assert set(found.values()) <= reached
    values = [found[preset] for preset in sorted(found)]
    assert values == sorted(set(values))
    assert len(found) == min(len(presets), len(reached))
    unmapped = presets - found.keys()
    assert all(one > other for one in unmapped for other in found)  # the highest stay empty


@given(PRESETS, PRESETS)
def test_presets_that_were_all_reached_are_themselves(
    presets: set[float], others: set[float]
) -> None:
    assert preset_map(presets, presets | others) == {preset: preset for preset in presets}


def test_presets_spread_over_what_was_reached() -> None:
    reached = [10, 15, 20, 25, 30, 35, 40, 45, 50]
    assert preset_map([30, 60, 90], reached) == {30: 30, 60: 40, 90: 50}  # 30 stays where it is
    assert preset_map([5, 60, 90], reached) == {5: 10, 60: 35, 90: 50}
    assert preset_map([80], [10, 20]) == {80: 20}
    assert preset_map([30, 60], []) == {}


def test_presets_are_measured_from_chance_on() -> None:
    assert measuring_grid([30.0, 12.0], 10) == (10, 12, 15, 20, 25, 30)
    assert measuring_grid([2.0, 10.0], 200) == (2, 5, 10)
    assert measuring_grid([60.0], 2) == (50, 55, 60)


# -- a scaled sweep --------------------------------------------------------------------------------

SWEEP = """\
name: table
set:
  dataset: cifar10
  strategy: B
  teacher: {accuracy: 60, max_steps: 2 epochs}
  training: {steps: 100 epochs, evaluate_every: 1 epochs, evaluate_at: [777]}
grids:
  - axes:
      ipc: [10, 20, 50, 100, 200, full]
      training.batch_size: [128, 256]
      seed: [0, 1, 2, 3, 4]
report:
  - {table: t, rows: [step, training.batch_size], columns: [ipc], steps: [1950, 7800]}
"""
SCALE = """\
name: pilot
max_steps: 600
seeds: 2
ipc: 3
divide_batch: 4
backbones: {resnet18: {width: 8}}
max_workers: 2
teacher: {validate_every: 5, screen: 1000}
set: {lr: 0.01}
"""


def scaled(folder: Path, text: str = SWEEP, scale: str = SCALE, **data: Any) -> Sweep:
    """data: fields of cifar10 that are others in the store."""
    own = dataclasses.replace(OFFICIAL["cifar10"], **data)
    infos = {**OFFICIAL, "cifar10": own}
    file = write(folder, scale, "scale.yaml")
    (sweep,) = load_sweeps([write(folder, text)], infos, (), load_scale(file))
    return scale_sweep(sweep, infos)


def actual(sweep: Sweep, name: str) -> list[Any]:
    """Values of a field in the points that train, in order, each once."""
    assert sweep.scaling is not None
    points = [sweep.scaling.actual(point) for point in sweep.points]
    return list(dict.fromkeys(point[INDEX[name]] for point in points if point))


def nominal(points: tuple[Point, ...], name: str) -> list[Any]:
    return list(dict.fromkeys(point[INDEX[name]] for point in points))


def test_points_keep_the_layout(tmp_path: Path) -> None:
    sweep = scaled(tmp_path)
    assert sweep.name == "table-pilot"
    assert nominal(sweep.points, "training.batch_size") == [128, 256]
    assert nominal(sweep.points, "ipc") == [10, 50, "full"]
    assert nominal(sweep.points, "seed") == [0, 1]
    assert nominal(sweep.points, "training.steps") == ["100 epochs"]


def test_what_trains_is_smaller(tmp_path: Path) -> None:
    sweep = scaled(tmp_path)
    assert actual(sweep, "training.batch_size") == [32, 64]
    assert actual(sweep, "backbone.width") == [8]
    assert actual(sweep, "training.lr") == [0.01]
    assert actual(sweep, "teacher.validate_every") == [5]
    assert actual(sweep, "teacher.max_steps") == [780, 390]  # epochs of the nominal batch
    assert sweep.scaling is not None
    # 100 epochs of 390 steps, and of 195 steps
    assert sweep.scaling.steps == {777: 12, 1_950: 30, 7_800: 120, 19_500: 300, 39_000: 600}
    assert actual(sweep, "training.steps") == [600, 300]
    assert actual(sweep, "training.evaluate_at") == [(12,)]
    assert actual(sweep, "training.evaluate_every") == [None]  # the standard ones lie dense enough


def test_a_pilot_equals_the_sweep_somebody_wrote_by_hand(tmp_path: Path) -> None:
    plan = make_plan([scaled(tmp_path)], OFFICIAL)
    text = """\
name: hand
set:
  dataset: cifar10
  strategy: B
  backbone: {width: 8}
  teacher: {accuracy: 60, validate_every: 5, screen: 1000}
  training: {lr: 0.01}
"""
    grid = "  - {set: {steps: %d, batch_size: %d}, axes: {ipc: [10, 50, full], seed: [0, 1]}}\n"
    text += "grids:\n" + grid % (600, 32) + grid % (300, 64)
    hand = make_plan(load_sweeps([write(tmp_path, text)]), OFFICIAL)
    assert {unit.name for unit in plan.units} == {unit.name for unit in hand.units}
    horizons = {unit.name: unit.request.horizon for unit in plan.of_kind("student")}
    assert horizons == {unit.name: unit.request.horizon for unit in hand.of_kind("student")}
    asked = {u.request.evaluate_at for u in plan.of_kind("student") if u.request.horizon == 600}
    assert asked == {(12, 30, 120, 600)}


def test_the_document_of_a_pilot(tmp_path: Path) -> None:
    text = SWEEP.replace("[10, 20, 50, 100, 200, full]", "[10]").replace("[128, 256]", "[128]")
    sweep = scaled(tmp_path, text.replace("    seed: [0, 1, 2, 3, 4]\n", "    seed: [3]\n"))
    plan = make_plan([sweep], OFFICIAL)
    document = plan_document(sweep, plan)
    (student,), (teacher,) = plan.of_kind("student"), plan.of_kind("teacher")
    assert document["sweep"] == "table-pilot"
    assert document["settings"]["training.batch_size"] == 128
    assert document["settings"]["training.steps"] == "100 epochs"
    assert document["points"] == [
        {
            "run": student.name,
            "settings": {},
            "snapshot": f"{teacher.name}/acc-60",
            "horizon": 39_000,
            "schedule": 0,
            "actual": {
                "backbone.width": 8,
                "teacher.validate_every": 5,
                "teacher.screen": 1000,
                "training.steps": 600,
                "training.batch_size": 32,
                "training.lr": 0.01,
                "horizon": 600,
            },
        }
    ]
    assert document["scale"] == {
        "name": "pilot",
        "notes": [
            "steps: 39,000 becomes 600, earlier ones in proportion",
            "batches: 128 becomes 32",
            "backbones: resnet18 becomes resnet18 of width 8",
            "settings: training.lr 0.01, teacher.validate_every 5, teacher.screen 1000",
            "workers: at most 2",
        ],
        "steps": {"777": 12, "1950": 30, "7800": 120, "39000": 600},
    }
    assert document == json.loads(json.dumps(document))
    (steps,) = document["schedules"]  # of the run, not of the layout
    assert steps[-1] == 600
    assert {12, 30, 120} <= {*steps}
    assert plan.cells == 2  # of the layout


def test_an_axis_keeps_its_values_whatever_the_scale_sets(tmp_path: Path) -> None:
    text = SWEEP.replace("seed: [0, 1, 2, 3, 4]", "training.lr: [0.1, 0.001]")
    text = text.partition("report:")[0]
    sweep = scaled(tmp_path, text)
    assert actual(sweep, "training.lr") == [0.1, 0.001]
    assert sweep.scaling is not None
    assert "training.lr" not in " ".join(sweep.scaling.notes)


def test_a_limit_changes_no_map(tmp_path: Path) -> None:
    sweep = scaled(tmp_path)
    whole = {point.point: point for point in make_plan([sweep], OFFICIAL).points["table-pilot"]}
    (limited,) = limit_sweeps([sweep], {"training.batch_size": (256,)})
    for point in make_plan([limited], OFFICIAL).points["table-pilot"]:
        assert point == whole[point.point]


def test_options_come_before_the_scale(tmp_path: Path) -> None:
    scale = load_scale(write(tmp_path, SCALE, "scale.yaml"))
    (sweep,) = load_sweeps([write(tmp_path, SWEEP)], OFFICIAL, (), scale)
    sweep = scale_sweep(apply_overrides(sweep, ["steps=50 epochs"], OFFICIAL), OFFICIAL)
    assert sweep.scaling is not None
    assert sweep.scaling.steps == {777: 24, 1_950: 60, 7_800: 240, 9_750: 300, 19_500: 600}


def test_workers_fit_the_smaller_batch(tmp_path: Path) -> None:
    text = SWEEP.replace("  strategy: B\n", "  strategy: B\n  scaling: {workers: 4}\n")
    assert actual(scaled(tmp_path, text), "scaling.workers") == [2]
    odd = scaled(tmp_path, text, SCALE.replace("divide_batch: 4", "divide_batch: 42"))
    assert actual(odd, "training.batch_size") == [3, 6]
    assert actual(odd, "scaling.workers") == [1, 2]


def test_norm_batch_is_divided_too(tmp_path: Path) -> None:
    text = SWEEP.replace("evaluate_at: [777]", "norm_batch: 32")
    assert actual(scaled(tmp_path, text), "training.norm_batch") == [8]
    whole = SWEEP.replace("evaluate_at: [777]", "norm_batch: 128").replace("[128, 256]", "[128]")
    specs = [u.spec for u in make_plan([scaled(tmp_path, whole)], OFFICIAL).of_kind("student")]
    assert {spec.norm_batch for spec in specs if isinstance(spec, StudentSpec)} == {None}


def test_backbones_of_students_and_teachers(tmp_path: Path) -> None:
    text = SWEEP.replace("accuracy: 60,", "accuracy: 60, backbone: resnet50,")
    scale = SCALE.replace("{resnet18: {width: 8}}", "{resnet50: {name: resnet18, width: 4}}")
    plan = make_plan([scaled(tmp_path, text, scale)], OFFICIAL)
    teachers = {unit.spec.backbone for unit in plan.of_kind("teacher")}  # type: ignore[union-attr]
    assert {(backbone.name, backbone.width) for backbone in teachers} == {("resnet18", 4)}
    students = {unit.spec.backbone for unit in plan.of_kind("student")}  # type: ignore[union-attr]
    assert {(backbone.name, backbone.width) for backbone in students} == {("resnet18", 64)}


def test_images_are_never_enlarged(tmp_path: Path) -> None:
    scale = SCALE + "max_image_size: 16\n"
    assert actual(scaled(tmp_path, scale=scale), "image_size") == [16]
    assert actual(scaled(tmp_path, scale=SCALE + "max_image_size: 32\n"), "image_size") == [None]
    assert actual(scaled(tmp_path, scale=scale, image_size=8), "image_size") == [None]


# -- data that stands in ---------------------------------------------------------------------------

FEW: dict[str, Any] = {
    "num_train": 300,
    "num_test": 60,
    "smallest_class": 25,
    "fingerprint": "0" * 64,
}


def test_a_stand_in_changes_no_layout(tmp_path: Path) -> None:
    sweep = scaled(tmp_path, **FEW)
    assert sweep.scaling is not None
    assert sweep.scaling.steps == {777: 12, 1_950: 30, 7_800: 120, 19_500: 300, 39_000: 600}
    assert nominal(sweep.points, "ipc") == [10, 20, "full"]
    assert (
        "images per class left out, because a class of this cifar10 has 25: 50, 100, 200"
        in sweep.scaling.notes
    )
    infos = {**OFFICIAL, "cifar10": dataclasses.replace(OFFICIAL["cifar10"], **FEW)}
    plan = make_plan([sweep], infos)
    assert len(plan.of_kind("student")) == 3 * 2 * 2


def test_an_ipc_that_is_no_axis_is_left_out_too(tmp_path: Path) -> None:
    text = SWEEP.replace("      ipc: [10, 20, 50, 100, 200, full]\n", "")
    text = text.replace("  strategy: B\n", "  strategy: B\n  ipc: 100\n")
    sweep = scaled(tmp_path, text, **FEW)
    assert sweep.points == ()
    assert plan_document(sweep, make_plan([sweep], OFFICIAL))["points"] == []


def test_an_unscaled_sweep_keeps_its_error(tmp_path: Path) -> None:
    infos = {**OFFICIAL, "cifar10": dataclasses.replace(OFFICIAL["cifar10"], **FEW)}
    with pytest.raises(SpecError, match="smallest class of cifar10 has 25 images"):
        load_sweeps([write(tmp_path, SWEEP)], infos)


# -- where a scale stands, and what may be wrong with it -------------------------------------------


def test_a_scale_in_a_sweep_file(tmp_path: Path) -> None:
    write(tmp_path, SCALE, "scale.yaml")
    (by_file,) = load_sweeps([write(tmp_path, SWEEP + "scale: scale.yaml\n")])
    inline = "scale:\n" + "".join(f"  {line}\n" for line in SCALE.splitlines())
    (by_mapping,) = load_sweeps([write(tmp_path, SWEEP + inline)])
    assert by_file.scale == by_mapping.scale == load_scale(tmp_path / "scale.yaml")
    assert by_file.name == "table-pilot"


def test_of_several_scales_the_outermost_counts(tmp_path: Path) -> None:
    write(tmp_path, SWEEP + "scale: {name: own, seeds: 1}\n", "one.yaml")
    group = "name: all\ninclude: [one.yaml]\n"
    write(tmp_path, group + "scale: {name: outer, seeds: 2}\n", "all.yaml")
    names = [sweep.name for sweep in load_sweeps([tmp_path / "all.yaml", tmp_path / "one.yaml"])]
    assert names == ["table-outer", "all-outer", "table-own"]
    scale = load_scale(write(tmp_path, "name: given\n", "scale.yaml"))
    given = load_sweeps([tmp_path / "all.yaml", tmp_path / "one.yaml"], scale=scale)
    assert [sweep.name for sweep in given] == ["table-given", "all-given"]
    assert given[1].include == ("table-given",)


def wrong(folder: Path, text: str) -> list[Problem]:
    with pytest.raises(SpecError) as caught:
        load_scale(write(folder, text, "scale.yaml"))
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "key", "line", "message", "hint"),
    [
        ("seeds: 2\n", "(file)", None, "has no key 'name'", "name"),
        ("name: p\nseds: 2\n", "seds", 2, "unknown key", "seeds"),
        ("name: p\nseeds: 0\n", "seeds", 2, "greater than or equal to 1", ""),
        ("name: p\nmax_steps: many\n", "max_steps", 2, "valid integer", ""),
        ("name: p\nteacher_accuracy: measurd\n", "teacher_accuracy", 2, "measurd", "measured"),
        ("name: p\nset: {seed: 3}\n", "set.seed", 2, "cannot set seed", "use `seeds`"),
        ("name: p\nset: {dataset: digits}\n", "set.dataset", 2, "cannot set dataset", "layout"),
        ("name: p\nset:\n  training: {steps: 9}\n", "set.training.steps", 3, "cannot set",
         "max_steps"),
        ("name: p\nset: {lerning_rate: 9}\n", "set.lerning_rate", 2, "unknown setting", ""),
        ("name: p\nteacher: {accuracy: 9}\n", "teacher.accuracy", 2, "cannot set",
         "teacher_accuracy"),
        ("name: p\nteacher: {max_step: 9}\n", "teacher.max_step", 2, "unknown setting",
         "teacher.max_steps"),
        ("name: p\nteacher: {lr: 1}\nset: {teacher: {lr: 2}}\n", "set", 3,
         "sets teacher.lr, which `teacher` sets too", "one of the two"),
        ("name: p\nbackbones: {resnet81: {width: 8}}\n", "backbones.resnet81", 2, "resnet81",
         "resnet18"),
        ("name: p\nbackbones: {resnet18: {}}\n", "backbones.resnet18", 2, "says nothing", "width"),
        ("name: p\nbackbones: {resnet18: {widht: 8}}\n", "backbones.resnet18.widht", 2,
         "unknown key", "width"),
        ("name: p\nbackbones: {vgg11: {width: 8}}\n", "backbones.vgg11", 2, "width", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_scale(
    tmp_path: Path, text: str, key: str, line: int | None, message: str, hint: str
) -> None:
    (problem,) = wrong(tmp_path, text)
    assert (problem.key, problem.line) == (key, line)
    assert message in problem.message
    assert hint in f"{problem.remedy} {problem.nearest}"


def test_a_bad_scale_in_a_sweep_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_sweeps([write(tmp_path, SWEEP + "scale: {name: p, seeds: no}\n")])
    (problem,) = caught.value.problems
    assert (problem.key, problem.line) == ("scale.seeds", 14)


def test_a_bad_scale_file_is_told_once(tmp_path: Path) -> None:
    write(tmp_path, "name: p\nseeds: no\n", "scale.yaml")
    text = SWEEP + "scale: scale.yaml\n"
    files = [
        write(tmp_path, text, "a.yaml"),
        write(tmp_path, text.replace("name: table", "name: b"), "b.yaml"),
    ]
    with pytest.raises(SpecError) as caught:
        load_sweeps(files)
    (problem,) = caught.value.problems
    assert problem.file.endswith("/scale.yaml")


def test_the_schema_knows_scales_and_groups(tmp_path: Path) -> None:
    schema = json_schema()
    inline = {"name": "t", "set": {"dataset": "cifar10"}, "scale": yaml.safe_load(SCALE)}
    good = [inline, {"name": "g", "include": ["a.yaml"]}, inline | {"scale": "s.yaml"}]
    for file in good:
        jsonschema.validate(file, schema)
    for file in (good[1] | {"grids": []}, inline | {"scale": {"name": "p", "seds": 1}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(file, schema)
    of_scale = schema | {"$ref": "#/$defs/ScaleFile"}
    for key in ("properties", "required", "additionalProperties", "dependentSchemas"):
        of_scale.pop(key, None)
    jsonschema.validate(yaml.safe_load(SCALE), of_scale)
