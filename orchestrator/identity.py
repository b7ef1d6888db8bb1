"""What a run is, as one JSON text, and its key: the SHA-256 of that text.

**Canonical JSON** says everything that shapes the weights' trajectory and nothing else. A field at
its neutral value (its default in `trainers.spec`) is left out, and so is a field that does not
apply, so that a field added later changes no old key. Numbers are written one way: 2.0 as 2.

    >>> run_key(spec) == run_key(from_canonical(canonical(spec)))
    True
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, get_args, get_type_hints

from orchestrator.errors import StoreError
from trainers.spec import (
    SEMANTICS,
    AdamW,
    Augmentation,
    Backbone,
    Dataset,
    ProbeSpec,
    Revision,
    RunSpec,
    ScoresSpec,
    Scoring,
    Selection,
    StudentRef,
    StudentSpec,
    TargetsSpec,
    TeacherRef,
    TeacherSpec,
)

__all__ = ["KINDS", "canonical", "canonical_json", "from_canonical", "kind_of", "run_key"]

KINDS: Mapping[str, type[RunSpec]] = {
    "teacher": TeacherSpec,
    "targets": TargetsSpec,
    "student": StudentSpec,
    "scores": ScoresSpec,
    "probe": ProbeSpec,
}

_ONE_LOSS = "cross_entropy"
"""Of teachers and probes, which have one head."""


def kind_of(spec: RunSpec) -> str:
    return next(kind for kind, cls in KINDS.items() if isinstance(spec, cls))


def run_key(spec: RunSpec) -> str:
    """64 hex digits; equal for equal trajectories."""
    return hashlib.sha256(_dump(canonical(spec)).encode()).hexdigest()


def canonical_json(payload: Mapping[str, Any]) -> str:
    """One text for equal payloads: sorted keys, no spaces, ASCII. ValueError for NaN, infinity."""
    return _dump(_normal(payload))


def _dump(normal: Mapping[str, Any]) -> str:
    return json.dumps(normal, sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical(spec: RunSpec) -> dict[str, Any]:
    """The payload that is hashed, and that run.json keeps. Read-only: parts are shared."""
    payload = _payload(spec, _inapplicable(spec))
    payload["kind"] = kind_of(spec)
    payload["semantics"] = SEMANTICS
    # Names, though there is one of each today: another one must not look like this one.
    if isinstance(spec, TeacherSpec | ProbeSpec):
        payload["loss"] = _ONE_LOSS
    elif isinstance(spec, StudentSpec):
        payload["loss"] = spec.loss
    return payload


def _inapplicable(spec: RunSpec) -> frozenset[str]:
    """Fields of a student that nothing reads under its other settings."""
    if not isinstance(spec, StudentSpec):
        return frozenset()
    names = set()
    if spec.strategy == "A":
        names |= {"teacher", "temperature", "alpha", "revision", "selection"}
    if spec.strategy != "C":
        names.add("target_view")
    if spec.loss != "joint":
        names.add("ce_weight")
    if spec.loss != "kd":
        names.add("alpha")
    if spec.loss != "kd" or spec.revision is None:
        names.add("revised_weight")
    if spec.loss == "kd":
        names.add("student_temperature")
    return frozenset(names)


def _payload(spec: Any, skip: frozenset[str] = frozenset()) -> dict[str, Any]:
    payload = {}
    for name, default in _FIELDS[type(spec)]:
        value = getattr(spec, name)
        if name not in skip and value != default:
            payload[name] = _part(value) if type(value) in _FIELDS else _normal(value)
    return payload


@lru_cache(maxsize=4096)
def _part(spec: Any) -> dict[str, Any]:
    """A nested value; a hundred thousand runs share a few of each."""
    payload = _payload(spec)
    if isinstance(spec, AdamW):
        payload["name"] = "adamw"
    if isinstance(spec, Dataset) and spec.ipc is None:
        payload.pop("subset_seed", None)  # the full training set is not drawn
    if isinstance(spec, Dataset) and not spec.label_noise:
        payload.pop("noise_seed", None)
    return payload


_FIELDS: Mapping[type[Any], tuple[tuple[str, Any], ...]] = {
    cls: tuple((field.name, field.default) for field in dataclasses.fields(cls))
    for cls in (
        *KINDS.values(), Dataset, Backbone, Augmentation, AdamW, TeacherRef, StudentRef,
        Revision, Selection, Scoring,
    )
}  # fmt: skip
"""Field names with their neutral values; MISSING equals no value."""

_HINTS = {cls: get_type_hints(cls) for cls in _FIELDS}


def _normal(value: Any) -> Any:
    """Whole floats as ints, tuples as lists: one spelling for equal values."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no canonical form")
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        return {name: _normal(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normal(item) for item in value]
    return value


def from_canonical(payload: Mapping[str, Any]) -> RunSpec:
    """The spec whose canonical form `payload` is. StoreError when this version cannot read it."""
    fields = dict(payload)
    cls = KINDS.get(fields.pop("kind", ""))
    semantics = fields.pop("semantics", None)
    if cls is None or semantics != SEMANTICS:
        raise _foreign(f"it is a {payload.get('kind')} of semantics {semantics}, not {SEMANTICS}")
    if cls in (TeacherSpec, ProbeSpec) and fields.pop("loss", None) != _ONE_LOSS:
        raise _foreign(f"a {payload.get('kind')} with loss {payload.get('loss')}")
    spec: RunSpec = _build(cls, fields)
    return spec


def _build(cls: type[Any], payload: Mapping[str, Any]) -> Any:
    payload = dict(payload)
    if cls is AdamW and (name := payload.pop("name", None)) != "adamw":
        raise _foreign(f"optimizer {name}")
    hints = _HINTS[cls]
    unknown = sorted(payload.keys() - hints.keys())
    if unknown:
        raise _foreign(f"{cls.__name__} has no field {', '.join(unknown)}")
    try:
        return cls(**{name: _typed(hints[name], value) for name, value in payload.items()})
    except TypeError as error:
        raise _foreign(str(error)) from error


def _typed(hint: Any, value: Any) -> Any:
    """`value` as field type `hint` has it: 2 as 2.0 in a float field, lists as tuples."""
    choices = get_args(hint) or (hint,)
    if isinstance(value, Mapping):
        cls = next((choice for choice in choices if choice in _FIELDS), None)
        if cls is None:
            raise _foreign(f"a mapping where {hint} belongs")
        return _build(cls, value)
    if value is not None and any(choice in _FIELDS for choice in choices):
        raise _foreign(f"{value!r} where {hint} belongs")
    if isinstance(value, list):
        return tuple(float(item) for item in value)
    if isinstance(value, int) and float in choices:
        return float(value)
    return value


def _foreign(reason: str) -> StoreError:
    return StoreError(
        f"a run of the store was not written by this version of targetsweep: {reason}",
        "use the version that wrote it, or another store",
    )
