"""Grids against the few lines that define them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.grid import Grid, Place, expand, expand_grid, matches
from orchestrator.settings import FIELDS, INDEX
from tests.sweep_files import sweep_of
from trainers.schedule import EARLY_STEPS, evaluation_interval, evaluation_steps

PLACE = Place("sweep.yaml", "grids[0]", 1)


def grid(axes, exclude=(), **base):
    values = {name: setting.default for name, setting in FIELDS.items()} | {
        name.replace("__", "."): value for name, value in base.items()
    }
    return Grid(
        name="",
        place=PLACE,
        base=tuple(values.values()),
        axes={name: tuple(values) for name, values in axes.items()},
        exclude=exclude,
    )


def pick(points, *names):
    return [tuple(point[INDEX[name]] for name in names) for point in points]


def test_the_last_axis_varies_fastest():
    points = expand([grid({"strategy": "BC", "seed": (0, 1)}, teacher__accuracy=60.0)])
    assert pick(points, "strategy", "seed") == [("B", 0), ("B", 1), ("C", 0), ("C", 1)]


def test_strategy_a_has_no_teacher_and_stands_once():
    axes = {"strategy": "ABC", "teacher.accuracy": (30.0, 60.0, 90.0), "temperature": (1.0, 2.0)}
    points = expand([grid(axes)])
    assert len(points) == 1 + 2 * 3 * 2
    (a,) = [point for point in points if point[INDEX["strategy"]] == "A"]
    without = {
        name for name in FIELDS if a[INDEX[name]] is None and FIELDS[name].default is not None
    }
    assert without >= {"temperature", "target_view", "teacher.seed", "teacher.augmentation"}
    assert a[INDEX["student_temperature"]] == 1.0


@pytest.mark.parametrize(
    ("name", "where", "elsewhere"),
    [
        ("target_view", {"strategy": "C"}, {"strategy": "B"}),
        ("subset_seed", {"ipc": 10, "subset_seed": 3}, {"ipc": "full", "subset_seed": 3}),
        ("ce_weight", {"loss": "joint"}, {"loss": "decoupled"}),
        ("backbone.width", {"backbone.name": "resnet18"}, {"backbone.name": "vgg11"}),
        ("teacher.max_steps", {"strategy": "B"}, {"strategy": "A"}),
    ],
)
def test_fields_that_do_not_apply_are_none(name, where, elsewhere):
    base = {"strategy": "B"}
    for given_, applies in ((where, True), (elsewhere, False)):
        values = {key.replace(".", "__"): value for key, value in (base | given_).items()}
        (point,) = expand([grid({}, **values)])
        assert (point[INDEX[name]] is not None) == applies


def test_exclusion_is_of_what_is_written():
    axes = {"strategy": "AB", "teacher.accuracy": (30.0, 60.0)}
    excluded = [{"strategy": ("A",), "teacher.accuracy": (60.0,)}]
    assert len(expand([grid(axes, excluded)])) == 3  # A survives by way of 30
    everything = [{"strategy": ("A",), "teacher.accuracy": (30.0, 60.0)}]
    assert pick(expand([grid(axes, everything)]), "strategy") == [("B",), ("B",)]


def test_grids_unite_in_order():
    first, second = grid({"seed": (1, 0)}), grid({"seed": (0, 2)})
    assert pick(expand([first, second]), "seed") == [(1,), (0,), (2,)]


def test_custom_augmentations_are_values_of_an_axis(tmp_path):
    text = "grids: [{axes: {augmentation: [std, {base: std, brightness: 0.8}], seed: [0, 1]}}]\n"
    points = sweep_of(tmp_path, text).points
    custom = (("base", "std"), ("brightness", 0.8))
    assert [row[0] for row in pick(points, "augmentation")] == ["std", "std", custom, custom]


AXES = st.fixed_dictionaries(
    {},
    optional={
        "strategy": st.lists(st.sampled_from("ABC"), min_size=1, unique=True),
        "ipc": st.lists(st.sampled_from([1, 10, "full"]), min_size=1, unique=True),
        "loss": st.lists(st.sampled_from(["joint", "decoupled"]), min_size=1, unique=True),
        "teacher.accuracy": st.lists(st.sampled_from([10.0, 50.0]), min_size=1, unique=True),
        "seed": st.lists(st.integers(0, 3), min_size=1, unique=True),
    },
)


@given(axes=AXES, excluded=AXES)
@settings(max_examples=60, deadline=None)
def test_expansion_is_the_filtered_product(axes, excluded):
    one = grid(axes, [excluded] if excluded else [], strategy="B")
    base = dict(zip(FIELDS, one.base, strict=True))
    expected = []
    for values in itertools.product(*axes.values()):
        point = base | dict(zip(axes, values, strict=True))
        if not excluded or not all(point[name] in listed for name, listed in excluded.items()):
            expected.append((point["strategy"], point["ipc"], point["seed"]))
    assert pick(expand_grid(one), "strategy", "ipc", "seed") == expected
    points = expand([one])
    assert len(set(points)) == len(points)
    assert set(points) == set(expand_grid(one))


def test_a_condition_holds_where_all_its_fields_do():
    points = expand([grid({"strategy": "BC", "seed": (0, 1, 2)})])
    found = filter(matches({"strategy": ("C",), "seed": (0, 2)}), points)
    assert pick(found, "strategy", "seed") == [("C", 0), ("C", 2)]


# --- evaluation schedule -------------------------------------------------------------------------


def test_the_papers_early_steps_and_then_every_five_epochs():
    assert evaluation_steps(1_500, 390) == EARLY_STEPS
    assert evaluation_steps(6_000, 390) == (*EARLY_STEPS, 1_950, 3_900, 5_850, 6_000)


def test_imagenet_is_looked_at_every_500_steps():
    assert evaluation_interval(1_281_167 // 512) == 500
    assert evaluation_steps(3_200, 2_502) == (*EARLY_STEPS, 2_000, 2_500, 3_000, 3_200)
    assert evaluation_steps(3_200, 390, every=1_000) == (*EARLY_STEPS, 2_000, 3_000, 3_200)


@given(
    horizon=st.integers(1, 50_000),
    epoch=st.integers(0, 3_000),
    requested=st.lists(st.integers(-5, 60_000)),
)
def test_evaluation_steps_are_sorted_within_the_run_and_hold_what_was_asked(
    horizon, epoch, requested
):
    steps = evaluation_steps(horizon, epoch, requested)
    assert list(steps) == sorted(set(steps))
    assert steps[0] >= 1
    assert steps[-1] == horizon
    assert {step for step in requested if 1 <= step <= horizon} <= set(steps)
    longer = evaluation_steps(horizon + 1, epoch, requested)
    assert set(steps) - {horizon} <= set(longer)  # a prefix keeps its evaluations
