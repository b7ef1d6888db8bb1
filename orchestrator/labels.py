"""Short names of units for people; keys are for machines."""

from __future__ import annotations

from functools import cache

from trainers.spec import (
    AUGMENTATIONS,
    Augmentation,
    Backbone,
    StudentSpec,
    TeacherRef,
    TeacherSpec,
)

__all__ = ["student_label", "targets_label", "teacher_label"]


def student_label(spec: StudentSpec) -> str:
    """`B t60 std ipc10 seed0`."""
    teacher = f" t{spec.teacher.accuracy:g}" if spec.teacher else ""
    ipc = "full" if spec.dataset.ipc is None else f"ipc{spec.dataset.ipc}"
    return f"{spec.strategy}{teacher} {augmentation_name(spec.augmentation)} {ipc} seed{spec.seed}"


def teacher_label(spec: TeacherSpec) -> str:
    """`teacher digits resnet18-w8 std seed0`."""
    parts = (spec.dataset.name, backbone_name(spec.backbone), augmentation_name(spec.augmentation))
    return f"teacher {' '.join(parts)} seed{spec.seed}"


def targets_label(ref: TeacherRef, temperature: float) -> str:
    """`targets t60 T2`."""
    return f"targets t{ref.accuracy:g} T{temperature:g}"


def backbone_name(backbone: Backbone) -> str:
    return backbone.name if backbone.width is None else f"{backbone.name}-w{backbone.width}"


@cache
def augmentation_name(augmentation: Augmentation) -> str:
    """The preset's name, or `custom`."""
    return next(
        (name for name, preset in AUGMENTATIONS.items() if preset == augmentation), "custom"
    )
