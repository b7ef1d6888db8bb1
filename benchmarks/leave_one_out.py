"""Truth for scores of samples: the training is repeated without each sample.

`convex`: the linear classifier h on frozen features, trained to its optimum by Newton's method in
float64, so that what a sample moves is known to ten digits. `whole`: a network trained from the
same initialisation in the same order, its batches without that sample.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.augment import normalise
from trainers.data.images import ImageData
from trainers.data.order import SampleOrder
from trainers.data.prepare import prepare
from trainers.data.prepared import load
from trainers.events import Scored, Weights
from trainers.influence import with_bias
from trainers.label_noise import noisy_labels
from trainers.models import Teacher, build_teacher
from trainers.scores import score_samples
from trainers.spec import (
    AdamW,
    Augmentation,
    Backbone,
    Dataset,
    Request,
    Runtime,
    Scoring,
    SelectionMethod,
    StudentRef,
    StudentSpec,
    scores_spec,
)
from trainers.student import train_student

__all__ = [
    "Convex",
    "digits",
    "exact_norms",
    "labels",
    "optimum",
    "scores",
    "spec",
    "student_features",
    "trained",
    "whole_changes",
]

RUNTIME = Runtime(checkpoint_every_s=1e9)
State = dict[str, Tensor]


def digits(count: int, *, seed: int) -> ImageData:
    """scikit-learn's digits with `count` training samples, drawn from `seed`."""
    with tempfile.TemporaryDirectory() as folder:
        prepare("digits", out=Path(folder))
        data = load(Path(folder))
        draw = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(data.train_labels), generator=draw)[:count]
        assert isinstance(data.train_images, Tensor)
        return dataclasses.replace(
            data,
            info=dataclasses.replace(data.info, num_train=count),
            train_images=data.train_images[rows].clone(),
            train_labels=data.train_labels[rows].clone(),
            test_images=data.test_images.clone(),
            test_labels=data.test_labels.clone(),
        )


def spec(data: ImageData, *, width: int, batch_size: int, seed: int, noise: float) -> StudentSpec:
    """A strategy A student on `data`, un-augmented."""
    return StudentSpec(
        dataset=Dataset(
            name="digits", fingerprint=data.info.fingerprint, label_noise=noise, noise_seed=seed
        ),
        backbone=Backbone(name="resnet18", width=width),
        augmentation=Augmentation(),
        strategy="A",
        optimizer=AdamW(lr=1e-3, weight_decay=0.01),
        batch_size=batch_size,
        seed=seed,
    )


def trained(student: StudentSpec, data: ImageData, steps: int) -> State:
    """The student's weights after so many steps."""
    request = Request(horizon=steps, keep_weights_at=(steps,))
    events = train_student(student, data, request, RUNTIME)
    return next(event.weights for event in events if isinstance(event, Weights))


def scores(
    method: SelectionMethod,
    student: StudentSpec,
    data: ImageData,
    weights: list[State],
    *,
    damping: float = 0.1,
) -> Tensor:
    """(N,) as the second study's runs get them; several weights are several checkpoints."""
    reference = StudentRef(key="0" * 64, step=len(weights))
    scoring = Scoring(
        method=method, student=reference, checkpoints=len(weights), damping=damping, seed=None
    )
    if method == "random":
        scoring, weights = Scoring(method=method, seed=student.seed), []
    events = score_samples(
        scores_spec(student.dataset, scoring), data, RUNTIME,
        scorer=None if method == "random" else student, weights=weights,
    )  # fmt: skip
    found = next(event.scores_N for event in events if isinstance(event, Scored))
    assert found is not None
    return found


def _model(student: StudentSpec, data: ImageData, weights: State | None) -> Teacher:
    model = build_teacher(
        student.backbone, image_size=data.info.image_size, num_classes=data.info.num_classes,
        seed=student.seed,
    )  # fmt: skip
    if weights is not None:
        own = {name: value for name, value in weights.items() if "projection" not in name}
        model.load_state_dict(own)
    return model


def _views(images: Tensor, data: ImageData) -> Tensor:
    return normalise(images, data.info.mean, data.info.std)


def labels(student: StudentSpec, data: ImageData) -> Tensor:
    """(N,) as the student sees them, wrong ones included."""
    return noisy_labels(data.train_labels, student.dataset, num_classes=data.info.num_classes)


# -- convex ----------------------------------------------------------------------------------------


@torch.no_grad()
def student_features(student: StudentSpec, data: ImageData, weights: State) -> Tensor:
    """a = (φ(x), 1) of the training set, float64 (N, D)."""
    model = _model(student, data, weights).eval()
    assert isinstance(data.train_images, Tensor)
    return with_bias(model.backbone(_views(data.train_images, data)))


def hessian(a_ND: Tensor, p_NC: Tensor, weight_N: Tensor) -> Tensor:
    """Σ_n weight_n (diag(p) − p pᵀ) ⊗ a aᵀ, (C·D, C·D)."""
    classes, features = p_NC.shape[1], a_ND.shape[1]
    total = a_ND.new_zeros(classes, features, classes, features)
    for c in range(classes):
        for k in range(c, classes):
            own = p_NC[:, c] * (float(c == k) - p_NC[:, k]) * weight_N
            total[c, :, k] = total[k, :, c] = (a_ND * own[:, None]).T @ a_ND
    return total.reshape(classes * features, classes * features)


def optimum(
    a_ND: Tensor, labels_N: Tensor, weight_N: Tensor, *, l2: float, start_CD: Tensor
) -> Tensor:
    """The θ, (C, D), that minimises Σ_n weight_n ℓ_n + l2 / 2 · ‖θ‖², by damped Newton steps."""

    def value(theta_CD: Tensor) -> Tensor:
        losses_N = F.cross_entropy(a_ND @ theta_CD.T, labels_N, reduction="none")
        return (weight_N * losses_N).sum() + l2 / 2 * theta_CD.square().sum()

    theta_CD = start_CD.clone()
    for _ in range(100):
        p_NC = torch.softmax(a_ND @ theta_CD.T, 1)
        e_NC = (p_NC - F.one_hot(labels_N, p_NC.shape[1])) * weight_N[:, None]
        gradient_CD = e_NC.T @ a_ND + l2 * theta_CD
        if gradient_CD.abs().max() < 1e-10:
            return theta_CD
        curvature = hessian(a_ND, p_NC, weight_N)
        curvature.diagonal().add_(l2)
        step_CD = torch.cholesky_solve(
            gradient_CD.reshape(-1, 1), torch.linalg.cholesky(curvature)
        ).reshape_as(theta_CD)
        size, now = 1.0, value(theta_CD)
        while value(theta_CD - size * step_CD) > now + 1e-14 and size > 1e-4:
            size /= 2
        theta_CD = theta_CD - size * step_CD
    raise RuntimeError("Newton's method did not converge in 100 steps")


@dataclass(frozen=True)
class Convex:
    """h at its optimum on frozen features. a_ND: these. l2: of h's parameters."""

    a_ND: Tensor
    labels_N: Tensor
    l2: float
    theta_CD: Tensor

    @classmethod
    def solved(cls, a_ND: Tensor, labels_N: Tensor, *, num_classes: int, l2: float) -> Convex:
        start = a_ND.new_zeros(num_classes, a_ND.shape[1])
        weight_N = a_ND.new_full((len(a_ND),), 1 / len(a_ND))
        theta_CD = optimum(a_ND, labels_N, weight_N, l2=l2, start_CD=start)
        return cls(a_ND, labels_N, l2, theta_CD)

    def changes(self) -> Tensor:
        """(N,) ‖θ₋ᵢ − θ‖₂: how far the optimum moves when sample i's loss is taken away."""
        moved = []
        for i in range(len(self.a_ND)):
            weight_N = self.a_ND.new_full((len(self.a_ND),), 1 / len(self.a_ND))
            weight_N[i] = 0
            theta_CD = optimum(
                self.a_ND, self.labels_N, weight_N, l2=self.l2, start_CD=self.theta_CD
            )
            moved.append((theta_CD - self.theta_CD).norm())
        return torch.stack(moved)

    def exact(self, damping: float) -> Tensor:
        """(N,) what `influence` approximates at that damping."""
        p_NC = torch.softmax(self.a_ND @ self.theta_CD.T, 1)
        mean_N = self.a_ND.new_full((len(self.a_ND),), 1 / len(self.a_ND))
        curvature = float(hessian(self.a_ND, p_NC, mean_N).diagonal().mean())
        return exact_norms(self.a_ND, self.theta_CD, self.labels_N, added=damping * curvature)

    def in_weights(self, weights: State) -> State:
        """The student's weights with this h."""
        own = {"classifier.weight": self.theta_CD[:, :-1], "classifier.bias": self.theta_CD[:, -1]}
        return {**weights, **{name: value.float() for name, value in own.items()}}


def exact_norms(a_ND: Tensor, theta_CD: Tensor, labels_N: Tensor, *, added: float) -> Tensor:
    """(N,) ‖(H + added · I)⁻¹ ∇ℓ(z)‖₂ with the whole matrix H."""
    p_NC = torch.softmax(a_ND @ theta_CD.T, 1)
    e_NC = p_NC - F.one_hot(labels_N, p_NC.shape[1])
    curvature = hessian(a_ND, p_NC, a_ND.new_full((len(a_ND),), 1 / len(a_ND)))
    curvature.diagonal().add_(added)
    gradients = (e_NC[:, :, None] * a_ND[:, None, :]).reshape(len(a_ND), -1)
    return torch.linalg.solve(curvature, gradients.T).norm(dim=0)


# -- a whole network -------------------------------------------------------------------------------


def _training(
    student: StudentSpec, data: ImageData, steps: int, without: int | None
) -> Iterator[Teacher]:
    """The network after each step: φ and h, trained by cross-entropy."""
    model = _model(student, data, None).train()
    own = student.optimizer
    moves = torch.optim.AdamW(model.parameters(), lr=own.lr, weight_decay=own.weight_decay)
    assert isinstance(data.train_images, Tensor)
    views, truth = _views(data.train_images, data), labels(student, data)
    order = SampleOrder(len(truth), student.batch_size, role="student", seed=student.seed)
    for step in range(steps):
        rows = torch.as_tensor(order.batch(step))
        rows = rows if without is None else rows[rows != without]
        moves.zero_grad()
        F.cross_entropy(model(views[rows]), truth[rows]).backward()  # type: ignore[no-untyped-call]
        moves.step()
        yield model


@torch.no_grad()
def _test_loss(model: nn.Module, data: ImageData) -> float:
    model.eval()
    loss = F.cross_entropy(model(_views(data.test_images, data)), data.test_labels)
    return float(loss)


def _vector(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten() for value in model.parameters()]).clone()


def whole_changes(
    student: StudentSpec, data: ImageData, *, steps: int, checkpoints: int
) -> tuple[list[State], dict[str, Tensor]]:
    """The weights after each of `checkpoints` equal parts of the training, and (N,) truths: how far
    all parameters, or h's alone, are from those of the training without sample i, and how much its
    test loss differs."""
    kept = {steps * part // checkpoints for part in range(1, checkpoints + 1)}
    weights: list[State] = []
    for step, model in enumerate(_training(student, data, steps, None), 1):
        if step in kept:
            weights.append({k: v.clone() for k, v in model.state_dict().items()})
    base, base_h, loss = _vector(model), _vector(model.classifier), _test_loss(model, data)
    found: dict[str, list[float]] = {"parameters": [], "classifier": [], "test loss": []}
    for i in range(len(data.train_labels)):
        for model in _training(student, data, steps, i):  # noqa: B007 - the last one
            pass
        found["parameters"].append(float((_vector(model) - base).norm()))
        found["classifier"].append(float((_vector(model.classifier) - base_h).norm()))
        found["test loss"].append(abs(_test_loss(model, data) - loss))
    return weights, {name: torch.tensor(values) for name, values in found.items()}
