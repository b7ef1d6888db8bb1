"""Students of the second study: what they learn by, batch by batch, and that they resume."""

from __future__ import annotations

import pytest
import torch

from tests.training_helpers import (
    DATASET,
    RUNTIME,
    a_teacher,
    batches,
    image_data,
    mapping,
    soft_targets,
    student_spec,
    teacher_spec,
)
from trainers.distributed import World
from trainers.errors import UnsuitableError
from trainers.events import Checkpoint, Evaluation
from trainers.label_noise import noisy_labels
from trainers.probe import build_probe_engine
from trainers.revision import revise
from trainers.spec import (
    AUGMENTATIONS,
    Dataset,
    ProbeSpec,
    Request,
    Revision,
    Scoring,
    Selection,
    StudentRef,
)
from trainers.student import StudentObjective, build_engine, train_student
from trainers.teacher import build_engine as build_teacher_engine

DATA = image_data()
LABELS = DATA.train_labels
SELECTION = Selection(scoring=Scoring(method="random", seed=0), fraction=0.5)
REVISION = Revision(eta=0.8, only_wrong=False)
SCORES = torch.linspace(0, 1, 200).flip(0)
CHOSEN = (torch.arange(200) < 100).float()


def objective(strategy, folder, **changes):
    given = mapping(strategy, folder, DATA)
    stored = given["targets"].rows(torch.arange(200)) if "targets" in given else None
    spec = student_spec(strategy, **changes)
    return StudentObjective(
        spec, LABELS, 10, teacher=given.get("teacher"), stored_SC=stored,
        selected_S=CHOSEN if spec.selection else None,
    )  # fmt: skip


def parts(augmentation):
    """The batch, the one-hot rows of its own and its partners' samples, and λ (1 without)."""
    batch = batches(DATA, AUGMENTATIONS[augmentation]).batch(3)
    eye = torch.eye(10)
    own = eye[LABELS[batch.samples_N]]
    if batch.partners_N is None:
        return batch, own, own, torch.ones(len(own), 1), batch.samples_N
    return batch, own, eye[LABELS[batch.partners_N]], batch.lam_N[:, None], batch.partners_N


# -- targets of a batch ---------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", ["std", "mixup", "cutmix"])
def test_c_revises_and_selects_by_sample_and_mixes_then(augmentation, tmp_path):
    batch, own, partner, lam, partners = parts(augmentation)
    stored = soft_targets(tmp_path, DATA, a_teacher(DATA)).rows(torch.arange(200))

    def of(samples, truth):
        soft = revise(stored[samples], truth, REVISION)
        return torch.where(samples[:, None] < 100, soft, truth)

    expected = lam * of(batch.samples_N, own) + (1 - lam) * of(partners, partner)
    made = objective("C", tmp_path, revision=REVISION, selection=SELECTION)
    found = made.targets(batch, made.one_hot_targets(batch))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(1), torch.ones(len(found)))


@pytest.mark.parametrize("augmentation", ["std", "mixup"])
def test_b_revises_what_the_teacher_says_of_the_view_and_selects_its_part(augmentation, tmp_path):
    batch, own, partner, lam, partners = parts(augmentation)
    truth = lam * own + (1 - lam) * partner
    soft = revise(torch.softmax(a_teacher(DATA)(batch.views) / 2, 1), truth, REVISION)
    is_own, is_partner = (
        (samples < 100).float()[:, None] for samples in (batch.samples_N, partners)
    )
    share = lam * is_own + (1 - lam) * is_partner
    rest = lam * (1 - is_own) * own + (1 - lam) * (1 - is_partner) * partner
    made = objective("B", tmp_path, revision=REVISION, selection=SELECTION)
    found = made.targets(batch, made.one_hot_targets(batch))
    torch.testing.assert_close(found, share * soft + rest)
    torch.testing.assert_close(found.sum(1), torch.ones(len(found)))


def test_everything_selected_is_no_selection(tmp_path):
    batch, *_ = parts("std")
    plain = objective("C", tmp_path)
    all_of_it = objective("C", tmp_path, selection=SELECTION)
    all_of_it._selected_S = torch.ones(200)
    one_hot = plain.one_hot_targets(batch)
    assert torch.equal(plain.targets(batch, one_hot), all_of_it.targets(batch, one_hot))


# -- conventional distillation --------------------------------------------------------------------


def engine_of(strategy, folder, **changes):
    given = mapping(strategy, folder, DATA)
    spec = student_spec(strategy, **changes)
    scores = SCORES if spec.selection else None
    return build_engine(spec, DATA, RUNTIME, World(), scores=scores, **given)


def loss_of(engine):
    batch = engine.batches.batch(0)
    return batch, *engine.objective(engine.model, batch)


def test_kd_has_one_classifier_whose_loss_reaches_the_backbone(tmp_path):
    engine = engine_of("B", tmp_path, loss="kd", alpha=0.9)
    assert not [name for name, _ in engine.model.named_parameters() if "projection" in name]
    engine.update()
    assert all(value.grad is not None for value in engine.model.parameters())
    g, h = engine.model(engine.batches.batch(0).views)
    assert g is h


@pytest.mark.parametrize("strategy", ["B", "C"])
def test_kd_is_the_loss_of_its_terms(strategy, tmp_path):
    engine = engine_of(
        strategy, tmp_path, loss="kd", alpha=0.9, revision=REVISION, selection=SELECTION,
        revised_weight=0.25,
    )  # fmt: skip
    batch, loss, means = loss_of(engine)
    logits = engine.model(batch.views)[0].double()
    own = torch.softmax(a_teacher(DATA)(batch.views) / 2, 1)
    if strategy == "C":
        own = soft_targets(tmp_path, DATA, a_teacher(DATA)).rows(batch.samples_N)
    truth = torch.eye(10)[LABELS[batch.samples_N]]
    revised = revise(own, truth, REVISION)
    weight = 0.9 * (batch.samples_N < 100)
    log_q, ce = torch.log_softmax(logits / 2, 1), -(truth * torch.log_softmax(logits, 1)).sum(1)
    kl = sum(
        share * (target * (target.log() - log_q)).sum(1)
        for share, target in ((0.75, own), (0.25, revised))
    )
    expected = ((1 - weight) * ce + weight * 4 * kl).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert means["train_ce"].item() == pytest.approx(ce.mean().item(), rel=1e-4)


def test_kd_without_a_teacher_is_cross_entropy(tmp_path):
    batch, loss, _ = loss_of(engine := engine_of("A", tmp_path, loss="kd"))
    expected = torch.nn.functional.cross_entropy(
        engine.model(batch.views)[0], LABELS[batch.samples_N]
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


# -- noise ----------------------------------------------------------------------------------------

NOISY = Dataset(name="prototypes", fingerprint=DATASET.fingerprint, label_noise=0.5)


def test_students_teachers_and_probes_see_wrong_labels_and_the_same_images(tmp_path):
    wrong = noisy_labels(LABELS, NOISY, num_classes=10)
    clean = engine_of("A", tmp_path)
    noisy = engine_of("A", tmp_path, dataset=NOISY)
    assert torch.equal(clean.batches.batch(0).samples_N, noisy.batches.batch(0).samples_N)
    assert torch.equal(noisy.objective._labels_S, wrong)
    teacher = build_teacher_engine(teacher_spec(dataset=NOISY), DATA, RUNTIME, World())
    assert torch.equal(teacher.objective._labels_S, wrong)
    weights = {
        f"backbone.{name}": value for name, value in clean.model.backbone.state_dict().items()
    }
    spec = student_spec("A")
    probe = ProbeSpec(
        student=StudentRef(key="0" * 64, step=1), dataset=NOISY, backbone=spec.backbone,
        augmentation=spec.augmentation, optimizer=spec.optimizer, batch_size=20, seed=0,
    )  # fmt: skip
    engine, _ = build_probe_engine(probe, DATA, RUNTIME, World(), weights=weights)
    assert torch.equal(engine.objective._labels_S, wrong)


def test_a_subset_holds_the_same_images_whatever_their_labels_say(tmp_path):
    few = Dataset(
        name="prototypes", fingerprint=DATASET.fingerprint, ipc=3, subset_seed=0, label_noise=0.5
    )
    noisy = engine_of("A", tmp_path, dataset=few)
    clean = engine_of("A", tmp_path, ipc=3)
    assert torch.equal(noisy.batches.batch(0).samples_N, clean.batches.batch(0).samples_N)


# -- a run ----------------------------------------------------------------------------------------


def test_scores_and_selection_go_together(tmp_path):
    with pytest.raises(UnsuitableError, match="does not select was given scores=True"):
        build_engine(student_spec("A"), DATA, RUNTIME, World(), scores=SCORES)
    given = mapping("C", tmp_path, DATA)
    with pytest.raises(UnsuitableError, match="that selects was given scores=False"):
        build_engine(student_spec("C", selection=SELECTION), DATA, RUNTIME, World(), **given)


@pytest.mark.parametrize("loss", ["decoupled", "kd"])
def test_a_resumed_run_equals_an_uninterrupted_one(loss, tmp_path):
    changes = {"alpha": 0.9} if loss == "kd" else {}
    spec = student_spec("C", loss=loss, revision=REVISION, selection=SELECTION, **changes)
    given = mapping("C", tmp_path, DATA)

    def run(horizon, state=None):
        events = list(
            train_student(
                spec, DATA, Request(horizon=horizon), RUNTIME, scores=SCORES, state=state, **given
            )
        )
        states = [event.state for event in events if isinstance(event, Checkpoint)]
        return states[-1], [event.row for event in events if isinstance(event, Evaluation)]

    whole, rows = run(20)
    half, _ = run(10)
    resumed, later = run(20, half)
    for name, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][name]), name
    assert [row["top1_h"] for row in later] == [row["top1_h"] for row in rows][-len(later) :]
    if loss == "kd":
        assert all(row["top1_h"] == row["top1_g"] for row in rows)
