"""From a grid point to what trains: settings become the frozen values of `trainers.spec`.

Whatever two points share is made once: a hundred thousand points have a few dozen teachers,
optimisers and augmentations between them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.backbones import WITH_WIDTH
from orchestrator.durations import as_steps
from orchestrator.fieldtypes import Value, as_mapping
from orchestrator.grid import Point, applicable, projection
from orchestrator.identity import run_key
from orchestrator.settings import FIELDS, INDEX
from trainers.data.info import PROVISIONAL, DatasetInfo
from trainers.presets import least_trained
from trainers.spec import (
    AUGMENTATIONS,
    AdamW,
    Augmentation,
    Backbone,
    Dataset,
    ProbeSpec,
    Revision,
    ScoresSpec,
    Scoring,
    Selection,
    StudentRef,
    StudentSpec,
    TargetsSpec,
    TeacherRef,
    TeacherSpec,
    scores_spec,
    targets_spec,
)

__all__ = ["PROVISIONAL", "Resolver", "Scorer", "Teacher", "scoring_steps"]

_PATCHED = ("vit_", "maxvit")
"""Backbones whose first layer cuts patches: they have one stem, so one key."""

_SMALL_IMAGE = 64
"""Up to this many pixels a backbone starts with the paper's small stem."""


class Teacher(NamedTuple):
    """A teacher as one student needs it. max_steps: where its search ends for that student."""

    spec: TeacherSpec
    ref: TeacherRef
    max_steps: int


class Scorer(NamedTuple):
    """The strategy A student behind a selection: its point and what it is. steps: whose weights are
    looked at, ascending."""

    point: Point
    spec: StudentSpec
    key: str
    steps: tuple[int, ...]


class Resolver:
    """infos: what is known of data sets, by name; others get a provisional fingerprint.

    The methods take points and remember their answers by the fields that matter.
    """

    def __init__(self, infos: Mapping[str, DatasetInfo]) -> None:
        self.infos = infos
        self._dataset = _remembered(self._make_dataset, _DATASET_FIELDS)
        self._backbone = _remembered(self._make_backbone, _BACKBONE_FIELDS)
        self._augmentation = _remembered(_augmentation, ("augmentation",))
        self._optimizer = _remembered(_adamw, ("training.lr", "training.weight_decay"))
        self._teacher = _remembered(self._make_teacher, _TEACHER_FIELDS)
        self._revision = _remembered(_revision, ("revision.eta", "revision.only_wrong"))
        self._scorings: dict[Point, Scoring] = {}
        self._rest = projection(_STUDENT_FIELDS)

    def student(self, point: Point) -> StudentSpec:
        get = dict(zip(_STUDENT_FIELDS, self._rest(point), strict=True))
        batch, norm_batch = get["training.batch_size"], get["training.norm_batch"]
        teacher = self.teacher(point)
        return StudentSpec(
            dataset=self._dataset(point),
            backbone=self._backbone(point),
            augmentation=self._augmentation(point),
            strategy=get["strategy"],
            optimizer=self._optimizer(point),
            batch_size=batch,
            seed=get["seed"],
            teacher=teacher.ref if teacher else None,
            temperature=get["temperature"],
            student_temperature=_first(get["student_temperature"], 1.0),
            loss=get["loss"],
            ce_weight=_first(get["ce_weight"], 1.0),
            target_view=get["target_view"] or "plain",
            norm_batch=None if norm_batch == batch else norm_batch,
            precision=get["training.precision"],
            alpha=get["kd.alpha"],
            revised_weight=_first(get["kd.revised_weight"], 1.0),
            revision=self._revision(point),
            selection=self._selection(point),
        )

    def scorer(self, point: Point) -> Scorer | None:
        """The model behind a point's selection; None without one, or for `random`."""
        selection = self._selection(point)
        if selection is None or selection.scoring.student is None:
            return None
        its = scorer_point(point)
        spec, ref = self.student(its), selection.scoring.student
        return Scorer(its, spec, ref.key, selection.scoring.steps)

    def scores(self, student: StudentSpec) -> ScoresSpec | None:
        """What a student selects by: one file for all that score alike."""
        if student.selection is None:
            return None
        return scores_spec(student.dataset, student.selection.scoring)

    def _selection(self, point: Point) -> Selection | None:
        """None also where everything is selected: that student needs no scores."""
        fraction = point[_FRACTION]
        if point[_METHOD] is None or fraction == 1:
            return None
        return Selection(scoring=self._scoring(point), fraction=fraction)

    def _scoring(self, point: Point) -> Scoring:
        """Made once for all points that differ in their teacher, their fraction and the like."""
        at = (*scorer_point(point), *(point[slot] for slot in _SCORING))
        found = self._scorings.get(at)
        if found is None:
            found = self._scorings[at] = self._make_scoring(point)
        return found

    def _make_scoring(self, point: Point) -> Scoring:
        method, seed = point[_METHOD], point[_SCORING_SEED]
        if method == "random":
            return Scoring(method=method, seed=point[_SEED] if seed is None else seed)
        its = scorer_point(point)
        step = scoring_steps(point, self.infos)
        return Scoring(
            method=method,
            student=StudentRef(key=run_key(self.student(its)), step=step),
            checkpoints=_first(point[_CHECKPOINTS], 1),
            damping=point[_DAMPING],
        )

    def probe(self, student: StudentSpec, key: str, step: int) -> ProbeSpec:
        """The probe of what `student`, whose key is `key`, is after `step` steps."""
        return ProbeSpec(
            student=StudentRef(key=key, step=step),
            dataset=student.dataset,
            backbone=student.backbone,
            augmentation=student.augmentation,
            optimizer=student.optimizer,
            batch_size=student.batch_size,
            seed=student.seed,
            precision=student.precision,
        )

    def teacher(self, point: Point) -> Teacher | None:
        """None under strategy A."""
        return None if point[_STRATEGY] == "A" else self._teacher(point)

    def targets(self, teacher: Teacher, temperature: float) -> TargetsSpec:
        """What strategy C reads: one file for all students of a snapshot."""
        info = self.infos.get(teacher.spec.dataset.name)
        return targets_spec(
            teacher.spec.dataset,
            teacher.ref,
            temperature,
            num_classes=info.num_classes if info else 1,
        )

    def _make_dataset(
        self,
        name: str,
        image_size: int | None,
        ipc: Value,
        subset_seed: int | None,
        seed: int,
        noise: float,
        noise_seed: int | None,
    ) -> Dataset:
        full = self._full_dataset(name, image_size, noise, noise_seed)
        info = self.infos.get(name)
        # All images of a balanced data set are the data set.
        whole = info is not None and info.balanced and ipc == info.smallest_class
        if ipc == "full" or whole:
            return full
        subset_seed = seed if subset_seed is None else subset_seed
        return dataclasses.replace(full, ipc=ipc, subset_seed=subset_seed)

    def _full_dataset(
        self, name: str, image_size: int | None, noise: float, noise_seed: int | None
    ) -> Dataset:
        info = self.infos.get(name)
        if info is not None and image_size == info.image_size:
            image_size = None  # a data set's own size goes without saying
        return Dataset(
            name=name,
            fingerprint=info.fingerprint if info else PROVISIONAL,
            image_size=image_size,
            label_noise=noise,
            noise_seed=noise_seed or 0 if noise else 0,
        )

    def _make_backbone(
        self, dataset: str, image_size: int | None, name: str, width: int | None, stem: str
    ) -> Backbone:
        if name.startswith(_PATCHED):
            stem = "standard"
        if stem == "auto":
            info = self.infos.get(dataset)
            size = image_size or (info.image_size if info else 0)
            stem = "small" if size <= _SMALL_IMAGE else "standard"
        if width == WITH_WIDTH.get(name):
            width = None  # torchvision's own model
        return Backbone(name=name, width=width, stem=stem)  # type: ignore[arg-type]

    def _make_teacher(self, *values: Value) -> Teacher:
        get = dict(zip(_TEACHER_FIELDS, values, strict=True))
        batch = get["teacher.batch_size"] or get["training.batch_size"]
        spec = TeacherSpec(
            dataset=self._full_dataset(
                get["dataset"],
                get["image_size"],
                _first(get["teacher.label_noise"], get["label_noise"]),
                get["noise_seed"],
            ),
            backbone=self._teacher_backbone(get),
            augmentation=_augmentation(get["teacher.augmentation"]),
            optimizer=_adamw(
                _first(get["teacher.lr"], get["training.lr"]),
                _first(get["teacher.weight_decay"], get["training.weight_decay"]),
            ),
            batch_size=batch,
            seed=get["teacher.seed"],
            precision=get["training.precision"],
        )
        info = self.infos.get(get["dataset"])
        accuracy = get["teacher.accuracy"]
        ref = TeacherRef(
            key=run_key(spec),
            accuracy=accuracy,
            validate_every=get["teacher.validate_every"],
            screen=get["teacher.screen"],
            least=least_trained(accuracy, info.num_classes) if info else None,
        )
        return Teacher(spec, ref, as_steps(get["teacher.max_steps"], info, batch) or 1)

    def _teacher_backbone(self, get: Mapping[str, Value]) -> Backbone:
        own = get["teacher.backbone"]
        if own is None:
            return self._make_backbone(*(get[name] for name in _BACKBONE_FIELDS))
        choice = as_mapping(own)
        width = choice.get("width", FIELDS["backbone.width"].default)
        return self._make_backbone(
            get["dataset"],
            get["image_size"],
            choice["name"],
            width if choice["name"] in WITH_WIDTH else None,
            choice.get("stem", "auto"),
        )


_STRATEGY = INDEX["strategy"]
_DATASET = INDEX["dataset"]
_IPC = INDEX["ipc"]
_BATCH = INDEX["training.batch_size"]
_SEED = INDEX["seed"]
_LOSS = INDEX["loss"]
_PROBE = INDEX["probe"]
_OWN_TEMPERATURE = INDEX["student_temperature"]
_METHOD = INDEX["selection.method"]
_FRACTION = INDEX["selection.fraction"]
_SCORING_SEED = INDEX["selection.seed"]
_SCORING_STEPS = INDEX["selection.steps"]
_CHECKPOINTS = INDEX["selection.checkpoints"]
_DAMPING = INDEX["selection.damping"]
_SCORING = (_METHOD, _SEED, _SCORING_SEED, _SCORING_STEPS, _CHECKPOINTS, _DAMPING)
_DATASET_FIELDS = (
    "dataset",
    "image_size",
    "ipc",
    "subset_seed",
    "seed",
    "label_noise",
    "noise_seed",
)
_BACKBONE_FIELDS = (
    "dataset",
    "image_size",
    "backbone.name",
    "backbone.width",
    "backbone.stem",
)
_STUDENT_FIELDS = (
    "strategy",
    "training.batch_size",
    "training.norm_batch",
    "seed",
    "temperature",
    "student_temperature",
    "loss",
    "ce_weight",
    "target_view",
    "training.precision",
    "kd.alpha",
    "kd.revised_weight",
)
_TEACHER_FIELDS = (
    *_BACKBONE_FIELDS,
    "label_noise",
    "noise_seed",
    "training.batch_size",
    "training.lr",
    "training.weight_decay",
    "training.precision",
    *(name for name in FIELDS if name.startswith("teacher.")),
)


def _remembered(make: Callable[..., Any], names: Sequence[str]) -> Callable[[Point], Any]:
    """`make` of the named fields of a point, made once for equal ones."""
    pick = projection(names)
    answers: dict[tuple[Value, ...], Any] = {}

    def remember(point: Point) -> Any:
        values = pick(point)
        answer = answers.get(values)
        if answer is None:
            answer = answers[values] = make(*values)
        return answer

    return remember


def scoring_steps(point: Point, infos: Mapping[str, DatasetInfo]) -> int:
    """How long the model that scores for a point trains."""
    asked = _first(point[_SCORING_STEPS], "10 epochs")
    return as_steps(asked, infos.get(point[_DATASET]), point[_BATCH]) or 1


def scorer_point(point: Point) -> Point:
    """The point of the model that scores for `point`: the same student as a plain run of strategy
    A, on the full training set, of the selection's seed. One that a sweep asks for anyway is that
    very run."""
    values = list(point)
    values[_STRATEGY], values[_IPC], values[_LOSS], values[_PROBE] = (
        "A",
        "full",
        "decoupled",
        "joint",
    )
    values[_SEED] = _first(point[_SCORING_SEED], 0)
    if values[_OWN_TEMPERATURE] is None:
        values[_OWN_TEMPERATURE] = FIELDS["student_temperature"].default
    return applicable(values)


def _revision(eta: float | None, only_wrong: bool | None) -> Revision | None:
    return None if eta is None else Revision(eta=eta, only_wrong=only_wrong is not False)


def _augmentation(choice: Value) -> Augmentation:
    if isinstance(choice, str):
        return AUGMENTATIONS[choice]
    fields = as_mapping(choice)
    return dataclasses.replace(AUGMENTATIONS[fields.pop("base")], **fields)


def _adamw(lr: float, weight_decay: float) -> AdamW:
    return AdamW(lr=lr, weight_decay=weight_decay)


def _first(value: Value, otherwise: Value) -> Value:
    return otherwise if value is None else value
