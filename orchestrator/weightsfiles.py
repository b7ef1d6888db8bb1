"""Weights and scores that a run left, read by others: a teacher's snapshots, what a student kept,
the scores of a training set. Bytes that are not those once saved raise DamagedFileError, what is
gone LostNeedError.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from orchestrator import paths
from orchestrator.errors import DamagedFileError, LostNeedError
from orchestrator.store import Store
from trainers.checkpoint import parse_weights, weights_digest
from trainers.errors import CheckpointError
from trainers.presets import ROUNDING
from trainers.spec import TeacherRef

__all__ = [
    "SCORES",
    "read_kept_weights",
    "read_scores",
    "read_snapshot",
    "read_snapshot_weights",
    "teacher_name",
]

SCORES = "scores"
"""The tensor's name in a file of scores."""


def teacher_name(ref: TeacherRef) -> str:
    return paths.run_name("teacher", ref.key)


def read_snapshot(store: Store, ref: TeacherRef) -> dict[str, Any]:
    """snapshots/acc-<preset>.json of a teacher run. DamagedFileError when it is not what was
    written, or of a net below `ref.least` (harvested when CIFAR-100's 2% teacher was still the
    untrained net); LostNeedError when the snapshot does not exist."""
    teacher, preset = teacher_name(ref), ref.accuracy
    found = store.read_json(paths.snapshot_json(teacher, preset))
    if found is None:
        raise LostNeedError(
            f"{teacher} has no snapshot at {preset:g}%",
            "run the sweep again: the teacher is trained until it has one",
        )
    if ref.least is not None and found["accuracy"] < ref.least - ROUNDING:
        raise DamagedFileError(
            paths.snapshot_json(teacher, preset),
            f"a net of {found['accuracy']:.2f}%, where {preset:g}% counts from {ref.least:g}% on",
        )
    return found


def read_snapshot_weights(store: Store, ref: TeacherRef) -> tuple[dict[str, Any], str]:
    """The weights and their digest. DamagedFileError when the bytes are not those once saved,
    LostNeedError when they are gone."""
    digest: str = read_snapshot(store, ref)["digest"]
    rel = paths.snapshot_weights(teacher_name(ref), ref.accuracy)
    return _read_weights(store, rel, digest), digest


def _read_weights(store: Store, rel: str, digest: str) -> dict[str, Any]:
    if not store.exists(rel):
        raise LostNeedError(f"{rel} is gone", "run the sweep again: it is made anew")
    data = store.read_bytes(rel)
    if weights_digest(data) != digest:
        raise DamagedFileError(rel, "its digest does not fit")
    try:
        return parse_weights(data)
    except CheckpointError as error:
        raise DamagedFileError(rel, error.problem) from error


def read_kept_weights(
    store: Store, student: str, step: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights a student kept, and their record (`digest`, `teacher_digest`). LostNeedError when
    it kept none at that step, DamagedFileError when the bytes are not those once saved."""
    found = store.read_json(paths.kept_json(student, step))
    if found is None:
        raise LostNeedError(
            f"{student} kept no weights at step {step}",
            "run the sweep again: the student is trained until it has",
        )
    return _read_weights(store, paths.kept_weights(student, step), found["digest"]), found


def read_scores(store: Store, name: str) -> tuple[Tensor, str]:
    """The scores of a training set, (N,), and their digest. DamagedFileError when the bytes are not
    those once saved, LostNeedError when they do not exist."""
    found = store.read_json(paths.scores_json(name))
    if found is None:
        raise LostNeedError(f"{name} has no scores", "run the sweep again: they are made anew")
    scores: Tensor = _read_weights(store, paths.scores_weights(name), found["digest"])[SCORES]
    return scores, found["digest"]
