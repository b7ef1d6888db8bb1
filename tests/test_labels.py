"""Labels: a base that depends on the run alone, and what tells the runs of one plan apart."""

from __future__ import annotations

import pytest

from orchestrator.plan import make_plan
from tests.sweep_files import BASE, sweep_of
from trainers.data.catalogue import OFFICIAL


def labels(folder, axes, kind="student"):
    """axes: the sweep's, in YAML."""
    sweep = sweep_of(folder, f"grids: [{{axes: {{{axes}}}}}]\n")
    return [unit.label for unit in make_plan([sweep], OFFICIAL).of_kind(kind)]


def test_what_all_runs_share_is_left_out(tmp_path):
    found = labels(tmp_path, "strategy: [A, B], ipc: [10, full], seed: [0]")
    assert found == [
        "A std ipc10 seed0", "A std full seed0", "B t60 std ipc10 seed0", "B t60 std full seed0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("axis", "endings"),
    [
        ("training.lr: [0.001, 0.01]", ["lr=0.001", "lr=0.01"]),
        ("training.weight_decay: [0, 0.1]", ["wd=0", "wd=0.1"]),
        ("training.batch_size: [128, 256]", ["bs128", "bs256"]),
        ("training.norm_batch: [null, 32]", ["seed0", "seed0 nb32"]),
        ("training.precision: [fp32, bf16]", ["fp32", "bf16"]),
        ("loss: [decoupled, joint]", ["seed0", "seed0 joint"]),
        ("loss: [joint], ce_weight: [1, 0.5]", ["seed0 ce1", "seed0 ce0.5"]),
        ("dataset: [cifar10, cifar100]", ["cifar10", "cifar100"]),
        ("backbone.width: [8, 64]", ["resnet18-w8", "resnet18-w64"]),
        ("temperature: [1, 4]", ["T1", "T4"]),
        ("student_temperature: [1, 2]", ["gT1", "gT2"]),
        ("ipc: [10], subset_seed: [0, 7]", ["ipc10 seed0", "ipc10 seed0 subset7"]),
        ("teacher.seed: [0, 1]", ["t.seed0", "t.seed1"]),
        ("teacher.augmentation: [std, none]", ["t.std", "t.none"]),
        ("teacher.lr: [null, 0.1]", ["seed0", "seed0 t.lr=0.1"]),
        (
            "augmentation: [{base: std, brightness: 0.8}, {base: none, crop_scale: [0.5, 1]}]",
            ["std,brightness=0.8", "none,crop_scale=(0.5,1.0)"],
        ),
    ],
)
def test_an_axis_is_said_where_it_differs(tmp_path, axis, endings):
    found = labels(tmp_path, axis)
    assert len(set(found)) == len(found) == 2
    for label, ending in zip(found, endings, strict=True):
        assert label.startswith("B t60 ")
        assert label.endswith(f" {ending}")


def test_what_does_not_apply_to_some_is_no_difference(tmp_path):
    assert labels(tmp_path, "strategy: [A, B], loss: [decoupled]") == [
        "A std full seed0", "B t60 std full seed0",
    ]  # fmt: skip


def test_teachers_and_targets_are_told_apart_too(tmp_path):
    axes = "strategy: [C], training.lr: [0.001, 0.01]"
    teachers = labels(tmp_path, axes, "teacher")
    assert teachers == [f"teacher cifar10 resnet18-w64 std seed0 lr={lr}" for lr in (0.001, 0.01)]
    assert labels(tmp_path, axes, "targets") == [
        f"targets t60 T2 of {teacher.removeprefix('teacher ')}" for teacher in teachers
    ]
    assert labels(tmp_path, axes)[1] == "C t60 std full seed0 lr=0.01"  # its teacher's is its own


def test_all_axes_at_once(tmp_path):
    found = labels(
        tmp_path,
        "strategy: [A, B, C], teacher.accuracy: [30, 60], teacher.seed: [0, 1], lr: [0.1, 0.01], "
        "batch_size: [64, 128], loss: [decoupled, joint], dataset: [cifar10, digits], "
        "ipc: [10, full], seed: [0, 1]",
    )
    assert len(set(found)) == len(found) == (1 + 2 * 2 * 2) * 64


def test_labels_are_no_part_of_a_key(tmp_path):
    (alone,) = make_plan([sweep_of(tmp_path)], OFFICIAL).of_kind("student")
    both = make_plan([sweep_of(tmp_path, "grids: [{axes: {lr: [0.001, 0.01]}}]\n", BASE)], OFFICIAL)
    first = both.of_kind("student")[0]
    assert first.key == alone.key
    assert first.label == f"{alone.label} lr=0.001"
