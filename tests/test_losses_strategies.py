"""Losses, target rules, and what the strategies of one seed share."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_helpers import (
    CPU,
    RUNTIME,
    batches,
    image_data,
    losses,
    mapping,
    student_losses,
    student_spec,
    teacher_spec,
)

from trainers.augment import normalise
from trainers.distributed import World
from trainers.losses import classifier_loss, projection_loss, target_entropy
from trainers.spec import AUGMENTATIONS, Augmentation, Runtime
from trainers.strategies import one_hot, shared_target, soft_target
from trainers.student import StudentObjective, build_engine
from trainers.teacher import build_engine as build_teacher_engine

DATA = image_data()

GOLDEN = {
    "A": [5.04206, 4.658, 5.1386, 5.4488, 4.95674],
    "B": [3.57692, 3.78075, 4.12426, 4.07087, 3.83378],
    "C": [4.39799, 4.42959, 4.39363, 4.75373, 4.49275],
    "teacher": [2.33568, 2.32233, 2.57855, 2.48685, 2.53081],
}
"""Losses of the first steps, seed 0; another CPU may differ in the last digits."""


# -- against a few lines of NumPy -----------------------------------------------------------------


def softmax(logits, temperature=1.0):
    exponentials = np.exp(np.asarray(logits, np.float64) / temperature)
    return exponentials / exponentials.sum(1, keepdims=True)


def reference_kl(logits, targets, temperature):
    """Sum over the classes with y > 0 of y·log(y / p), mean over samples."""
    total = 0.0
    for row, target in zip(softmax(logits, temperature), targets, strict=True):
        total += sum(y * np.log(y / p) for y, p in zip(target, row, strict=True) if y > 0)
    return total / len(targets)


def reference_ce(logits, targets):
    return float(-(targets * np.log(softmax(logits))).sum(1).mean())


def draws(num_classes, kind, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (6, num_classes)).astype(np.float32)
    hard = np.eye(num_classes, dtype=np.float32)[rng.integers(num_classes, size=6)]
    soft = softmax(rng.normal(0, 3, (6, num_classes)), 2.0).astype(np.float32)
    lam = rng.uniform(size=(6, 1)).astype(np.float32)
    targets = {
        "one-hot": hard,
        "soft": soft,
        "mixed one-hot": lam * hard + (1 - lam) * hard[::-1],
        "mixed soft": lam * soft + (1 - lam) * soft[::-1],
    }[kind]
    return logits, np.ascontiguousarray(targets)


@pytest.mark.parametrize("student_temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["one-hot", "soft", "mixed one-hot", "mixed soft"])
@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_losses_agree_with_a_reference(num_classes, kind, student_temperature):
    logits, targets = draws(num_classes, kind, seed=num_classes)
    kl = projection_loss(
        torch.from_numpy(logits),
        torch.from_numpy(targets),
        student_temperature=student_temperature,
    )
    assert kl.item() == pytest.approx(reference_kl(logits, targets, student_temperature), rel=1e-5)
    ce = classifier_loss(torch.from_numpy(logits), torch.from_numpy(targets))
    assert ce.item() == pytest.approx(reference_ce(logits, targets), rel=1e-5)
    entropy = target_entropy(torch.from_numpy(targets)).double().numpy()
    expected = [-sum(y * np.log(y) for y in row if y > 0) for row in targets.astype(np.float64)]
    np.testing.assert_allclose(entropy, expected, rtol=1e-5, atol=1e-7)


def test_one_hot_targets_make_kl_the_cross_entropy():
    logits, targets = map(torch.from_numpy, draws(10, "one-hot", seed=1))
    assert projection_loss(logits, targets).item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, targets.argmax(1)).item(), rel=1e-6
    )


def test_losses_stay_finite_where_a_target_is_certain_and_a_student_is_wrong():
    logits = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    targets = torch.tensor([[0.0, 1.0, 0.0]])
    loss = projection_loss(logits, targets) + classifier_loss(logits, targets)
    loss.backward()
    assert loss.item() == pytest.approx(800)
    assert torch.isfinite(logits.grad).all()
    assert target_entropy(targets).item() == 0.0


logit_lists = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(logit_lists, st.data(), st.sampled_from([0.5, 1.0, 2.0, 7.0]))
def test_kl_is_never_negative_and_zero_only_at_equality(values, data, temperature):
    other = data.draw(st.lists(st.floats(-20, 20), min_size=len(values), max_size=len(values)))
    logits, others = torch.tensor([values]), torch.tensor([other])
    own = soft_target(logits, temperature)
    assert projection_loss(logits, own, student_temperature=temperature).abs() < 1e-5
    distance = projection_loss(others, own, student_temperature=temperature).item()
    assert distance > -1e-5
    p, q = softmax(others.numpy(), temperature), softmax(logits.numpy(), temperature)
    assert distance >= 0.5 * np.abs(p - q).sum() ** 2 - 1e-5  # Pinsker


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
def test_target_rules(temperature):
    logits = np.random.default_rng(0).normal(0, 3, (5, 7)).astype(np.float32)
    soft = soft_target(torch.from_numpy(logits), temperature)
    np.testing.assert_allclose(soft.numpy(), softmax(logits, temperature), rtol=1e-5)
    assert soft_target(torch.from_numpy(logits).bfloat16(), temperature).dtype == torch.float32

    labels = torch.tensor([3, 0, 6])
    assert one_hot(labels, 7).tolist() == np.eye(7)[[3, 0, 6]].tolist()
    rows = shared_target(soft.half(), torch.tensor([4, 4, 1]))
    assert rows.dtype == torch.float32
    assert torch.equal(rows, soft.half().float()[[4, 4, 1]])


# -- targets of a batch ---------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", ["mixup", "cutmix"])
def test_partners_are_the_samples_in_the_image(augmentation):
    batch = batches(DATA, AUGMENTATIONS[augmentation]).batch(3)
    own, partner = (
        normalise(DATA.train_images[samples], DATA.info.mean, DATA.info.std)
        for samples in (batch.samples_N, batch.partners_N)
    )
    if augmentation == "mixup":
        lam = batch.lam_N.view(-1, 1, 1, 1)
        torch.testing.assert_close(batch.views, lam * own + (1 - lam) * partner)
    else:
        from_own = (batch.views == own).all(1)
        assert (from_own | (batch.views == partner).all(1)).all()
        distinct = batch.samples_N != batch.partners_N
        torch.testing.assert_close(from_own.float().mean((1, 2))[distinct], batch.lam_N[distinct])


@pytest.mark.parametrize("augmentation", ["mixup", "cutmix"])
def test_targets_mix_as_the_images_do(augmentation, tmp_path):
    batch = batches(DATA, AUGMENTATIONS[augmentation]).batch(3)
    assert batch.partners_N is not None
    lam = batch.lam_N[:, None]
    assert ((lam > 0.01) & (lam < 0.99)).any()
    hard = torch.eye(10)[DATA.train_labels]
    mixed_hard = lam * hard[batch.samples_N] + (1 - lam) * hard[batch.partners_N]

    stored = mapping("C", tmp_path, DATA)["targets"].rows(torch.arange(200))
    teacher = mapping("B", tmp_path, DATA)["teacher"]
    expected = {
        "A": mixed_hard,
        "B": torch.softmax(teacher(batch.views) / 2, 1),
        "C": lam * stored[batch.samples_N] + (1 - lam) * stored[batch.partners_N],
    }
    for strategy, targets in expected.items():
        objective = StudentObjective(
            student_spec(strategy), DATA.train_labels, 10, teacher=teacher, stored_SC=stored
        )
        one_hot_NC = objective.one_hot_targets(batch)
        torch.testing.assert_close(one_hot_NC, mixed_hard)
        torch.testing.assert_close(objective.targets(batch, one_hot_NC), targets)


# -- golden losses and seeds ----------------------------------------------------------------------


def golden_run(name, folder, seed=0):
    if name == "teacher":
        spec = teacher_spec(seed=seed, augmentation=AUGMENTATIONS["std"])
        torch.set_num_threads(1)
        return losses(build_teacher_engine(spec, DATA, RUNTIME, World()), 5)
    return student_losses(student_spec(name, seed=seed), DATA, folder)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_short_run_has_the_stored_losses(name, tmp_path):
    found = golden_run(name, tmp_path)
    assert found == pytest.approx(GOLDEN[name], rel=1e-3)
    assert found == golden_run(name, tmp_path)  # to the bit on one machine
    other = golden_run(name, tmp_path, seed=1)
    assert all(one != two for one, two in zip(found, other, strict=True))


@pytest.mark.parametrize("augmentation", ["std", "mixup", "cutmix"])
def test_strategies_of_a_seed_share_weights_order_and_augmentation(augmentation, tmp_path):
    engines = {
        strategy: build_engine(
            student_spec(strategy, augmentation=AUGMENTATIONS[augmentation]), DATA, RUNTIME,
            World(), **mapping(strategy, tmp_path, DATA),
        )
        for strategy in "ABC"
    }  # fmt: skip
    first = engines["A"]
    for other in (engines["B"], engines["C"]):
        for name, value in first.model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[name]), name
        for step in (0, 1, 9, 10, 64):
            left, right = first.batches.batch(step), other.batches.batch(step)
            assert torch.equal(left.samples_N, right.samples_N)
            assert torch.equal(left.views, right.views)
    changed = build_engine(student_spec("A", seed=1), DATA, RUNTIME, World())
    assert not torch.equal(changed.batches.batch(0).samples_N, first.batches.batch(0).samples_N)


def test_a_teacher_and_a_student_of_one_seed_share_nothing():
    std = AUGMENTATIONS["std"]
    teacher = build_teacher_engine(teacher_spec(augmentation=std), DATA, RUNTIME, World())
    student = build_engine(student_spec("A"), DATA, RUNTIME, World())
    theirs, ours = teacher.model.state_dict(), student.model.state_dict()
    assert not torch.equal(theirs["backbone.conv1.weight"], ours["backbone.conv1.weight"])
    assert not torch.equal(theirs["classifier.weight"], ours["projection.weight"])
    assert not torch.equal(ours["classifier.weight"], ours["projection.weight"])
    one, other = teacher.batches.batch(0), student.batches.batch(0)
    assert not torch.equal(one.samples_N, other.samples_N)
    # The same samples, augmented by either, differ as well.
    samples = set(one.samples_N.tolist()) & set(other.samples_N.tolist())
    assert samples
    for sample in samples:
        left = one.views[one.samples_N == sample][0]
        assert not torch.equal(left, other.views[other.samples_N == sample][0])


def test_without_augmentation_b_and_c_have_equal_losses(tmp_path):
    plain = Augmentation()
    found = {
        strategy: student_losses(student_spec(strategy, augmentation=plain), DATA, tmp_path, 12)
        for strategy in "BC"
    }
    assert found["B"] == pytest.approx(found["C"], rel=1e-5)
    augmented = student_losses(student_spec("C"), DATA, tmp_path, 2)
    assert augmented != pytest.approx(
        student_losses(student_spec("B"), DATA, tmp_path, 2), rel=0.01
    )


# -- decoupling -----------------------------------------------------------------------------------


def gradients(spec, folder):
    engine = build_engine(spec, DATA, RUNTIME, World(), **mapping(spec.strategy, folder, DATA))
    loss, _ = engine.objective(engine.model, engine.batches.batch(0))
    loss.backward()
    return {name: value.grad for name, value in engine.model.named_parameters()}


@pytest.mark.parametrize("strategy", ["A", "B", "C"])
def test_the_loss_of_h_reaches_neither_backbone_nor_g(strategy, tmp_path):
    without = gradients(student_spec(strategy, ce_weight=0.0), tmp_path)
    decoupled = gradients(student_spec(strategy, ce_weight=3.0), tmp_path)
    joint = gradients(student_spec(strategy, ce_weight=3.0, loss="joint"), tmp_path)
    for name, gradient in without.items():
        if name.startswith("classifier"):
            assert not torch.equal(gradient, decoupled[name])
            assert decoupled[name].abs().max() > 0
        else:
            assert torch.equal(gradient, decoupled[name]), name
            assert torch.equal(gradient, joint[name]) == name.startswith("projection"), name


def test_temperatures_and_weights_are_read(tmp_path):
    base = student_losses(student_spec("B"), DATA, tmp_path, 1)
    for change in ({"temperature": 4.0}, {"student_temperature": 2.0}, {"ce_weight": 0.5}):
        assert student_losses(student_spec("B", **change), DATA, tmp_path, 1) != base, change


# -- precision ------------------------------------------------------------------------------------


def test_bf16_trains_near_fp32_on_float32_weights(tmp_path):
    spec = student_spec("B", precision="bf16")
    engine = build_engine(spec, DATA, Runtime(), World(), **mapping("B", tmp_path, DATA))
    dtypes = []
    engine.model.backbone.conv1.register_forward_hook(lambda *call: dtypes.append(call[2].dtype))
    found = losses(engine, 5)
    assert set(dtypes) == {torch.bfloat16}
    state = engine.state_dict()
    floats = [value for value in state["model"].values() if value.is_floating_point()]
    assert {value.dtype for value in floats} == {torch.float32}
    moments = state["optimizer"]["state"][0]
    assert {value.dtype for value in moments.values()} == {torch.float32}
    exact = student_losses(student_spec("B"), DATA, tmp_path)
    assert found != exact
    assert found == pytest.approx(exact, rel=0.05)
    assert engine.batches.batch(0).views.dtype == torch.float32
    assert engine.device == CPU
