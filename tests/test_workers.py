"""`scaling:`: workers of a run and GPUs of a worker, by rule, by number, by data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import MachineError, SpecError
from orchestrator.plan import Plan, make_plan
from orchestrator.shapes import refuse_unfit, shape_of
from orchestrator.spec import load_sweeps
from orchestrator.units import Unit
from orchestrator.workers import Share, Workers, share_of, workers_of
from tests.sweep_files import write
from trainers.data.catalogue import OFFICIAL

SWEEP = """\
name: sized
set:
  strategy: A
  dataset: imagenet
  backbone: resnet18
  training: {steps: 10, batch_size: 512}
"""


def plan_of(folder: Path, scaling: str = "", base: str = SWEEP) -> Plan:
    (sweep,) = load_sweeps([write(folder, base + scaling)], OFFICIAL)
    return make_plan([sweep], OFFICIAL)


def unit_of(folder: Path, scaling: str = "", base: str = SWEEP) -> Unit:
    (unit,) = plan_of(folder, scaling, base).units
    return unit


CIFAR = SWEEP.replace("imagenet", "cifar10").replace("512", "128")


@pytest.mark.parametrize(
    ("value", "dataset", "workers"),
    [
        ("auto", "imagenet", Workers(8, is_auto=True)),
        ("auto", "cifar10", Workers(1, is_auto=True)),
        (4, "cifar10", Workers(4, is_auto=False)),
        ((("default", 2), ("imagenet", 4)), "imagenet", Workers(4, is_auto=False)),
        ((("default", 2), ("imagenet", 4)), "digits", Workers(2, is_auto=False)),
        ((("imagenet", 4),), "digits", Workers(1, is_auto=True)),
    ],
)
def test_workers_by_data_set(value: object, dataset: str, workers: Workers) -> None:
    assert workers_of(value, dataset) == workers


def test_a_share_by_data_set() -> None:
    assert share_of((("cifar10", 0.25), ("default", 0.5)), "cifar10") == Share(0.25, is_auto=False)
    assert share_of((("cifar10", 0.25),), "imagenet") == Share(1.0, is_auto=True)
    assert share_of("auto", "cifar10") == Share(1.0, is_auto=True)


def test_of_two_wishes_a_written_one_stands() -> None:
    rule, two, four = Workers(8, is_auto=True), Workers(2, is_auto=False), Workers(4, is_auto=False)
    assert rule.joined(two) == two.joined(rule) == two
    assert two.joined(four) == four
    rule, half, whole = Share(1.0, is_auto=True), Share(0.5, False), Share(1.0, False)
    assert rule.joined(half) == half.joined(rule) == half
    assert half.joined(whole) == whole


def test_the_rule_is_no_more_than_what_is_there(tmp_path: Path) -> None:
    unit = unit_of(tmp_path)
    sizes = {
        gpus: shape_of(unit, use_gpu=True, devices=gpus).workers for gpus in (1, 2, 3, 7, 8, 64)
    }
    assert sizes == {1: 1, 2: 2, 3: 2, 7: 4, 8: 8, 64: 8}  # and they divide the batch
    fixed = unit_of(tmp_path, "  scaling: {workers: 8}\n")
    shape = shape_of(fixed, use_gpu=True, devices=4)
    assert shape.workers == 8
    with pytest.raises(MachineError, match=r"wants 8 GPUs .* only 4 are there"):
        refuse_unfit([(fixed, shape)], 4, use_gpu=True)


def test_runs_that_share_a_gpu(tmp_path: Path) -> None:
    unit = unit_of(tmp_path, "  scaling: {gpus_per_worker: {cifar10: 0.25, imagenet: 1}}\n", CIFAR)
    assert shape_of(unit, use_gpu=True, devices=8).devices == 0.25
    assert shape_of(unit, use_gpu=False, devices=8).devices == 1  # CPU slots are not shared
    assert shape_of(unit, use_gpu=True, devices=8, gpus_per_run=0.5).devices == 0.5
    wide = shape_of(unit, use_gpu=True, devices=8, gpus_per_run=4)
    assert (wide.workers, wide.devices_per_worker) == (4, 1)
    assert shape_of(unit, use_gpu=True, devices=8, workers_per_run=2).devices == 2


def test_an_option_is_taken_at_its_word(tmp_path: Path) -> None:
    unit = unit_of(tmp_path)
    assert shape_of(unit, use_gpu=False, devices=2, workers_per_run=3).workers == 3
    with pytest.raises(MachineError, match="batches of 512, which 3 workers cannot share"):
        refuse_unfit([(unit, shape_of(unit, use_gpu=False, devices=8, workers_per_run=3))], 8,
                     use_gpu=False)  # fmt: skip


@pytest.mark.parametrize(
    "scaling",
    [
        "  scaling: {workers: 4}\n",
        "  scaling: {workers: {imagenet: 2, default: 1}}\n",
        "  scaling: {workers: 1, gpus_per_worker: 0.25}\n",
    ],
)
def test_no_key_knows_of_workers(tmp_path: Path, scaling: str) -> None:
    assert unit_of(tmp_path, scaling).key == unit_of(tmp_path).key


def test_teachers_have_workers_of_their_own(tmp_path: Path) -> None:
    base = SWEEP.replace("strategy: A", "strategy: B\n  teacher: {accuracy: 50}")
    by_rule = plan_of(tmp_path, base=base)
    assert [(unit.workers, unit.workers_auto) for unit in by_rule.units] == [(8, True)] * 2
    text = "  scaling: {workers: 8, teacher_workers: {imagenet: 4}}\n"
    own = plan_of(tmp_path, text, base)
    assert {unit.kind: unit.workers for unit in own.units} == {"teacher": 4, "student": 8}


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        ("{workers: many}", "auto, a whole number"),
        ("{workers: 0}", "auto, a whole number"),
        ("{workers: aut}", "auto"),
        ("{workers: {imagenett: 8}}", "imagenet"),
        ("{workers: {}}", "names no data set"),
        ("{workers: 3}", "does not divide the batch"),
        ("{gpus_per_worker: 2}", "at most 1"),
        ("{gpus_per_worker: alone}", "auto, 1, a fraction of a GPU"),
        ("{workers: 2, gpus_per_worker: 0.5}", "only one-worker runs can share a GPU"),
        ("{worker: 2}", "scaling.workers"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, scaling: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan_of(tmp_path, f"  scaling: {scaling}\n")
    assert said in str(caught.value)
    assert "sweep.yaml:7" in str(caught.value)
