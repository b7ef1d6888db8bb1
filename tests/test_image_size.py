"""`image_size`: what it changes of a run's identity, and that the run sees images of that size."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torchvision.transforms.v2 import functional as F

from orchestrator.datasets import Location, known_infos, prepare_dataset
from orchestrator.grid import Point
from orchestrator.identity import canonical, from_canonical, run_key
from orchestrator.plan import Plan, make_plan
from orchestrator.resolve import PROVISIONAL, Resolver
from orchestrator.spec import load_sweeps
from orchestrator.store import Store
from tests.driving import TINY, digits_store, drive_here, facts, rows_of, tiny_plan
from tests.stand_in_data import write_imagenet
from tests.sweep_files import write
from trainers.data.catalogue import OFFICIAL
from trainers.data.prepare import prepare
from trainers.data.prepared import load
from trainers.spec import Dataset, TargetsSpec, TeacherRef, targets_spec

GRID = """
grids:
  - {axes: {strategy: [A, B, C], teacher.accuracy: [20], image_size: %s, seed: [0]}}
"""


def text(sizes: str, dataset: str = "digits") -> str:
    grid = GRID % sizes
    if sizes == "[null]":
        grid = grid.replace("image_size: [null], ", "")
    if dataset == "imagenet":
        grid = grid.replace("[20]", "[25]")  # a quarter of its stand-in's eight test pictures
    return TINY.replace("dataset: digits", f"dataset: {dataset}") + grid


def plan_of(folder: Path, sizes: str, infos: Any = OFFICIAL, dataset: str = "digits") -> Plan:
    (sweep,) = load_sweeps([write(folder, text(sizes, dataset))], infos)
    return make_plan([sweep], infos)


def keys(plan: Plan) -> set[str]:
    return {unit.key for unit in plan.units}


# -- identity --------------------------------------------------------------------------------------


def test_a_data_sets_own_size_goes_without_saying(tmp_path: Path) -> None:
    usual, same, other = (keys(plan_of(tmp_path, sizes)) for sizes in ("[null]", "[8]", "[16]"))
    assert usual == same
    assert not usual & other
    assert len(other) == len(usual) == 5
    assert keys(plan_of(tmp_path, "[null, 16]")) == usual | other


def test_the_canonical_form_reads_back() -> None:
    dataset = Dataset(name="imagenet", fingerprint="f" * 64, ipc=3, subset_seed=1, image_size=32)
    spec = targets_spec(dataset, TeacherRef(key="a" * 64, accuracy=12.0), 2.0, num_classes=1000)
    assert spec.dataset == Dataset(name="imagenet", fingerprint="f" * 64, image_size=32)
    assert from_canonical(canonical(spec)) == spec
    own = dataclasses.replace(spec, dataset=dataclasses.replace(spec.dataset, image_size=None))
    assert "image_size" not in canonical(own)["dataset"]
    assert run_key(own) != run_key(spec)
    assert (own.stored_view, spec.stored_view) == ("plain", "plain-32px")


def test_the_stem_follows_the_runs_size(tmp_path: Path) -> None:
    def stems(dataset: str, sizes: str) -> set[str]:
        plan = plan_of(tmp_path, sizes, dataset=dataset)
        return {
            unit.spec.backbone.stem  # type: ignore[union-attr]
            for unit in plan.units
            if not isinstance(unit.spec, TargetsSpec)
        }

    assert stems("imagenet", "[null]") == {"standard"}
    assert stems("imagenet", "[32]") == {"small"}
    assert stems("cifar10", "[null]") == {"small"}
    assert stems("cifar10", "[96]") == {"standard"}


def test_labels_tell_sizes_apart(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "[null, 16]")
    labels = [unit.label for unit in plan.units]
    assert len(set(labels)) == len(labels)
    assert sum("16px" in label for label in labels) == 5


def test_what_a_plan_knows_of_photographs(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "[null]", dataset="imagenet")
    assert plan.provisional == ("imagenet",)
    point: Point = next(iter(plan.points["tiny"])).point
    assert Resolver(OFFICIAL).student(point).dataset.fingerprint == PROVISIONAL
    info = OFFICIAL["imagenet"]
    assert (info.num_train, info.num_test, info.num_classes) == (1_281_167, 50_000, 1000)
    assert (info.smallest_class, info.balanced, info.image_size) == (732, False, 224)
    info = OFFICIAL["tinyimagenet"]
    assert (info.num_train, info.num_test, info.smallest_class) == (100_000, 10_000, 500)


# -- images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 8, 20])
def test_arrays_are_resized_when_they_are_loaded(tmp_path: Path, size: int) -> None:
    prepare("digits", out=tmp_path)
    own, resized = load(tmp_path), load(tmp_path, image_size=size)
    assert resized.info == dataclasses.replace(own.info, image_size=size)
    assert own.info.image_size == 8
    assert isinstance(own.train_images, torch.Tensor)
    assert isinstance(resized.train_images, torch.Tensor)
    assert resized.train_images.shape == (1438, 3, size, size)
    expected = F.resize(own.train_images, [size, size], antialias=True)
    error = (resized.train_images.float() - expected.float()).abs()
    assert error.max() <= 2  # Pillow rounds once for each axis
    assert torch.equal(resized.train_labels, own.train_labels)
    if size == 8:
        assert torch.equal(resized.test_images, own.test_images)


def test_runs_of_another_size(tmp_path: Path) -> None:
    """All three kinds of units, from the store into the store; 8 pixels become 16."""
    store = digits_store(tmp_path / "store")
    plan = tiny_plan(tmp_path, text=text("[null, 16]"))
    conductor = drive_here(plan, store)
    assert not [e for e in conductor.ledger.entries.values() if e.attempts.failures]
    files = [file.split("-", 2)[2] for file in store.list("targets")]
    assert sorted(files) == ["train-plain-16px-T2-f32.arrow", "train-plain-T2-f32.arrow"]
    for strategy in "ABC":
        units = [u for u in plan.of_kind("student") if u.label.startswith(strategy)]
        small, large = (rows_of(store, unit.name) for unit in units)
        assert [row["step"] for row in small] == [row["step"] for row in large]
        assert small[-1]["train_kl"] != large[-1]["train_kl"]
    assert tiny_plan(tmp_path, store, text=text("[null, 16]")).left == []


def test_photographs_from_the_store_into_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    raw = write_imagenet(tmp_path / "raw", per_class=16)
    location = Location(path=raw, subset=True)
    before = known_infos(store, {"imagenet": location})["imagenet"]
    assert before.fingerprint == PROVISIONAL
    info = prepare_dataset(store, "imagenet", location, Console(quiet=True))
    infos = known_infos(store, {"imagenet": location})
    assert infos["imagenet"] == info
    assert info.fingerprint != PROVISIONAL

    plan = plan_of(tmp_path, "[16]", infos, "imagenet")
    assert plan.provisional == ()
    conductor = drive_here(plan, store)
    assert not [e for e in conductor.ledger.entries.values() if e.attempts.failures]
    students = plan.of_kind("student")
    assert len(students) == 3
    for unit in students:
        assert facts(store, unit.name)["status"] == "complete"
        last = rows_of(store, unit.name)[-1]
        assert last["count"] == 8
        assert np.isfinite(last["train_kl"])
