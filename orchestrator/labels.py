"""Short names of units for people; keys are for machines.

A label is its base (`B t60 std ipc10 seed0`), which depends on the run alone, and what else tells
the runs of one plan apart (`lr=0.01 bs256`), which is left out where all of them agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple

from trainers.spec import (
    AUGMENTATIONS,
    Augmentation,
    Backbone,
    ProbeSpec,
    RunSpec,
    ScoresSpec,
    Selection,
    StudentSpec,
    TargetsSpec,
    TeacherRef,
    TeacherSpec,
)

__all__ = [
    "differences",
    "probe_label",
    "scores_label",
    "student_label",
    "targets_label",
    "teacher_label",
]


def student_label(spec: StudentSpec) -> str:
    """`B t60 std ipc10 seed0`."""
    teacher = f" t{spec.teacher.accuracy:g}" if spec.teacher else ""
    ipc = "full" if spec.dataset.ipc is None else f"ipc{spec.dataset.ipc}"
    return f"{spec.strategy}{teacher} {augmentation_name(spec.augmentation)} {ipc} seed{spec.seed}"


def probe_label(student: StudentSpec, step: int) -> str:
    """`probe B t60 std ipc10 seed0 at 600`; what tells its student apart is appended."""
    return f"probe {student_label(student)} at {step}"


def teacher_label(spec: TeacherSpec) -> str:
    """`teacher digits resnet18-w8 std seed0`."""
    parts = (spec.dataset.name, backbone_name(spec.backbone), augmentation_name(spec.augmentation))
    return f"teacher {' '.join(parts)} seed{spec.seed}"


def targets_label(ref: TeacherRef, temperature: float) -> str:
    """`targets t60 T2`. Of several teachers, theirs is appended."""
    return f"targets t{ref.accuracy:g} T{temperature:g}"


def scores_label(spec: ScoresSpec) -> str:
    """`scores cifar100 influence`. Of a student of several, its step is told."""
    scoring = spec.scoring
    at = f" step{scoring.student.step}" if scoring.student else f" seed{scoring.seed}"
    return f"scores {spec.dataset.name} {scoring.method}{at}"


def _revision(spec: StudentSpec) -> str:
    if spec.revision is None:
        return ""
    every = "" if spec.revision.only_wrong else " all"
    share = f" rho{spec.revised_weight:g}" if spec.revised_weight != 1 else ""
    return f"LR{spec.revision.eta:g}{every}{share}"


def _selection(selection: Selection | None) -> str:
    if selection is None:
        return ""
    scoring = selection.scoring
    return f"DS-{scoring.method}{selection.fraction:g}"


def backbone_name(backbone: Backbone) -> str:
    return backbone.name if backbone.width is None else f"{backbone.name}-w{backbone.width}"


@cache
def augmentation_name(augmentation: Augmentation) -> str:
    """The preset's name, or `custom`."""
    return next(
        (name for name, preset in AUGMENTATIONS.items() if preset == augmentation), "custom"
    )


@cache
def _custom(augmentation: Augmentation) -> str | None:
    """`std,brightness=0.8`: how an augmentation that is no preset differs from the nearest one."""
    own = dataclasses.asdict(augmentation)

    def changes(preset: str) -> list[str]:
        usual = dataclasses.asdict(AUGMENTATIONS[preset])
        return [f"{name}={own[name]}" for name in own if own[name] != usual[name]]

    nearest = min(AUGMENTATIONS, key=lambda preset: len(changes(preset)))
    return ",".join([nearest, *changes(nearest)]).replace(" ", "") if changes(nearest) else None


def _own_subset(spec: StudentSpec) -> str:
    """Images drawn from another seed than the run's."""
    seed = spec.dataset.subset_seed
    return "" if seed in (None, spec.seed) else f"subset{seed}"


# -- what tells runs of one plan apart ----------------------------------------------------------


def _scored_by(selection: Selection | None) -> str:
    """What scores may differ in beside their method: when, of whom, how damped."""
    if selection is None:
        return ""
    scoring = selection.scoring
    if scoring.student is None:
        return f"draw{scoring.seed}"
    damping = "" if scoring.damping is None else f" damping{scoring.damping:g}"
    return f"by {scoring.student.key[:6]} at {scoring.student.step}{damping}"


class _Aspect(NamedTuple):
    """Something runs may differ in. value: of a run; None where it does not apply. text: how a
    label says it; empty for what needs no words."""

    value: Callable[[Any], Any]
    text: Callable[[Any], str]


def _field(name: str, text: str) -> _Aspect:
    return _Aspect(attrgetter(name), text.format)


_TRAINED = (
    _Aspect(lambda spec: _custom(spec.augmentation), str),
    _Aspect(lambda spec: spec.dataset.image_size or 0, lambda size: f"{size}px" if size else ""),
    _field("backbone.stem", "stem={}"),
    _field("optimizer.lr", "lr={:g}"),
    _field("optimizer.weight_decay", "wd={:g}"),
    _field("batch_size", "bs{}"),
    _field("precision", "{}"),
    _Aspect(
        lambda spec: spec.dataset.label_noise, lambda noise: f"noise{noise:g}" if noise else ""
    ),
)
_STUDENT = (
    _field("dataset.name", "{}"),
    _Aspect(lambda spec: backbone_name(spec.backbone), str),
    *_TRAINED,
    _Aspect(lambda spec: spec.norm_batch or 0, lambda size: f"nb{size}" if size else ""),
    _Aspect(lambda spec: spec.loss, lambda loss: "" if loss == "decoupled" else loss),
    _Aspect(lambda spec: spec.alpha if spec.loss == "kd" else None, "a{:g}".format),
    _Aspect(_revision, str),
    _Aspect(lambda spec: _selection(spec.selection), str),
    _Aspect(lambda spec: _scored_by(spec.selection), str),
    _Aspect(lambda spec: spec.ce_weight if spec.loss == "joint" else None, "ce{:g}".format),
    _field("temperature", "T{:g}"),
    _field("student_temperature", "gT{:g}"),
    _Aspect(_own_subset, str),
)
_OF_TEACHER: tuple[tuple[Callable[[Any], Any], str, bool], ...] = (
    (attrgetter("seed"), "t.seed{}", False),
    (lambda spec: augmentation_name(spec.augmentation), "t.{}", False),
    (lambda spec: _custom(spec.augmentation) or "", "t.{}", False),
    (lambda spec: backbone_name(spec.backbone), "t.{}", True),
    (attrgetter("optimizer.lr"), "t.lr={:g}", True),
    (attrgetter("optimizer.weight_decay"), "t.wd={:g}", True),
    (attrgetter("batch_size"), "t.bs{}", True),
    (attrgetter("dataset.label_noise"), "t.noise{:g}", True),
)
"""What students may differ in by their teachers: value, text, and whether a teacher that has the
student's own value needs no words."""


def differences(specs: Mapping[str, RunSpec]) -> dict[str, str]:
    """What to append to the labels of a plan's runs, by key: ` lr=0.01 bs256`."""
    teachers = {key: spec for key, spec in specs.items() if isinstance(spec, TeacherSpec)}
    students = {key: spec for key, spec in specs.items() if isinstance(spec, StudentSpec)}
    of_teacher = [
        _of_teacher(teachers, value, text, follows=follows)
        for value, text, follows in _OF_TEACHER
        if len(set(map(value, teachers.values()))) > 1
    ]
    found = _apart(teachers, _TRAINED) | _apart(students, [*_STUDENT, *of_teacher])
    for key, spec in specs.items():
        if isinstance(spec, ProbeSpec):
            found[key] = found[spec.student.key]
        elif isinstance(spec, TargetsSpec) and len(teachers) > 1:
            teacher = teacher_label(teachers[spec.teacher.key]).removeprefix("teacher ")
            found[key] = f" of {teacher}{found[spec.teacher.key]}"
    return found


def _apart(specs: Mapping[str, RunSpec], aspects: Sequence[_Aspect]) -> dict[str, str]:
    """Aspect by aspect rather than run by run: most plans of 100,000 runs differ in few."""
    found = [""] * len(specs)
    for aspect in aspects:
        values = list(map(aspect.value, specs.values()))
        distinct = set(values) - {None}
        if len(distinct) > 1:
            said = {value: aspect.text(value) for value in distinct}
            texts = {None: ""} | {value: f" {text}" if text else "" for value, text in said.items()}
            found = [before + texts[value] for before, value in zip(found, values, strict=True)]
    return dict(zip(specs, found, strict=True))


def _of_teacher(
    teachers: Mapping[str, TeacherSpec], get: Callable[[Any], Any], text: str, *, follows: bool
) -> _Aspect:
    def value(spec: StudentSpec) -> Any:
        if spec.teacher is None:
            return None
        its = get(teachers[spec.teacher.key])
        return "" if follows and its == get(spec) else its

    return _Aspect(value, lambda its: "" if its == "" else text.format(its))
