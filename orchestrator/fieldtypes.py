"""The types a sweep's fields may have, each with the words an error message uses for it.

Values are hashable (a mapping becomes a tuple of pairs), so that grid points can be compared fast.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from orchestrator.backbones import BACKBONES, WITH_WIDTH
from orchestrator.errors import nearest
from trainers.spec import AUGMENTATIONS, METHODS, Augmentation, SelectionMethod

__all__ = [
    "Accuracy",
    "AugmentationChoice",
    "BackboneName",
    "Count",
    "Duration",
    "Expect",
    "Flag",
    "Fraction",
    "FractionBelowOne",
    "GpuShare",
    "Ipc",
    "Keep",
    "MethodName",
    "NoiseShare",
    "NonNegative",
    "Positive",
    "Screening",
    "Seed",
    "SelectedShare",
    "Stem",
    "Steps",
    "StrategyName",
    "TeacherBackbone",
    "Value",
    "WorkerCount",
    "as_mapping",
    "plain",
]

Value = Any
"""A checked value: str, int, float, None, a tuple of ints, or a mapping as a tuple of pairs."""


@dataclass(frozen=True)
class Expect:
    """What a field takes, in words, and its names where it takes names."""

    text: str
    names: tuple[str, ...] = ()


def plain(value: Value) -> Any:
    """The value as JSON has it: tuples of pairs as mappings, other tuples as lists."""
    if isinstance(value, tuple):
        if value and isinstance(value[0], tuple):
            return {name: plain(item) for name, item in value}
        return [plain(item) for item in value]
    return value


def as_mapping(value: Value) -> dict[str, Any]:
    """A checked mapping value as a dict (of still hashable values)."""
    return dict(value)


Count = Annotated[int, Field(ge=1), Expect("a whole number of at least 1")]
Seed = Annotated[int, Field(ge=0, lt=2**63), Expect("a whole number of at least 0")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), Expect("a number above 0")]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), Expect("a number of at least 0")]
Accuracy = Annotated[
    float, Field(gt=0, le=100), Expect("a top-1 accuracy in percent, above 0 and at most 100")
]
Flag = Annotated[bool, Field(strict=True), Expect("true or false")]
Fraction = Annotated[
    float, Field(ge=0, le=1, allow_inf_nan=False), Expect("a number from 0 to 1, both included")
]
FractionBelowOne = Annotated[
    float,
    Field(gt=0, lt=1, allow_inf_nan=False),
    Expect("a number above 0 and below 1"),
]
SelectedShare = Annotated[
    float, Field(gt=0, le=1, allow_inf_nan=False), Expect("a number above 0 and at most 1")
]
NoiseShare = Annotated[
    float,
    Field(ge=0, lt=1, allow_inf_nan=False),
    Expect("a share, from 0 to below 1"),
]
MethodName = Annotated[SelectionMethod, Expect(", ".join(METHODS), METHODS)]
StrategyName = Annotated[Literal["A", "B", "C"], Expect("A, B or C", ("A", "B", "C"))]
Stem = Annotated[
    Literal["auto", "small", "standard"],
    Expect("auto, small or standard", ("auto", "small", "standard")),
]
Screening = Annotated[
    Literal["adaptive"] | Annotated[int, Field(ge=1)],
    Expect("a number of test images of at least 1, or adaptive", ("adaptive",)),
]
Ipc = Annotated[
    Literal["full"] | Annotated[int, Field(ge=1)],
    Expect("images per class: a whole number of at least 1, or full", ("full",)),
]

# --- durations: steps, or epochs that become steps once, when the data set is known -------------

_EPOCHS = re.compile(r"\s*(\d+(?:\.\d+)?)\s+epochs?\s*")


def _duration(value: object) -> object:
    if not isinstance(value, str) or (match := _EPOCHS.fullmatch(value)) is None:
        return value
    if float(match[1]) <= 0:
        raise ValueError("no epochs at all")
    return f"{float(match[1]):g} epochs"


Duration = Annotated[
    Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^\d+(\.\d+)? epochs?$")],
    BeforeValidator(_duration),
    Expect('a number of steps (300) or of epochs ("50 epochs")'),
]
Steps = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...],
    AfterValidator(lambda steps: tuple(sorted(set(steps)))),
    Expect("a list of steps, each at least 1"),
]


Keep = Annotated[
    Literal["final", "none"] | Annotated[int, Field(ge=0)],
    Expect("final, none, or a whole number of days", ("final", "none")),
]

# --- workers and devices, one value or one a data set ---------------------------------------------


def _by_dataset(check: Callable[[object], object]) -> Callable[[object], object]:
    """The value, or a mapping of data sets (and `default`) to values."""

    def validate(value: object) -> object:
        if not isinstance(value, Mapping):
            return check(value)
        if not value:
            raise ValueError("names no data set")
        return tuple(sorted((_dataset_name(name), check(one)) for name, one in value.items()))

    return validate


def _dataset_name(name: object) -> str:
    if not isinstance(name, str):
        raise ValueError(f"{name!r} is no data set's name")
    return name


def _workers(value: object) -> object:
    if value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is neither auto nor a whole number of at least 1")
    return value


def _share(value: object) -> object:
    if value == "auto":
        return value
    number = _number("gpus_per_worker", value)
    if not 0 < number <= 1:
        raise ValueError(
            f"{value!r} is neither auto nor above 0 and at most 1: a worker trains on one GPU"
        )
    return number


def _or_by_dataset(schema: dict[str, Any]) -> dict[str, Any]:
    mapping = {"type": "object", "minProperties": 1, "additionalProperties": schema}
    return {"anyOf": [schema, mapping]}


WorkerCount = Annotated[
    Any,
    BeforeValidator(_by_dataset(_workers)),
    WithJsonSchema(
        _or_by_dataset({"anyOf": [{"enum": ["auto"]}, {"type": "integer", "minimum": 1}]})
    ),
    Expect("auto, a whole number of at least 1, or {data set: number, default: number}", ("auto",)),
]
GpuShare = Annotated[
    Any,
    BeforeValidator(_by_dataset(_share)),
    WithJsonSchema(
        _or_by_dataset(
            {"anyOf": [{"enum": ["auto"]}, {"type": "number", "exclusiveMinimum": 0, "maximum": 1}]}
        )
    ),
    Expect(
        "auto, 1, a fraction of a GPU (0.25), or {data set: number, default: number}", ("auto",)
    ),
]

# --- augmentations -------------------------------------------------------------------------------

_AUGMENTATION_FIELDS = tuple(field.name for field in fields(Augmentation))
_PROBABILITIES = {"color_p", "grayscale_p", "flip_p"}


def _augmentation(value: object) -> object:
    if isinstance(value, str):
        return _known(value, tuple(AUGMENTATIONS), "augmentation")
    if not isinstance(value, Mapping):
        raise ValueError("neither a name nor a mapping")
    pairs = {"base": _known(value.get("base", "none"), tuple(AUGMENTATIONS), "base")}
    for name in sorted(set(value) - {"base"}):
        _known(name, ("base", *_AUGMENTATION_FIELDS), "key")
        pairs[name] = _strength(name, value[name])
    mixes = {**vars(AUGMENTATIONS[pairs["base"]]), **pairs}
    if mixes["mixup_alpha"] and mixes["cutmix_alpha"]:
        raise ValueError("mixup_alpha and cutmix_alpha are both set; an image is mixed one way")
    return pairs["base"] if len(pairs) == 1 else tuple(pairs.items())


def _known(value: object, names: tuple[str, ...], what: str) -> Any:
    if value not in names:
        like = nearest(value, names)
        hint = f"; nearest valid name: {like}" if like else ""
        raise ValueError(f"no {what} is called {value!r} (there are {', '.join(names)}){hint}")
    return value


def _strength(name: str, value: Any) -> object:
    if name in ("crop_scale", "crop_ratio"):
        return _range(name, value)
    number = _number(name, value)
    if number < 0 or (name in _PROBABILITIES and number > 1):
        bound = "between 0 and 1" if name in _PROBABILITIES else "at least 0"
        raise ValueError(f"{name} is {value!r}; it must be {bound}")
    return number


def _range(name: str, value: Any) -> object:
    if value is None and name == "crop_scale":
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"{name} is {value!r}; it takes two numbers, the lower first")
    low, high = (_number(name, bound) for bound in value)
    if not 0 < low <= high or (name == "crop_scale" and high > 1):
        bounds = "0 < low ≤ high" + (" ≤ 1" if name == "crop_scale" else "")
        raise ValueError(f"{name} is {value!r}; it must keep {bounds}")
    return low, high


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{name} is {value!r}; it must be a number")
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"{name} is {value!r}; it must be a number") from None
    if not abs(number) < float("inf"):
        raise ValueError(f"{name} is {value!r}; it must be finite")
    return number


_PAIR = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
_AUGMENTATION_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"enum": list(AUGMENTATIONS)},
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "base": {"enum": list(AUGMENTATIONS)},
                **{name: {"type": "number", "minimum": 0} for name in _AUGMENTATION_FIELDS},
                "crop_scale": {"anyOf": [_PAIR, {"type": "null"}]},
                "crop_ratio": _PAIR,
            },
        },
    ]
}
AugmentationChoice = Annotated[
    Any,
    BeforeValidator(_augmentation),
    WithJsonSchema(_AUGMENTATION_SCHEMA),
    Expect("an augmentation's name, or {base: name, field: value}", tuple(AUGMENTATIONS)),
]

# --- backbones -----------------------------------------------------------------------------------


def _backbone_name(value: object) -> object:
    return _known(value, BACKBONES, "backbone")


def _teacher_backbone(value: object) -> object:
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or "name" not in value:
        raise ValueError("neither a name nor a mapping with a name")
    for key in value:
        _known(key, ("name", "width", "stem"), "key")
    pairs: dict[str, Any] = {"name": _known(value["name"], BACKBONES, "backbone")}
    if "width" in value:
        if pairs["name"] not in WITH_WIDTH:
            owners = " and ".join(WITH_WIDTH)
            raise ValueError(f"width belongs to {owners}; {pairs['name']} has none")
        width = value["width"]
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f"width is {width!r}; it must be a whole number of at least 1")
        pairs["width"] = width
    if "stem" in value:
        pairs["stem"] = _known(value["stem"], ("auto", "small", "standard"), "stem")
    return tuple(pairs.items())


_NAME_SCHEMA: dict[str, Any] = {"enum": list(BACKBONES)}
BackboneName = Annotated[
    str,
    BeforeValidator(_backbone_name),
    WithJsonSchema(_NAME_SCHEMA),
    Expect("resnet18, vit_tiny or a torchvision classification model", BACKBONES),
]
TeacherBackbone = Annotated[
    Any,
    BeforeValidator(_teacher_backbone),
    WithJsonSchema(
        {
            "anyOf": [
                _NAME_SCHEMA,
                {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["name"],
                    "properties": {
                        "name": _NAME_SCHEMA,
                        "width": {"type": "integer", "minimum": 1},
                        "stem": {"enum": ["auto", "small", "standard"]},
                    },
                },
            ]
        }
    ),
    Expect("a backbone's name, or {name, width, stem}", BACKBONES),
]
