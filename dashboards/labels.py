"""Values and fields in the field's own words, for tables, legends and axes."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import JsonValue

__all__ = [
    "Key",
    "as_key",
    "axis_label",
    "field_label",
    "format_score",
    "here_label",
    "phrase",
    "value_label",
]

Key = str | float | bool | None
"""A setting's value as it stands in a cell's coordinates: hashable, 60 and 60.0 equal, a mapping as
its canonical JSON."""

_FIELDS = {
    "augmentation": "Student augmentation",
    "dataset": "Data set",
    "ipc": "IPC",
    "kd.alpha": "α",
    "label_noise": "Wrong labels",
    "metric": "Metric",
    "revision.eta": "Label revision, η",
    "revision.only_wrong": "Revised",
    "selection.fraction": "Selected",
    "selection.method": "Data selection",
    "step": "Step",
    "strategy": "Strategy",
    "teacher.accuracy": "Teacher accuracy",
    "teacher.augmentation": "Teacher augmentation",
    "teacher.backbone": "Teacher",
    "teacher.label_noise": "Teacher's wrong labels",
    "backbone.name": "Backbone",
    "training.batch_size": "Batch size",
    "training.lr": "Learning rate",
    "training.steps": "Steps",
    "training.weight_decay": "Weight decay",
}
_METRICS = {
    "top1_h": "Top-1 accuracy (%)",
    "top1_g": "Top-1 accuracy of g (%)",
    "top1": "Teacher's top-1 accuracy (%)",
    "train_kl": "KL divergence, training (nats)",
    "train_ce": "Cross-entropy, training (nats)",
    "target_entropy": "Entropy of the targets (nats)",
    "teacher_agreement": "Agreement with the target",
}
_PERCENT = ("top1_h", "top1_g", "top1")

_AUGMENTATIONS = {
    "none": "NoAug",
    "color": "ColorJitter",
    "crop": "Crop",
    "mixup": "MixUp",
    "cutmix": "CutMix",
    "std": "StdAug",
}
_BACKBONES = {
    "resnet18": "ResNet-18",
    "resnet34": "ResNet-34",
    "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNetV2",
    "efficientnet_b0": "EfficientNet",
    "vit_b_16": "ViT",
    "vit_tiny": "ViT-tiny",
}
_DATASETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tinyimagenet": "Tiny-ImageNet",
    "imagenet": "ImageNet-1k",
    "digits": "Digits",
}
_METHODS = {
    "influence": "influence",
    "el2n": "EL2N",
    "loss": "loss",
    "tracin": "TracIn",
    "random": "random",
}
_NAMES: dict[str, dict[str, str]] = {
    "augmentation": _AUGMENTATIONS,
    "teacher.augmentation": _AUGMENTATIONS,
    "backbone.name": _BACKBONES,
    "teacher.backbone": _BACKBONES,
    "dataset": _DATASETS,
    "loss": {"decoupled": "decoupled", "joint": "joint", "kd": "KD"},
    "revision.only_wrong": {"True": "wrong targets", "False": "all targets"},
    "selection.method": _METHODS,
}
"""The papers' names of values, by field."""

_NONE = {
    "teacher.accuracy": "NoTeach",
    "revision.eta": "no LR",
    "selection.method": "no DS",
    "teacher.label_noise": "the student's",
    "teacher.screen": "whole test set",
}
"""What stands for no value."""

_SHARES = ("label_noise", "teacher.label_noise", "selection.fraction")
"""Fractions that are shown in percent."""


def as_key(value: JsonValue) -> Key:
    """Hashable form of a setting's value."""
    if isinstance(value, dict | list):
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def field_label(field: str) -> str:
    """`teacher.accuracy` -> `Teacher accuracy`."""
    return _FIELDS.get(field, field.replace(".", " ").replace("_", " ").capitalize())


def axis_label(name: str) -> str:
    """Label of an axis that shows a field or a metric, with its unit."""
    if name in _METRICS:
        return _METRICS[name]
    return field_label(name) + {"teacher.accuracy": " (%)", "ipc": " (images a class)"}.get(
        name, ""
    )


def value_label(field: str, value: Key) -> str:
    """A value under its field's heading, as the paper prints it: `60%`, `39,000`, `1e-3`, `MixUp`,
    `full`; `NoTeach`, or a dash where none applies."""
    if value is None:
        return _NONE.get(field, "—")
    if field == "teacher.accuracy" and isinstance(value, float):
        return f"{value:g}%"
    if field in _SHARES and isinstance(value, float):
        return f"{100 * value:g}%"
    if field == "teacher.backbone" and str(value).startswith("{"):
        return _teacher_backbone(json.loads(str(value)))
    if field == "training.lr" and isinstance(value, float):
        return _power_of_ten(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() else f"{value:g}"
    return _NAMES.get(field, {}).get(str(value), str(value))


def _teacher_backbone(choice: dict[str, JsonValue]) -> str:
    """`{"name": "resnet18", "width": 16}` -> `ResNet-18, width 16`."""
    name = str(choice.pop("name"))
    return ", ".join([_BACKBONES.get(name, name), *(f"{key} {choice[key]}" for key in choice)])


def here_label(field: str, value: Key, actual: Sequence[Key] | None) -> str:
    """A value of a pilot's layout and what its runs have instead: `90% (here 50%)`. actual: None
    when it is what it says; empty when no run stands for it: `90% (not here)`."""
    text = value_label(field, value)
    if actual is None:
        return text
    here = ", ".join(value_label(field, one) for one in actual)
    return f"{text} (here {here})" if here else f"{text} (not here)"


def _power_of_ten(value: float) -> str:
    """`0.001` -> `1e-3`."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def phrase(field: str, value: Key) -> str:
    """A value that stands alone, as in a legend: `Strategy C`, `teacher 60%`, `IPC 50`."""
    text = value_label(field, value)
    if field == "teacher.accuracy":
        return "no teacher" if value is None else f"teacher {text}"
    if field == "ipc" and value == "full":
        return "full training set"
    if field == "revision.eta":
        return "no LR" if value is None else f"LR, η {text}"
    if field == "selection.method":
        return "no DS" if value is None else f"DS by {text}"
    if field in ("strategy", "ipc"):
        return f"{field_label(field)} {text}"
    if field in _NAMES and value is not None:
        return f"{text} teacher" if field.startswith("teacher.") else text
    return f"{field_label(field).lower()} {text}"


def format_score(value: float, metric: str) -> str:
    """Two decimals for percentages, as the paper prints them; four for the rest."""
    return f"{value:.2f}" if metric in _PERCENT else f"{value:.4f}"
