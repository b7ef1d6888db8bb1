"""Scores of samples: each method against a few lines of its definition, resumed, shared, refused.

That `influence` ranks samples as retraining without each does is tested on a problem whose truth is
exact; `benchmarks/influence.py` measures it on larger ones.
"""

import pickle
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from training_helpers import (
    DATASET,
    RUNTIME,
    StopAfter,
    assert_equal_states,
    image_data,
    join_group,
    leave_group,
    of_workers,
    only,
    run_interrupted,
    student_spec,
)

from tests.stand_in_data import write_imagenet
from trainers import rng
from trainers.augment import normalise
from trainers.data.pool import PlainViews
from trainers.data.prepare import Form, prepare
from trainers.data.prepared import load
from trainers.distributed import World
from trainers.errors import UnsuitableError
from trainers.events import Checkpoint, Finished, Progress, Scored
from trainers.influence import (
    Basis,
    eigenbasis,
    factors,
    influence_norms,
    second_moments,
    with_bias,
)
from trainers.label_noise import noisy_labels
from trainers.models import build_student
from trainers.sample_scores import errors, samples_at_once, squared_gradient_norms
from trainers.scores import CHUNK, num_chunks, score_samples
from trainers.spec import METHODS, Backbone, ScoresSpec, Scoring, StudentRef, scores_spec

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from benchmark_scripts import read
from influence import agreement, convex
from influence import main as benchmark

pytestmark = pytest.mark.timeout(180)

SIZE = 2
DATA = image_data(num_train=700)  # three chunks, the last one short
CHUNKS = -(-700 // CHUNK)
SCORER = student_spec("A", backbone=Backbone(name="resnet18", width=4))
LOOKED_AT = tuple(method for method in METHODS if method != "random")


def weights(seed, scorer=SCORER, data=DATA):
    """A student with weights of its own and batch-norm statistics that are not the initial ones,
    so that evaluation mode shows. On one thread, as runs are: the number changes their bits."""
    torch.set_num_threads(1)
    size, classes = data.info.image_size, data.info.num_classes
    model = build_student(scorer.backbone, image_size=size, num_classes=classes, seed=seed)
    with torch.no_grad():
        model(torch.randn(64, 3, size, size, generator=torch.Generator().manual_seed(seed)))
    return model.state_dict()


def scoring(method, checkpoints=1, **changes):
    if method == "random":
        return Scoring(method=method, seed=changes.pop("seed", 3))
    values = {
        "method": method,
        "student": StudentRef(key="0" * 64, step=10),
        "checkpoints": checkpoints,
        "damping": 0.1 if method == "influence" else None,
    }
    return Scoring(**{**values, **changes})


def given(its, scorer=SCORER, data=DATA):
    """What `score_samples` takes besides the spec, the data and the runtime."""
    if its.method == "random":
        return {"scorer": None, "weights": []}
    many = [weights(seed, scorer, data) for seed in range(len(its.steps))]
    return {"scorer": scorer, "weights": many}


def run(method, data=DATA, dataset=DATASET, **changes):
    """All events."""
    its = scoring(method, **changes)
    spec = scores_spec(dataset, its)
    return list(score_samples(spec, data, RUNTIME, **given(its, data=data)))


def scored(method, **changes):
    (event,) = only(Scored, run(method, **changes))
    return event.scores_N


def plain(data=DATA):
    images = data.train_images
    if not isinstance(images, torch.Tensor):
        images = PlainViews(images, data.info.image_size)[:]
    return normalise(images, data.info.mean, data.info.std)


def network(state, data=DATA, scorer=SCORER):
    """The student itself, in evaluation mode, h not detached."""
    model = build_student(
        scorer.backbone, image_size=data.info.image_size, num_classes=data.info.num_classes,
        seed=99, joint=True,
    )  # fmt: skip
    model.load_state_dict(state)
    return model.eval()


def reference_logits(state, data=DATA):
    with torch.no_grad():
        return network(state, data)(plain(data))[1].double()


# -- methods ---------------------------------------------------------------------------------------


def test_random_is_a_draw_of_its_own_stream():
    found = scored("random")
    draw = rng.generator("data", 3, "selection", 0).random(700, dtype="float32")
    assert torch.equal(found, torch.from_numpy(draw))
    assert torch.equal(found, scored("random"))
    assert not torch.equal(found, scored("random", seed=4))


def test_loss_is_the_cross_entropy_of_h():
    p_NC = torch.softmax(reference_logits(weights(0)), 1)
    expected = [-torch.log(p[y]) for p, y in zip(p_NC, DATA.train_labels, strict=True)]
    torch.testing.assert_close(scored("loss"), torch.stack(expected).float(), rtol=1e-4, atol=1e-5)


def test_el2n_is_the_length_of_the_error():
    found = torch.softmax(reference_logits(weights(0)), 1)
    found[torch.arange(700), DATA.train_labels] -= 1
    expected = (found**2).sum(1) ** 0.5
    torch.testing.assert_close(scored("el2n"), expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["resnet18", "vit_tiny"])
def test_tracin_sums_squared_gradients_over_checkpoints(backbone):
    """One backward pass a sample through φ and h, against all of them at once."""
    data = image_data(num_train=12)
    scorer = replace(
        SCORER, backbone=Backbone(name=backbone, width=4 if backbone == "resnet18" else None)
    )
    its = scoring("tracin", checkpoints=2)
    kwargs = given(its, scorer, data)
    events = list(score_samples(scores_spec(DATASET, its), data, RUNTIME, **kwargs))
    expected = torch.zeros(12, dtype=torch.float64)
    for state in kwargs["weights"]:
        model = network(state, data, scorer)
        for i, (view, label) in enumerate(zip(plain(data), data.train_labels, strict=True)):
            model.zero_grad()
            F.cross_entropy(model(view[None])[1], label[None]).backward()
            own = [v.grad for n, v in model.named_parameters() if not n.startswith("projection")]
            expected[i] += sum((grad.double() ** 2).sum() for grad in own)
    (found,) = only(Scored, events)
    torch.testing.assert_close(found.scores_N, expected.float(), rtol=1e-3, atol=1e-5)


def test_how_many_gradients_are_held_does_not_change_them(monkeypatch):
    model = network(weights(0))

    class OfH(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.student = model

        def forward(self, views):
            return self.student(views)[1]

    whole = OfH()
    parameters = {n: v for n, v in whole.named_parameters() if "projection" not in n}
    arguments = (whole, parameters, plain()[:10], DATA.train_labels[:10])
    expected = squared_gradient_norms(*arguments)
    monkeypatch.setattr("trainers.sample_scores._GRADIENT_FLOATS", 150_000)
    assert 1 < samples_at_once(sum(v.numel() for v in parameters.values())) < 10
    torch.testing.assert_close(squared_gradient_norms(*arguments), expected, rtol=1e-4, atol=0)
    assert samples_at_once(10**12) == 1


# -- influence -------------------------------------------------------------------------------------


def outputs(count=60, features=5, classes=4, seed=0, alike=False):
    """Features with the bias' input, logits and labels of a classifier. alike: every sample has the
    same p, which makes the curvature one Kronecker product."""
    draw = torch.Generator().manual_seed(seed)
    a_ND = with_bias(torch.randn(count, features, generator=draw))
    theta_CD = torch.randn(classes, features + 1, generator=draw).double()
    if alike:
        theta_CD[:, :-1] = 0
    labels_N = torch.randint(0, classes, (count,), generator=draw)
    return a_ND, theta_CD, labels_N


def loss_of(theta_CD, a_D, label):
    return F.cross_entropy((theta_CD @ a_D)[None], label[None])


def gradients(a_ND, theta_CD, labels_N):
    """(N, C, D) by torch.func."""
    of_each = torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0, 0))
    return of_each(theta_CD, a_ND, labels_N)


def hessian(a_ND, theta_CD, labels_N):
    """(C·D, C·D) of the mean loss, by autograd: h being linear, its Gauss–Newton matrix."""

    def mean_loss(theta_CD):
        return F.cross_entropy(a_ND @ theta_CD.T, labels_N)

    found = torch.func.hessian(mean_loss)(theta_CD)
    return found.reshape(theta_CD.numel(), theta_CD.numel())


def curvature(a_ND, p_NC):
    basis = eigenbasis(*factors(a_ND, p_NC))
    return basis, second_moments(a_ND, p_NC, basis) / len(a_ND)


def test_the_gradient_of_h_is_the_error_times_the_features():
    a_ND, theta_CD, labels_N = outputs()
    _, e_NC = errors(a_ND @ theta_CD.T, labels_N)
    torch.testing.assert_close(
        torch.einsum("nc,nd->ncd", e_NC, a_ND), gradients(a_ND, theta_CD, labels_N)
    )


def test_the_curvature_is_the_diagonal_of_the_hessian_in_the_eigenbasis():
    a_ND, theta_CD, labels_N = outputs()
    p_NC, _ = errors(a_ND @ theta_CD.T, labels_N)
    basis, moments_CD = curvature(a_ND, p_NC)
    whole = torch.kron(basis.classes_CC, basis.features_DD)
    rotated = whole.T @ hessian(a_ND, theta_CD, labels_N) @ whole
    torch.testing.assert_close(moments_CD.flatten(), rotated.diagonal(), rtol=1e-9, atol=1e-12)
    for vectors in (basis.features_DD, basis.classes_CC):
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(len(vectors)).double())


def exact(a_ND, theta_CD, labels_N, added):
    curved = hessian(a_ND, theta_CD, labels_N)
    flat = gradients(a_ND, theta_CD, labels_N).flatten(1)
    damped = curved + added * torch.eye(len(curved)).double()
    return torch.linalg.solve(damped, flat.T).norm(dim=0)


def approximate(a_ND, theta_CD, labels_N, damping):
    p_NC, e_NC = errors(a_ND @ theta_CD.T, labels_N)
    basis, moments_CD = curvature(a_ND, p_NC)
    found = influence_norms(a_ND, e_NC, basis, moments_CD, damping=damping)
    return found, damping * float(moments_CD.mean())


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
def test_influence_is_exact_where_the_curvature_is_a_kronecker_product(damping):
    problem = outputs(alike=True)
    found, added = approximate(*problem, damping)
    torch.testing.assert_close(found, exact(*problem, added), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(("damping", "at_least"), [(0.01, 0.7), (0.1, 0.85), (1.0, 0.95)])
def test_elsewhere_it_ranks_as_the_exact_inverse_does(damping, at_least):
    problem = outputs(count=200)
    found, added = approximate(*problem, damping)
    assert agreement(found, exact(*problem, added)) > at_least


def test_the_influence_of_a_run_is_that_of_its_h():
    """Three passes in chunks against one look at everything."""
    state = weights(0)
    with torch.no_grad():
        a_ND = with_bias(network(state).backbone(plain()))
    theta_CD = torch.cat([state["classifier.weight"], state["classifier.bias"][:, None]], 1)
    expected, _ = approximate(a_ND, theta_CD.double(), DATA.train_labels, 0.1)
    torch.testing.assert_close(scored("influence"), expected.float(), rtol=1e-3, atol=1e-5)


def test_a_basis_turned_within_equal_eigenvalues_changes_the_moments_alone():
    """With fewer samples than features much of the basis is arbitrary; no sample has a part there,
    so the scores do not depend on it."""
    a_ND, theta_CD, labels_N = outputs(count=8, features=20)
    p_NC, e_NC = errors(a_ND @ theta_CD.T, labels_N)
    basis, _ = curvature(a_ND, p_NC)
    turned = basis.features_DD.clone()
    turned[:, :10] = turned[:, :10] @ torch.linalg.qr(torch.randn(10, 10).double())[0]
    scores = []
    for features_DD in (basis.features_DD, turned):
        one = Basis(features_DD, basis.classes_CC)
        moments_CD = second_moments(a_ND, p_NC, one) / 8
        scores.append(influence_norms(a_ND, e_NC, one, moments_CD, damping=0.1))
    torch.testing.assert_close(*scores, rtol=1e-8, atol=0)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_influence_ranks_samples_as_retraining_without_each_does(noise):
    """h on frozen features of digits: Newton's method to the optimum, without each of 60."""
    found = convex(60, 0, noise)
    assert found["influence 0.1"] > 0.9
    assert found["influence 0.1"] > found["loss"]
    assert abs(found["random"]) < 0.4


@pytest.mark.slow
def test_the_benchmark_writes_what_it_measured(tmp_path, monkeypatch):
    out = tmp_path / "influence.json"
    monkeypatch.setattr(sys, "argv", ["influence.py", "--quick"])
    benchmark(["--quick", "--cost", "--json", str(out)])
    found = read(out)
    assert found["machine"]["scikit-learn"]
    assert set(found["cost"]) == set(LOOKED_AT)
    assert found["spearman"]["convex, 0% wrong labels"]["influence 1"]["n"] == 1
    assert {row["random"]["n"] for name, row in found["spearman"].items() if "whole" in name} == {2}


# -- events and states -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_run_ends_with_its_scores(method):
    its = scoring(method, **({"checkpoints": 2} if method == "tracin" else {}))
    events = list(score_samples(scores_spec(DATASET, its), DATA, RUNTIME, **given(its)))
    passes = {"random": 0, "influence": 3, "tracin": 2}.get(method, 1)
    assert num_chunks(its, 700) == passes * CHUNKS
    assert events[-1] == Finished(reason="done", step=passes * CHUNKS)
    assert isinstance(events[-2], Scored)
    assert events[-2].scores_N.shape == (700,)
    assert events[-2].scores_N.dtype == torch.float32
    assert bool((events[-2].scores_N >= 0).all())
    assert len(events[-2].scores_N.unique()) > 600
    assert all(isinstance(event, Progress) for event in events[:-2])


@pytest.mark.parametrize("method", LOOKED_AT)
def test_a_run_resumed_anywhere_equals_an_uninterrupted_one(method):
    its = scoring(method, **({"checkpoints": 2} if method == "tracin" else {}))
    kwargs = given(its)
    spec = scores_spec(DATASET, its)

    def score(state, stop):
        return score_samples(spec, DATA, RUNTIME, state=state, stop=stop, **kwargs)

    (whole,) = only(Scored, score(None, None))
    last = num_chunks(its, 700)
    for stop in range(1, last):
        (found,) = only(Scored, run_interrupted(score, [stop]))
        assert torch.equal(found.scores_N, whole.scores_N), stop
    (found,) = only(Scored, run_interrupted(score, [1] * (last - 1)))
    assert torch.equal(found.scores_N, whole.scores_N)


def test_checkpoints_come_when_due_and_before_a_stop():
    its = scoring("influence")
    spec, kwargs = scores_spec(DATASET, its), given(its)
    often = list(score_samples(spec, DATA, replace(RUNTIME, checkpoint_every_s=0), **kwargs))
    assert [event.step for event in only(Checkpoint, often)] == list(range(1, 3 * CHUNKS))
    stopped = list(score_samples(spec, DATA, RUNTIME, stop=StopAfter(4), **kwargs))
    assert [type(event) for event in stopped[-2:]] == [Checkpoint, Finished]
    assert stopped[-1] == Finished(reason="stopped", step=4)
    assert not only(Scored, stopped)
    assert_equal_states(stopped[-2].state, only(Checkpoint, often)[3].state)


# -- what is looked at -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", LOOKED_AT)
def test_wrong_labels_change_scores(method):
    """Those of the samples whose labels are wrong, and no others: curvature asks for no label."""
    noisy = replace(DATASET, label_noise=0.1, noise_seed=1)
    wrong_N = noisy_labels(DATA.train_labels, noisy, num_classes=10) != DATA.train_labels
    right, found = scored(method), scored(method, dataset=noisy)
    assert int(wrong_N.sum()) == 70
    assert torch.equal(found != right, wrong_N)


def test_scores_are_of_the_full_training_set_whatever_the_ipc():
    subset = replace(DATASET, ipc=3, subset_seed=0)
    assert torch.equal(scored("el2n", dataset=subset), scored("el2n"))


@pytest.mark.parametrize("method", LOOKED_AT)
def test_encoded_pictures_are_scored_by_their_plain_views(method, tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.scores.CHUNK", 20)  # 48 pictures: three chunks
    write_imagenet(tmp_path / "raw")
    prepare("imagenet", out=tmp_path / "out", path=tmp_path / "raw", form=Form(subset=True))
    data = load(tmp_path / "out", image_size=32)
    views = replace(data, train_images=PlainViews(data.train_images, 32)[:])
    its = scoring(method)
    spec, kwargs = scores_spec(DATASET, its), given(its, data=data)

    def score(state, stop):
        return score_samples(spec, data, RUNTIME, state=state, stop=stop, **kwargs)

    (expected,) = only(Scored, score_samples(spec, views, RUNTIME, **kwargs))
    (found,) = only(Scored, run_interrupted(score, [2]))
    assert len(found.scores_N) == 48
    assert torch.equal(found.scores_N, expected.scores_N)


def test_a_student_without_g_scores_too():
    """Conventional distillation trains one classifier."""
    its = scoring("influence")
    state = {k: v for k, v in weights(0).items() if not k.startswith("projection")}
    spec = scores_spec(DATASET, its)
    events = score_samples(spec, DATA, RUNTIME, scorer=SCORER, weights=[state])
    (found,) = only(Scored, events)
    assert torch.equal(found.scores_N, scored("influence"))


# -- refusals --------------------------------------------------------------------------------------


def refused(its, match, **changes):
    kwargs = {**given(its), **changes}
    with pytest.raises(UnsuitableError, match=match) as caught:
        list(score_samples(ScoresSpec(dataset=DATASET, scoring=its), DATA, RUNTIME, **kwargs))
    assert caught.value.remedy


def test_weights_that_do_not_fit_are_refused():
    other = replace(SCORER, backbone=Backbone(name="resnet18", width=2))
    refused(scoring("loss"), "do not fit", weights=[weights(0, other)])
    refused(scoring("loss"), "do not fit", weights=[{}])
    many = [weights(0), weights(0, other)]
    refused(scoring("tracin", checkpoints=2), "do not fit", weights=many)


def test_another_number_of_weights_is_refused():
    refused(scoring("loss"), "weights of 0 steps, and looks at 1", weights=[])
    refused(scoring("tracin", checkpoints=3), "of 1 steps, .* at 3", weights=[weights(0)])
    refused(scoring("random"), "weights of 1 steps, and looks at 0", weights=[weights(0)])


def test_a_method_without_what_it_needs_is_refused():
    refused(scoring("el2n"), "el2n was given student=False", scorer=None)
    refused(scoring("random"), "random was given student=True", scorer=SCORER)
    refused(scoring("random", seed=None), "seed=None")
    for damping in (None, 0.0, -1.0):
        refused(scoring("influence", damping=damping), f"the damping {damping}")


@pytest.mark.parametrize("method", LOOKED_AT)
def test_a_student_that_diverged_is_refused(method):
    state = weights(0)
    state["classifier.bias"] = torch.full((10,), float("nan"))
    refused(scoring(method), "not finite", weights=[state])


# -- two workers -----------------------------------------------------------------------------------


SHARED = {method: scoring(method, **({"checkpoints": 2} if method == "tracin" else {}))
          for method in METHODS}  # fmt: skip
FEW = image_data(num_train=257)  # a chunk of one sample: one worker has nothing to do
MANY = image_data(num_train=256 * 8, noise=60)


def shared_scores(data, method, **kwargs):
    its = SHARED[method]
    given_here = given(its, data=data)
    return list(score_samples(scores_spec(DATASET, its), data, RUNTIME, **given_here, **kwargs))


def interrupted(world):
    """Stopped by rank 0 alone after ten chunks, and resumed from its state by both."""
    stop = StopAfter(1) if world.rank == 0 else None
    stopped = shared_scores(MANY, "influence", stop=stop)
    state = world.share(only(Checkpoint, stopped)[-1].state or None)
    return stopped, shared_scores(MANY, "influence", state=state)


def work(rank, folder):
    warnings.simplefilter("error")
    join_group(rank, folder / "rendezvous", SIZE)
    found = {method: shared_scores(FEW, method) for method in METHODS}
    found["interrupted"] = interrupted(World.current())
    (folder / f"rank-{rank}.pickle").write_bytes(pickle.dumps(found))
    leave_group()


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """What each worker found, by method."""
    return of_workers(work, tmp_path_factory.mktemp("workers"), SIZE)


@pytest.mark.parametrize("method", METHODS)
def test_two_workers_score_as_one_does(method, workers):
    (alone,) = only(Scored, shared_scores(FEW, method))
    first, second = (only(Scored, found[method])[0] for found in workers)
    assert second.scores_N is None
    torch.testing.assert_close(first.scores_N, alone.scores_N, rtol=1e-4, atol=1e-6)
    assert {found[method][-1] for found in workers} == {
        Finished(reason="done", step=num_chunks(SHARED[method], 257))
    }


def test_two_workers_stop_together_and_resume(workers):
    (alone,) = only(Scored, shared_scores(MANY, "influence"))
    for rank, found in enumerate(workers):
        stopped, resumed = found["interrupted"]
        assert stopped[-1] == Finished(reason="stopped", step=10)
        assert bool(only(Checkpoint, stopped)[-1].state) == (rank == 0)
        assert resumed[-1] == Finished(reason="done", step=24)
    (whole,) = only(Scored, workers[0]["interrupted"][1])
    torch.testing.assert_close(whole.scores_N, alone.scores_N, rtol=1e-4, atol=1e-6)
    assert only(Scored, workers[1]["interrupted"][1])[0].scores_N is None
