"""Run keys: equal trajectories have equal keys, and no refactoring changes one in silence."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import identity
from orchestrator.errors import StoreError
from orchestrator.identity import canonical, canonical_json, from_canonical, kind_of, run_key
from trainers.spec import (
    AUGMENTATIONS,
    SEMANTICS,
    AdamW,
    Augmentation,
    Backbone,
    Dataset,
    ProbeSpec,
    StudentRef,
    StudentSpec,
    TargetsSpec,
    TeacherRef,
    TeacherSpec,
)

DATASET = Dataset(name="cifar10", fingerprint="f" * 64)
TEACHER = TeacherSpec(
    dataset=DATASET,
    backbone=Backbone(name="resnet18", width=64),
    augmentation=AUGMENTATIONS["std"],
    optimizer=AdamW(lr=1e-3, weight_decay=0.01),
    batch_size=128,
    seed=0,
)
REF = TeacherRef(key="a" * 64, accuracy=60.0)
STUDENT_B = StudentSpec(
    dataset=DATASET,
    backbone=TEACHER.backbone,
    augmentation=AUGMENTATIONS["std"],
    strategy="B",
    optimizer=TEACHER.optimizer,
    batch_size=128,
    seed=3,
    teacher=REF,
    temperature=2.0,
)
STUDENT_A = dataclasses.replace(STUDENT_B, strategy="A", teacher=None, temperature=None)
SMALL_C = dataclasses.replace(
    STUDENT_B,
    strategy="C",
    dataset=dataclasses.replace(DATASET, ipc=10, subset_seed=3),
    augmentation=AUGMENTATIONS["none"],
    loss="joint",
    ce_weight=0.5,
    precision="bf16",
    norm_batch=32,
)
VIT = dataclasses.replace(
    STUDENT_A, backbone=Backbone(name="vit_b_16", stem="standard"), augmentation=Augmentation()
)
TARGETS = TargetsSpec(dataset=DATASET, teacher=REF, temperature=2.0)
HALF_TARGETS = dataclasses.replace(
    TARGETS, dtype="float16", teacher=dataclasses.replace(REF, validate_every=500, screen=2_000)
)
PROBE = ProbeSpec(
    student=StudentRef(key="c" * 64, step=600),
    dataset=SMALL_C.dataset,
    backbone=TEACHER.backbone,
    augmentation=AUGMENTATIONS["std"],
    optimizer=TEACHER.optimizer,
    batch_size=128,
    seed=3,
)

SPECS = {
    "teacher": TEACHER,
    "student B": STUDENT_B,
    "student A": STUDENT_A,
    "student C": SMALL_C,
    "student ViT": VIT,
    "targets": TARGETS,
    "half targets": HALF_TARGETS,
    "adaptive B": dataclasses.replace(
        STUDENT_B, teacher=dataclasses.replace(REF, screen="adaptive")
    ),
    "probe": PROBE,
}

# Changing one of these changes the meaning of every store: raise SEMANTICS instead, knowingly.
GOLDEN = {
    "teacher": "c28ff9d216e2b63a3db8709f69f7ec6189030356c5e8676d7ac176aeff8b770e",
    "student B": "a35d29dc532ea567ce1da5a44a8dac1c12a2adc80eb11fc4cca780e07b41cae6",
    "student A": "a6b5fe8a5c0d7ab7529cad803cd5ce8596354ad339131485649f63e403f652ca",
    "student C": "1024f202d319e69d59ba297a69cd9841a0a30054698ad1a32369b50f4230d2a3",
    "student ViT": "a977626eeece4934be33d3eebeafab1d7cadfaed432c828a97f3880407cf85cd",
    "targets": "f92413fb216b0247644a477f73d415a448ae64d0d63e95370881cd14b5f6576b",
    "half targets": "2f230cb7f22256903efac97ffdec372242fc1f47d4f881f0595ed5b4c7b046a8",
    "adaptive B": "ac407f3d1dd4b2bf3f3bfe7bde32392d35b62ba1e33311586e1b5f2ac318cab0",
    "probe": "59812b607686f3c5b31e001c534dbf21ad72754273f6455fd14d85485d9b960d",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_keys_have_not_changed(name):
    assert run_key(SPECS[name]) == GOLDEN[name]
    assert GOLDEN.keys() == SPECS.keys()


def test_the_payload_in_full():
    assert canonical(SMALL_C) == {
        "kind": "student",
        "semantics": 1,
        "strategy": "C",
        "dataset": {"name": "cifar10", "fingerprint": "f" * 64, "ipc": 10, "subset_seed": 3},
        "backbone": {"name": "resnet18", "width": 64},
        "augmentation": {},
        "teacher": {"key": "a" * 64, "accuracy": 60},
        "temperature": 2,
        "loss": "joint",
        "ce_weight": 0.5,
        "optimizer": {"name": "adamw", "lr": 0.001, "weight_decay": 0.01},
        "batch_size": 128,
        "norm_batch": 32,
        "precision": "bf16",
        "seed": 3,
    }
    assert canonical(TEACHER)["loss"] == canonical(PROBE)["loss"] == "cross_entropy"
    assert canonical(PROBE)["student"] == {"key": "c" * 64, "step": 600}
    assert canonical(STUDENT_A).keys().isdisjoint({"teacher", "temperature", "ce_weight"})


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_key_is_the_sha256_of_plain_json(spec):
    text = json.dumps(canonical(spec), sort_keys=True, separators=(",", ":"))
    assert canonical_json(canonical(spec)) == text
    assert run_key(spec) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_round_trip_through_a_file(spec):
    payload = json.loads(json.dumps(canonical(spec)))
    again = from_canonical(payload)
    assert again == spec
    assert kind_of(again) == payload["kind"]
    assert run_key(again) == run_key(spec)
    assert repr(again) == repr(spec)  # types too: 2.0 is a float again


def test_what_does_not_apply_changes_nothing():
    b = dataclasses.replace
    assert run_key(b(STUDENT_A, teacher=REF, temperature=4.0)) == run_key(STUDENT_A)
    assert run_key(b(STUDENT_B, ce_weight=0.3)) == run_key(STUDENT_B)
    full = b(STUDENT_B, dataset=b(DATASET, subset_seed=7))
    assert run_key(full) == run_key(STUDENT_B)


CHANGES = [
    {"seed": 4},
    {"batch_size": 64},
    {"norm_batch": 32},
    {"precision": "bf16"},
    {"strategy": "C"},
    {"temperature": 1.0},
    {"student_temperature": 2.0},
    {"loss": "joint"},
    {"augmentation": AUGMENTATIONS["crop"]},
    {"optimizer": AdamW(lr=1e-2, weight_decay=0.01)},
    {"backbone": Backbone(name="resnet18", width=8)},
    {"backbone": Backbone(name="resnet18", width=64, stem="standard")},
    {"dataset": Dataset(name="cifar10", fingerprint="e" * 64)},
    {"dataset": Dataset(name="cifar10", fingerprint="f" * 64, ipc=10, subset_seed=0)},
    {"teacher": TeacherRef(key="b" * 64, accuracy=60.0)},
    {"teacher": TeacherRef(key="a" * 64, accuracy=61.0)},
    {"teacher": TeacherRef(key="a" * 64, accuracy=60.0, validate_every=10)},
    {"teacher": TeacherRef(key="a" * 64, accuracy=60.0, screen=1000)},
    {"teacher": TeacherRef(key="a" * 64, accuracy=60.0, screen="adaptive")},
    {"teacher": TeacherRef(key="a" * 64, accuracy=60.0, least=59.5)},
]


def test_everything_that_shapes_a_trajectory_shapes_the_key():
    keys = {run_key(dataclasses.replace(STUDENT_B, **change)) for change in CHANGES}
    assert len(keys | {run_key(STUDENT_B)}) == len(CHANGES) + 1


def test_a_field_added_later_changes_no_old_key(monkeypatch):
    """A new field at its neutral value is left out; elsewhere it counts."""
    later = dataclasses.make_dataclass(
        "StudentSpec",
        [("later", str | None, None)],
        bases=(StudentSpec,),
        frozen=True,
        kw_only=True,
    )
    fields = tuple((field.name, field.default) for field in dataclasses.fields(later))
    monkeypatch.setitem(identity._FIELDS, later, fields)
    old = {field.name: getattr(STUDENT_B, field.name) for field in dataclasses.fields(STUDENT_B)}
    assert run_key(later(**old)) == run_key(STUDENT_B)
    assert run_key(later(**old, later="x")) != run_key(STUDENT_B)


@given(value=st.integers(-(2**53), 2**53))
def test_one_spelling_for_whole_numbers(value):
    assert canonical_json({"x": float(value)}) == canonical_json({"x": value})


def test_float_or_int_is_one_run():
    spelled = dataclasses.replace(
        STUDENT_B,
        temperature=2,
        student_temperature=1,
        teacher=dataclasses.replace(REF, accuracy=60),
    )
    assert run_key(spelled) == run_key(STUDENT_B)


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False)))
def test_key_order_does_not_matter(payload):
    backwards = dict(reversed(payload.items()))
    assert canonical_json(payload) == canonical_json(backwards)


def test_zero_has_no_sign():
    assert canonical_json({"x": -0.0}) == '{"x":0}'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_form_for_what_is_no_number(value):
    with pytest.raises(ValueError, match="no canonical form"):
        canonical_json({"x": value})
    with pytest.raises(ValueError, match="no canonical form"):
        run_key(dataclasses.replace(STUDENT_B, temperature=value))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "studnt"},
        {"semantics": SEMANTICS + 1},
        {"revision": "x"},
        {"optimizer": {"name": "sgd", "lr": 1, "weight_decay": 0}},
        {"optimizer": {"name": "adamw", "lr": 1}},
        {"seed": {"a": 1}},
    ],
)
def test_a_foreign_payload_is_refused(change):
    with pytest.raises(StoreError, match="not written by this version"):
        from_canonical({**canonical(STUDENT_B), **change})
