"""Scores of all training samples, by which data selection splits them (arXiv 2404.03693).

Every sample is looked at un-augmented, with the label that the run sees (`label_noise`), by models
in evaluation mode and fp32. A method passes over the training set once or several times, in chunks
of samples; each worker takes its rows of a chunk, and what a pass adds up is summed over the
workers at its end, the scores themselves too: a worker has zeros for what it has not seen.

    method     passes          score
    random     none            a draw
    loss       one             cross-entropy of h
    el2n       one             ‖softmax(h) − onehot(y)‖₂
    tracin     one a checkpoint  Σ_k ‖∇_θ ℓ(z, θ_k)‖², θ all of φ and h, as if h were not detached
    influence  three           ‖(H + λI)⁻¹ ∇_W ℓ(z)‖₂, W those of h: curvature's eigenbasis,
                               its diagonal, scores (`influence`)

The learning rate of TracInCP is constant here, a scale that changes no order, and is left out.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from trainers.augment import normalise
from trainers.control import Control, StopFlag
from trainers.data.encoded import EncodedImages
from trainers.data.images import ImageData
from trainers.data.pool import default_threads, plain_batches
from trainers.distributed import World
from trainers.engine import configure
from trainers.errors import UnsuitableError
from trainers.events import Checkpoint, Event, Finished, Progress, Scored
from trainers.influence import (
    Basis,
    eigenbasis,
    factors,
    influence_norms,
    second_moments,
    with_bias,
)
from trainers.label_noise import noisy_labels
from trainers.models import Teacher, build_teacher
from trainers.sample_scores import (
    cross_entropies,
    error_norms,
    errors,
    random_scores,
    squared_gradient_norms,
)
from trainers.spec import Runtime, ScoresSpec, Scoring, StudentSpec

__all__ = ["CHUNK", "num_chunks", "num_passes", "score_samples"]

CHUNK = 256
"""Samples between two questions whether to checkpoint or to stop, over all workers."""


def num_passes(scoring: Scoring) -> int:
    """How often a method looks at every sample."""
    passes = {"random": 0, "tracin": len(scoring.steps), "influence": 3}
    return passes.get(scoring.method, 1)


def num_chunks(scoring: Scoring, num_train: int) -> int:
    """Chunks over all passes: the step at which scoring is done."""
    return num_passes(scoring) * -(-num_train // CHUNK)


# -- methods ---------------------------------------------------------------------------------------


class _Method(ABC):
    """What is computed of the rows of a chunk, and what it adds up to.

    sums: float64, this worker's part of what the present pass adds up. known: what earlier passes
    came to, the same on every worker. Both, and nothing else, are what a resumed scoring needs.
    """

    def __init__(
        self, model: Teacher, weights: Sequence[dict[str, Tensor]], num_train: int
    ) -> None:
        self.model = model
        self.weights = weights
        self.sums = {"scores": self.zeros(num_train)}
        self.known: dict[str, Tensor] = {}
        for one in weights:  # all are tried before the first is used
            load_weights(model, one)

    def zeros(self, *shape: int) -> Tensor:
        device = self.model.classifier.weight.device
        return torch.zeros(shape, dtype=torch.float64, device=device)

    def begin(self, number: int) -> None:
        """Before a pass, from its start or from its middle."""
        load_weights(self.model, self.weights[-1])

    @abstractmethod
    def add(self, number: int, rows: slice, views_NCHW: Tensor, labels_N: Tensor) -> None:
        """Of pass `number`; rows are the samples' indices in the training set."""

    def end(self, number: int) -> dict[str, Tensor]:
        """After a pass, when `sums` are those of all workers: what becomes known by it."""
        return {}

    def state_dict(self, world: World) -> dict[str, Any]:
        """Every worker must ask for it; what is summed over the workers is a copy."""
        sums = {name: world.sum(value.clone()).cpu() for name, value in self.sums.items()}
        return {"sums": sums, "known": {key: value.cpu() for key, value in self.known.items()}}

    def load_state_dict(self, state: dict[str, Any], world: World) -> None:
        """Sums of all workers go to one of them, or they would count several times."""
        device = self.model.classifier.weight.device
        self.known = {key: value.to(device, copy=True) for key, value in state["known"].items()}
        self.sums = {key: value.to(device, copy=True) for key, value in state["sums"].items()}
        self.leave_to_first(world)

    def leave_to_first(self, world: World) -> None:
        """Makes sums that are those of all workers rank 0's own."""
        if world.rank > 0:
            self.sums = {name: torch.zeros_like(value) for name, value in self.sums.items()}


class _OfOutputs(_Method):
    """`loss` and `el2n`: one pass, functions of h's logits."""

    def __init__(self, method: str, *given: Any) -> None:
        super().__init__(*given)
        self._score = cross_entropies if method == "loss" else error_norms

    def add(self, number: int, rows: slice, views_NCHW: Tensor, labels_N: Tensor) -> None:
        self.sums["scores"][rows] = self._score(self.model(views_NCHW), labels_N)


class _TracIn(_Method):
    """A pass for each checkpoint."""

    def begin(self, number: int) -> None:
        load_weights(self.model, self.weights[number])

    def add(self, number: int, rows: slice, views_NCHW: Tensor, labels_N: Tensor) -> None:
        parameters = dict(self.model.named_parameters())
        norms = squared_gradient_norms(self.model, parameters, views_NCHW, labels_N)
        self.sums["scores"][rows] += norms


class _Influence(_Method):
    """Passes: 0 adds up the Kronecker factors, 1 the curvature in their eigenbasis, 2 scores."""

    def __init__(self, damping: float, *given: Any) -> None:
        super().__init__(*given)
        self._damping = damping
        num_classes, num_features = self.model.classifier.weight.shape
        self.sums |= {
            "features": self.zeros(num_features + 1, num_features + 1),
            "classes": self.zeros(num_classes, num_classes),
            "moments": self.zeros(num_classes, num_features + 1),
        }

    def add(self, number: int, rows: slice, views_NCHW: Tensor, labels_N: Tensor) -> None:
        features_NF = self.model.backbone(views_NCHW)
        p_NC, e_NC = errors(self.model.classifier(features_NF), labels_N)
        a_ND = with_bias(features_NF)
        if number == 0:
            a_DD, g_CC = factors(a_ND, p_NC)
            self.sums["features"] += a_DD
            self.sums["classes"] += g_CC
        elif number == 1:
            self.sums["moments"] += second_moments(a_ND, p_NC, self._basis())
        else:
            self.sums["scores"][rows] = influence_norms(
                a_ND, e_NC, self._basis(), self.known["moments"], damping=self._damping
            )

    def _basis(self) -> Basis:
        return Basis(self.known["features"], self.known["classes"])

    def end(self, number: int) -> dict[str, Tensor]:
        if number == 0:
            basis = eigenbasis(self.sums.pop("features"), self.sums.pop("classes"))
            return {"features": basis.features_DD, "classes": basis.classes_CC}
        if number == 1:
            return {"moments": self.sums.pop("moments") / len(self.sums["scores"])}
        return {}


def _method(spec: ScoresSpec, *given: Any) -> _Method:
    scoring = spec.scoring
    if scoring.method == "tracin":
        return _TracIn(*given)
    if scoring.method != "influence":
        return _OfOutputs(scoring.method, *given)
    if scoring.damping is None or not scoring.damping > 0:
        raise UnsuitableError(
            f"influence was given the damping {scoring.damping}, and needs one above 0",
            "set selection.damping to a share of the mean curvature, such as 0.1",
        )
    return _Influence(scoring.damping, *given)


def load_weights(model: Teacher, weights: dict[str, Tensor]) -> None:
    """φ and h of a student's weights; its g is not asked. Raises UnsuitableError."""
    own = {name: value for name, value in weights.items() if not name.startswith("projection.")}
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        problem = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise UnsuitableError(
            f"the weights do not fit the student that scores: {problem}",
            "delete the student's folder; the next run trains it again",
        ) from error


# -- passes over the training set ------------------------------------------------------------------


class _Scoring:
    """Where a scoring is: `step` chunks, over all passes, are behind it, of `last`."""

    def __init__(
        self,
        spec: ScoresSpec,
        data: ImageData,
        runtime: Runtime,
        world: World,
        scorer: StudentSpec,
        weights: Sequence[dict[str, Tensor]],
    ) -> None:
        info = data.info
        self.device = torch.device(runtime.device)
        self.world = world
        self.step = 0
        labels_N = noisy_labels(data.train_labels, spec.dataset, num_classes=info.num_classes)
        self._labels_N = labels_N.to(self.device)
        self._data = data
        self._threads = runtime.decode_threads or default_threads(world.size)
        model = build_teacher(
            scorer.backbone, image_size=info.image_size, num_classes=info.num_classes, seed=0
        )
        model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.eval().requires_grad_(False)
        self._method = _method(spec, model, weights, len(labels_N))
        self.chunks = -(-len(labels_N) // CHUNK)
        self.last = num_chunks(spec.scoring, len(labels_N))

    def advance(self) -> Generator[None, None, None]:
        """The chunks that are left, one at a time."""
        while self.step < self.last:
            number, first = divmod(self.step, self.chunks)
            self._method.begin(number)
            mine = [self._rows(chunk) for chunk in range(first, self.chunks)]
            with closing(self._views(mine)) as views:
                for part, images in zip(mine, views, strict=True):
                    self._add(number, part, images)
                    self.step += 1
                    if self.step % self.chunks == 0:
                        self._end(number)
                    yield

    def _rows(self, chunk: int) -> range:
        """This worker's samples of a chunk: workers' shares differ by one at most."""
        first = chunk * CHUNK
        count = min(CHUNK, len(self._labels_N) - first)
        rank, size = self.world.rank, self.world.size
        return range(first + count * rank // size, first + count * (rank + 1) // size)

    def _views(self, parts: Sequence[range]) -> Generator[Tensor, None, None]:
        """The un-augmented images of each part, uint8 (N, 3, H, W)."""
        images = self._data.train_images
        if isinstance(images, EncodedImages):
            size = self._data.info.image_size
            with closing(plain_batches(images, size, threads=self._threads, parts=parts)) as found:
                yield from found
        else:
            yield from (images[part.start : part.stop] for part in parts)

    @torch.no_grad()
    def _add(self, number: int, part: range, images: Tensor) -> None:
        if not part:
            return  # fewer samples than workers
        rows = slice(part.start, part.stop)
        views_NCHW = normalise(images.to(self.device), self._data.info.mean, self._data.info.std)
        self._method.add(number, rows, views_NCHW, self._labels_N[rows])

    def _end(self, number: int) -> None:
        """Raises UnsuitableError on every worker when what was added up is not finite."""
        for value in self._method.sums.values():
            self.world.sum(value)
            if not bool(torch.isfinite(value).all()):
                raise UnsuitableError(
                    "the scores are not finite: the student that scores has diverged",
                    "train the student that scores with a lower learning rate, or for fewer steps",
                )
        for name, value in self._method.end(number).items():
            # Rank 0's: two machines may choose two eigenbases.
            self._method.known[name] = self.world.from_first(value)
        self._method.leave_to_first(self.world)

    def scores(self) -> Tensor | None:
        """(N,) float32, when all passes are over; None on all but rank 0."""
        return self._method.sums["scores"].float().cpu() if self.world.rank == 0 else None

    def state_dict(self) -> dict[str, Any]:
        """Every worker must ask for it; all but rank 0 get an empty one."""
        state = {"step": self.step, **self._method.state_dict(self.world)}
        return state if self.world.rank == 0 else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._method.load_state_dict(state, self.world)
        self.step = state["step"]


def score_samples(
    spec: ScoresSpec,
    data: ImageData,
    runtime: Runtime,
    *,
    scorer: StudentSpec | None,
    weights: Sequence[dict[str, Tensor]],
    state: dict[str, Any] | None = None,
    stop: StopFlag | None = None,
) -> Iterator[Event]:
    """Scores from `state` (or from the start); yields signs of life, checkpoints, `Scored` and, at
    last, `Finished`. Steps are chunks (`num_chunks`). Every worker of a process group consumes its
    own.

    scorer: the student that scores, None for `random`. weights: its, after each of
    spec.scoring.steps; of several, `tracin` alone takes more than the last. Raises UnsuitableError
    when they do not fit, or are not finite.
    """
    configure(runtime)
    world = World.current()
    _refuse_unfit(spec.scoring, scorer, weights)
    if scorer is None:
        assert spec.scoring.seed is not None
        drawn = random_scores(len(data.train_labels), seed=spec.scoring.seed)
        yield Scored(scores_N=drawn if world.rank == 0 else None)
        yield Finished(reason="done", step=0)
        return
    scoring = _Scoring(spec, data, runtime, world, scorer, weights)
    if state is not None:
        scoring.load_state_dict(state)
    yield from _pass_over(scoring, runtime, stop)


def _refuse_unfit(
    scoring: Scoring, scorer: StudentSpec | None, weights: Sequence[dict[str, Tensor]]
) -> None:
    needs_none = scoring.method == "random"
    if needs_none != (scorer is None) or (needs_none and scoring.seed is None):
        raise UnsuitableError(
            f"{scoring.method} was given student={scorer is not None}, seed={scoring.seed}",
            "random takes a seed and no student, the other methods a student",
        )
    if len(weights) != len(scoring.steps):
        raise UnsuitableError(
            f"{scoring.method} was given the weights of {len(weights)} steps, "
            f"and looks at {len(scoring.steps)}",
            "delete the student's folder; the next run trains it again and keeps them",
        )


def _pass_over(scoring: _Scoring, runtime: Runtime, stop: StopFlag | None) -> Iterator[Event]:
    control = Control(stop, runtime.checkpoint_every_s, scoring.world, scoring.device)
    told = time.monotonic()
    with closing(scoring.advance()) as chunks:
        for _ in chunks:
            if time.monotonic() - told >= 1.0:
                told = time.monotonic()
                yield Progress(step=scoring.step, top1=None)
            checkpoint_due, stopping = control.ask(scoring.step)
            if scoring.step == scoring.last:
                break
            if checkpoint_due:
                yield Checkpoint(step=scoring.step, state=scoring.state_dict())
            if stopping:
                yield Finished(reason="stopped", step=scoring.step)
                return
    yield Scored(scores_N=scoring.scores())
    yield Finished(reason="done", step=scoring.last)
