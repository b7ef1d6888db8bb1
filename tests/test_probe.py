"""Offline probes: a frozen backbone, exact resumption, and what a few plain lines compute."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from training_helpers import (
    CPU,
    RUNTIME,
    assert_equal_states,
    final_state,
    image_data,
    losses,
    mapping,
    only,
    rows,
    run_interrupted,
    run_student,
    student_spec,
)

from trainers.augment import normalise
from trainers.batches import BatchSource
from trainers.distributed import World
from trainers.errors import CheckpointError, NonFiniteLossError
from trainers.evaluate import STUDENT_COLUMNS
from trainers.events import Checkpoint, Evaluation, Finished, Weights
from trainers.models import build_probe, build_student
from trainers.probe import build_probe_engine, train_probe
from trainers.spec import AUGMENTATIONS, AdamW, Augmentation, ProbeSpec, Request, StudentRef
from trainers.student import build_engine, train_student

DATA = image_data()


def student_weights(steps=30, **changes):
    spec = student_spec("A", **changes)
    request = Request(horizon=steps, keep_weights_at=(steps,))
    (kept,) = only(Weights, list(train_student(spec, DATA, request, RUNTIME)))
    return kept.weights


def probe_spec(**changes):
    student = student_spec("A")
    spec = ProbeSpec(
        student=StudentRef(key="0" * 64, step=30),
        dataset=student.dataset,
        backbone=student.backbone,
        augmentation=student.augmentation,
        optimizer=student.optimizer,
        batch_size=student.batch_size,
        seed=student.seed,
    )
    return replace(spec, **changes)


@pytest.fixture(scope="module")
def weights():
    torch.set_num_threads(1)
    return student_weights()


def run_probe(spec, weights, horizon, *, stops=()):
    return run_interrupted(
        lambda state, stop: train_probe(
            spec, DATA, Request(horizon=horizon), RUNTIME, weights=weights, state=state, stop=stop
        ),
        stops,
    )


# -- what a student keeps for it ------------------------------------------------------------------


def test_kept_weights_are_the_runs_own_at_that_step(tmp_path):
    request = Request(horizon=25, keep_weights_at=(12, 25))
    events = list(train_student(student_spec("A"), DATA, request, RUNTIME))
    plain = run_student(student_spec("A"), DATA, 25)
    kept = {event.step: event.weights for event in only(Weights, events)}
    assert list(kept) == [12, 25]
    assert_equal_states(kept[25], dict(final_state(plain)["model"]))
    at_12 = final_state(run_student(student_spec("A"), DATA, 12))["model"]
    assert_equal_states(kept[12], dict(at_12))
    assert rows(events) == rows(plain)  # keeping weights changes nothing else


def test_weights_are_kept_before_the_checkpoint_that_passes_them():
    request = Request(horizon=5, keep_weights_at=(5,))
    events = list(train_student(student_spec("A"), DATA, request, RUNTIME))
    kinds = [type(event) for event in events]
    assert kinds.index(Weights) < kinds.index(Checkpoint)


def test_weights_spoilt_by_a_bad_loss_are_not_kept():
    spec = student_spec("A", optimizer=AdamW(lr=1e30, weight_decay=0.01))
    request = Request(horizon=9, keep_weights_at=(9,))
    with pytest.raises(NonFiniteLossError):
        list(train_student(spec, DATA, request, RUNTIME))


# -- events and rows ------------------------------------------------------------------------------


def test_a_probe_yields_a_students_rows_without_g(weights):
    events = run_probe(probe_spec(), weights, 25)
    evaluations = only(Evaluation, events)
    assert [event.row["step"] for event in evaluations] == [10, 20, 25]
    assert events[-1] == Finished(reason="done", step=25)
    row = evaluations[-1].row
    assert set(row) == set(STUDENT_COLUMNS) - {"correct_g"}
    assert row["top1_h"] == 100 * row["correct_h"] / row["count"]
    assert row["train_ce"] > 0
    for name in ("top1_g", "train_kl", "target_entropy", "teacher_agreement"):
        assert row[name] != row[name]


def test_h_improves():
    plain, fast = Augmentation(), AdamW(lr=0.02, weight_decay=0)
    weights = student_weights(
        steps=60, augmentation=plain, optimizer=AdamW(lr=0.01, weight_decay=0)
    )
    spec = probe_spec(augmentation=plain, optimizer=fast)
    first, *_, last = rows(run_probe(spec, weights, 100))
    assert last["top1_h"] > first["top1_h"]
    assert last["train_ce"] < first["train_ce"]
    assert last["top1_h"] > 3 * 10  # ten classes


# -- a frozen backbone ----------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", ["none", "std", "mixup"])
def test_the_backbone_does_not_move_bit_for_bit(weights, augmentation):
    spec = probe_spec(augmentation=AUGMENTATIONS[augmentation])
    engine, backbone = build_probe_engine(spec, DATA, RUNTIME, World(), weights=weights)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert any("running_mean" in name for name in before)
    h = engine.model.weight.clone()
    losses(engine, 12)
    assert not torch.equal(h, engine.model.weight)
    assert_equal_states(before, dict(backbone.state_dict()))
    for name, value in before.items():
        assert torch.equal(value, weights[f"backbone.{name}"])
    assert all(not part.training for part in backbone.modules())
    assert all(value.grad is None for value in backbone.parameters())


def test_weights_of_another_backbone_are_refused(weights):
    wider = replace(probe_spec().backbone, width=4)
    with pytest.raises(CheckpointError, match="do not fit"):
        run_probe(probe_spec(backbone=wider), weights, 1)


# -- draws ----------------------------------------------------------------------------------------


def test_a_probe_draws_otherwise_than_its_student(weights):
    spec = probe_spec()
    engine, _ = build_probe_engine(spec, DATA, RUNTIME, World(), weights=weights)
    student = build_student(spec.backbone, image_size=8, num_classes=10, seed=spec.seed)
    assert not torch.equal(engine.model.weight, student.classifier.weight)
    assert not torch.equal(engine.model.weight, student.projection.weight)

    def batch(role):
        return BatchSource(
            DATA, torch.arange(200), spec.augmentation, role=role, seed=spec.seed,
            batch_size=20, world=World(), device=CPU,
        ).batch(0)  # fmt: skip

    assert not torch.equal(batch("probe").samples_N, batch("student").samples_N)


def test_a_probe_sees_the_students_images_alone(weights):
    spec = probe_spec(dataset=replace(probe_spec().dataset, ipc=3, subset_seed=4))
    engine, _ = build_probe_engine(spec, DATA, RUNTIME, World(), weights=weights)
    seen = {int(i) for step in range(6) for i in engine.batches.batch(step).samples_N}
    student = student_spec("A", ipc=3)
    own = build_engine(replace(student, dataset=spec.dataset), DATA, RUNTIME, World())
    assert seen == {int(i) for step in range(6) for i in own.batches.batch(step).samples_N}
    assert len(seen) == 30


# -- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", ["std", "cutmix"])
def test_resumed_is_as_uninterrupted(weights, augmentation):
    spec = probe_spec(augmentation=AUGMENTATIONS[augmentation])
    whole = run_probe(spec, weights, 25)
    parts = run_probe(spec, weights, 25, stops=(7, 11))
    assert rows(parts) == rows(whole)
    assert_equal_states(final_state(parts), final_state(whole))
    assert "backbone.conv1.weight" not in final_state(whole)["model"]  # h alone is kept


# -- against plain torch --------------------------------------------------------------------------


def test_equals_a_few_lines_on_cached_features(weights):
    spec = probe_spec(augmentation=Augmentation())
    found = run_probe(spec, weights, 30)

    backbone, h = build_probe(spec.backbone, image_size=8, num_classes=10, seed=spec.seed)
    backbone.load_state_dict(
        {n.removeprefix("backbone."): v for n, v in weights.items() if n.startswith("backbone.")}
    )
    backbone.eval()
    with torch.no_grad():
        train, test = (
            backbone(normalise(images, DATA.info.mean, DATA.info.std))
            for images in (DATA.train_images, DATA.test_images)
        )
    adamw = torch.optim.AdamW(h.parameters(), lr=1e-3, weight_decay=0.01)
    order = BatchSource(
        DATA, torch.arange(200), spec.augmentation, role="probe", seed=spec.seed,
        batch_size=20, world=World(), device=CPU,
    )  # fmt: skip
    for step in range(30):
        samples = order.batch(step).samples_N
        adamw.zero_grad()
        F.cross_entropy(h(train[samples]), DATA.train_labels[samples]).backward()
        adamw.step()
    for name, value in h.state_dict().items():
        torch.testing.assert_close(final_state(found)["model"][name], value)
    right = int((h(test).argmax(1) == DATA.test_labels).sum())
    assert only(Evaluation, found)[-1].row["correct_h"] == right


def test_joint_training_on_detached_features_moves_no_backbone_either(tmp_path):
    """Why a probe and h of the same student may be compared: the backbone is the same."""
    given = mapping("B", tmp_path, DATA)
    with_h = final_state(run_student(student_spec("B"), DATA, 8, **given))["model"]
    without = student_spec("B", ce_weight=0.0)
    alone = final_state(run_student(without, DATA, 8, **given))["model"]
    for name, value in with_h.items():
        assert torch.equal(value, alone[name]) == (not name.startswith("classifier")), name
