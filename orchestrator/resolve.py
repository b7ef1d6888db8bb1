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
from orchestrator.grid import Point, projection
from orchestrator.identity import run_key
from orchestrator.settings import FIELDS, INDEX
from trainers.data.info import PROVISIONAL, DatasetInfo
from trainers.spec import (
    AUGMENTATIONS,
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
    targets_spec,
)

__all__ = ["PROVISIONAL", "Resolver", "Teacher"]

_PATCHED = ("vit_", "maxvit")
"""Backbones whose first layer cuts patches: they have one stem, so one key."""

_SMALL_IMAGE = 64
"""Up to this many pixels a backbone starts with the paper's small stem."""


class Teacher(NamedTuple):
    """A teacher as one student needs it. max_steps: where its search ends for that student."""

    spec: TeacherSpec
    ref: TeacherRef
    max_steps: int


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
        self._rest = projection(_STUDENT_FIELDS)

    def student(self, point: Point) -> StudentSpec:
        strategy, batch, norm_batch, seed, temperature, own_t, loss, ce_weight, view, precision = (
            self._rest(point)
        )
        teacher = self.teacher(point)
        return StudentSpec(
            dataset=self._dataset(point),
            backbone=self._backbone(point),
            augmentation=self._augmentation(point),
            strategy=strategy,
            optimizer=self._optimizer(point),
            batch_size=batch,
            seed=seed,
            teacher=teacher.ref if teacher else None,
            temperature=temperature,
            student_temperature=own_t,
            loss=loss,
            ce_weight=1.0 if ce_weight is None else ce_weight,
            target_view=view or "plain",
            norm_batch=None if norm_batch == batch else norm_batch,
            precision=precision,
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
        self, name: str, image_size: int | None, ipc: Value, subset_seed: int | None, seed: int
    ) -> Dataset:
        full = self._full_dataset(name, image_size)
        info = self.infos.get(name)
        # All images of a balanced data set are the data set.
        whole = info is not None and info.balanced and ipc == info.smallest_class
        if ipc == "full" or whole:
            return full
        subset_seed = seed if subset_seed is None else subset_seed
        return dataclasses.replace(full, ipc=ipc, subset_seed=subset_seed)

    def _full_dataset(self, name: str, image_size: int | None) -> Dataset:
        info = self.infos.get(name)
        if info is None:
            return Dataset(name=name, fingerprint=PROVISIONAL, image_size=image_size)
        own = image_size in (None, info.image_size)  # a data set's own size goes without saying
        return Dataset(
            name=name, fingerprint=info.fingerprint, image_size=None if own else image_size
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
            dataset=self._full_dataset(get["dataset"], get["image_size"]),
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
        ref = TeacherRef(
            key=run_key(spec),
            accuracy=get["teacher.accuracy"],
            validate_every=get["teacher.validate_every"],
            screen=get["teacher.screen"],
        )
        info = self.infos.get(get["dataset"])
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
_DATASET_FIELDS = ("dataset", "image_size", "ipc", "subset_seed", "seed")
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
)
_TEACHER_FIELDS = (
    *_BACKBONE_FIELDS,
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


def _augmentation(choice: Value) -> Augmentation:
    if isinstance(choice, str):
        return AUGMENTATIONS[choice]
    fields = as_mapping(choice)
    return dataclasses.replace(AUGMENTATIONS[fields.pop("base")], **fields)


def _adamw(lr: float, weight_decay: float) -> AdamW:
    return AdamW(lr=lr, weight_decay=weight_decay)


def _first(value: Value, otherwise: Value) -> Value:
    return otherwise if value is None else value
