"""Label revision, data selection, label noise, the distillation loss: formulas and properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training_helpers import DATASET, image_data
from trainers.errors import UnsuitableError
from trainers.label_noise import noisy_labels
from trainers.losses import distillation_loss
from trainers.revision import revise
from trainers.selection import num_selected, selected
from trainers.spec import Dataset, Revision

NUM_CLASSES = 6
LOGITS = st.lists(
    st.floats(-8, 8, allow_nan=False, width=32), min_size=NUM_CLASSES, max_size=NUM_CLASSES
)
ETA = st.floats(0.001, 0.999)
CLASS = st.integers(0, NUM_CLASSES - 1)


def rows(logits, label):
    soft = torch.softmax(torch.tensor([logits], dtype=torch.float64), 1)
    return soft, torch.eye(NUM_CLASSES, dtype=torch.float64)[[label]]


def reference(soft, label, eta):
    """The summary's formula, a class at a time."""
    beta = eta / (max(soft) - soft[label] + 1)
    return [beta * p + (1 - beta) * (c == label) for c, p in enumerate(soft)]


# -- revision -------------------------------------------------------------------------------------


@given(LOGITS, CLASS, ETA)
@settings(max_examples=200, deadline=None)
def test_revision_is_the_formula_and_its_rows_sum_to_one(logits, label, eta):
    soft, truth = rows(logits, label)
    revised = revise(soft, truth, Revision(eta=eta, only_wrong=False))
    assert revised[0].tolist() == pytest.approx(reference(soft[0].tolist(), label, eta), abs=1e-12)
    assert revised.sum().item() == pytest.approx(1)
    assert (revised >= 0).all()


@given(LOGITS, CLASS, ETA)
@settings(max_examples=200, deadline=None)
def test_the_true_class_is_the_largest_for_every_eta_below_one(logits, label, eta):
    soft, truth = rows(logits, label)
    revised = revise(soft, truth, Revision(eta=eta, only_wrong=False))[0]
    others = torch.cat([revised[:label], revised[label + 1 :]])
    assert revised[label] > others.max()


@given(LOGITS, CLASS, ETA)
@settings(max_examples=200, deadline=None)
def test_ratios_among_the_wrong_classes_stay(logits, label, eta):
    soft, truth = rows(logits, label)
    revised = revise(soft, truth, Revision(eta=eta, only_wrong=False))[0]
    wrong = [c for c in range(NUM_CLASSES) if c != label]
    ratios = revised[wrong] / soft[0, wrong]
    assert ratios.tolist() == pytest.approx([ratios[0].item()] * len(wrong))


@given(LOGITS, ETA)
@settings(max_examples=100, deadline=None)
def test_a_right_prediction_keeps_its_order_and_only_wrong_leaves_it_alone(logits, eta):
    soft, _ = rows(logits, 0)
    truth = torch.eye(NUM_CLASSES, dtype=torch.float64)[[int(soft.argmax())]]
    every = revise(soft, truth, Revision(eta=eta, only_wrong=False))
    before, after = (torch.sign(row[:, None] - row) for row in (soft[0], every[0]))
    assert (before * after).min() >= 0
    assert torch.equal(revise(soft, truth, Revision(eta=eta)), soft)


def test_only_wrong_revises_what_is_wrong():
    soft = torch.tensor([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.5, 0.5, 0.0]])
    truth = torch.eye(3)[[0, 1, 1]]
    revised = revise(soft, truth, Revision(eta=0.8))
    assert torch.equal(revised[[0, 2]], soft[[0, 2]])  # of a tie the true class has as much
    assert revised[1].tolist() == pytest.approx(reference(soft[1].tolist(), 1, 0.8))
    assert torch.equal(revise(soft, truth, None), soft)


def test_float32_keeps_the_bound_at_the_edge():
    soft = torch.zeros(1, 100)
    soft[0, 7] = 1.0
    revised = revise(soft, torch.eye(100)[[3]], Revision(eta=0.99))
    assert int(revised.argmax()) == 3
    assert revised[0, 3] - revised[0, 7] == pytest.approx(1 - 0.99, abs=1e-4)


# -- selection ------------------------------------------------------------------------------------


def test_the_highest_of_a_students_samples_are_selected_ties_by_index():
    scores = torch.tensor([5.0, 1.0, 3.0, 3.0, 9.0, 3.0])
    chosen = selected(scores, torch.tensor([0, 1, 2, 3, 5]), 0.4)
    assert chosen.tolist() == [True, False, True, False, False, False]
    assert selected(scores, torch.arange(6), 1.0).all()


@given(st.integers(1, 5000), st.integers(1, 100))
def test_a_fraction_is_rounded_up_and_never_by_its_float(count, percent):
    exact = -(-count * percent // 100)
    assert num_selected(percent / 100, count) == exact


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_none_is_an_error(bad):
    scores = torch.tensor([1.0, bad, 2.0])
    with pytest.raises(UnsuitableError, match="score of sample 1"):
        selected(scores, torch.arange(3), 0.5)
    assert selected(scores, torch.tensor([0, 2]), 0.5).tolist() == [False, False, True]
    with pytest.raises(UnsuitableError, match="sample 3 has no score"):
        selected(scores, torch.arange(4), 0.5)


# -- noise ----------------------------------------------------------------------------------------

LABELS = image_data().train_labels


def noise(share, seed=0):
    return noisy_labels(
        LABELS,
        Dataset(name="d", fingerprint="f", label_noise=share, noise_seed=seed),
        num_classes=10,
    )


def test_noise_is_exact_nests_and_is_spread_over_the_other_classes():
    little, more = noise(0.1), noise(0.2)
    assert int((little != LABELS).sum()) == 20
    assert int((more != LABELS).sum()) == 40
    changed = little != LABELS
    assert torch.equal(more[changed], little[changed])
    many = noise(0.99)
    shifts = (many - LABELS) % 10
    assert set(shifts[many != LABELS].tolist()) == set(range(1, 10))


def test_noise_depends_on_its_seed_and_leaves_the_labels_it_is_given():
    before = LABELS.clone()
    assert torch.equal(noise(0.5), noise(0.5))
    assert not torch.equal(noise(0.5), noise(0.5, seed=1))
    assert torch.equal(LABELS, before)
    assert noisy_labels(LABELS, DATASET, num_classes=10) is LABELS


# -- conventional distillation --------------------------------------------------------------------


def loss_of(alpha, temperature=4.0, revised_weight=1.0, size=5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, 7, generator=draw, dtype=torch.float64, requires_grad=True)
    own = torch.softmax(torch.randn(size, 7, generator=draw, dtype=torch.float64), 1)
    truth = torch.eye(7, dtype=torch.float64)[torch.arange(size) % 7]
    revised = revise(own, truth, Revision(eta=0.8, only_wrong=False))
    weights = torch.as_tensor(alpha, dtype=torch.float64).expand(size)
    loss = distillation_loss(
        logits, truth, own, revised,
        temperature=temperature, alpha_N=weights, revised_weight=revised_weight,
    )  # fmt: skip
    return loss, logits, own, revised, truth


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("revised_weight", [0.0, 0.25, 1.0])
def test_the_loss_is_its_three_terms(alpha, temperature, revised_weight):
    loss, logits, own, revised, truth = loss_of(alpha, temperature, revised_weight)
    expected = []
    for z, p, r, y in zip(logits.detach().float(), own, revised, truth, strict=True):
        kl = [divergence(target, z / temperature) for target in (p, r)]
        distilled = (1 - revised_weight) * kl[0] + revised_weight * kl[1]
        ce = divergence(y, z)  # a one-hot target has no entropy
        expected.append((1 - alpha) * ce + alpha * temperature**2 * distilled)
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5)


def divergence(target, logits):
    """KL(target ‖ softmax(logits)) in NumPy, 0·log 0 = 0."""
    p, z = target.numpy(), logits.numpy().astype(np.float64)
    log_q = z - np.log(np.exp(z).sum())
    return sum(a * (np.log(a) - b) for a, b in zip(p, log_q, strict=True) if a > 0)


def test_in_the_revised_share_the_gradient_is_that_of_one_mixed_target():
    loss, logits, own, revised, _ = loss_of(1.0, 2.0, 0.25)
    (gradient,) = torch.autograd.grad(loss, logits)
    mixed = 0.75 * own + 0.25 * revised
    log_q = F.log_softmax(logits.float() / 2, 1)
    (other,) = torch.autograd.grad(4 * F.kl_div(log_q, mixed, reduction="batchmean"), logits)
    torch.testing.assert_close(gradient, other)


def test_a_sample_without_the_teacher_learns_from_its_label_alone():
    loss, logits, *_, truth = loss_of([0.0, 0.9, 0.9, 0.0, 0.9])
    (gradient,) = torch.autograd.grad(loss, logits)
    ce = F.cross_entropy(logits, truth.argmax(1))
    (of_labels,) = torch.autograd.grad(ce, logits)
    torch.testing.assert_close(gradient[[0, 3]], of_labels[[0, 3]], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(gradient[1], of_labels[1])
