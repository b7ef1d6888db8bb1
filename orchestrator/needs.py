"""What a run learns from: its data set and, of other runs' files, teachers and strategy C's soft
targets.

Whatever of the latter is damaged raises DamagedFileError, whatever is gone LostNeedError: neither
is this run's to mend; its driver plans anew.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from orchestrator import paths
from orchestrator.errors import DamagedFileError, LostNeedError, StoreError
from orchestrator.identity import from_canonical, run_key
from orchestrator.store import Store
from orchestrator.weightsfiles import (
    read_kept_weights,
    read_scores,
    read_snapshot,
    read_snapshot_weights,
    teacher_name,
)
from trainers.data.images import ImageData
from trainers.data.prepared import load
from trainers.errors import TargetsError
from trainers.models import build_teacher
from trainers.spec import (
    Dataset,
    Runtime,
    Scoring,
    StudentSpec,
    TargetsSpec,
    TeacherRef,
    TeacherSpec,
    scores_spec,
    targets_spec,
)
from trainers.targets import SoftTargets, TargetsIdentity

__all__ = [
    "load_data",
    "load_scorer",
    "load_teacher",
    "open_mapping",
    "open_scores",
    "targets_identity",
    "teacher_with",
]


@lru_cache(maxsize=2)
def _load_data(folder: Path, image_size: int | None, threads: int | None) -> ImageData:
    """Verified and resized once per process; trials of one process share it."""
    return load(folder, image_size=image_size, threads=threads)


@lru_cache(maxsize=2)
def _data_on(path: Path, size: int | None, threads: int | None, device: torch.device) -> ImageData:
    """With its images on the device, unless they stay encoded: sent once per process, not once per
    run."""
    data = _load_data(path, size, threads)
    train, test = data.train_images, data.test_images
    if not (isinstance(train, Tensor) and isinstance(test, Tensor)):
        return data
    return dataclasses.replace(data, train_images=train.to(device), test_images=test.to(device))


def load_data(store: Store, dataset: Dataset, runtime: Runtime) -> ImageData:
    """The run's images, on its device. Raises StoreError where the store has another data set of
    this name."""
    folder = store.local(paths.dataset_dir(dataset.name))
    threads, device = runtime.decode_threads, torch.device(runtime.device)
    data = _data_on(folder, dataset.image_size, threads, device)
    if data.info.fingerprint != dataset.fingerprint:
        raise StoreError(
            f"data set {dataset.name} of this store is not the one this run was planned with "
            f"({data.info.fingerprint[:16]}, wanted {dataset.fingerprint[:16]})",
            "plan again; a data set of other content gets other run keys",
        )
    return data


def load_teacher(store: Store, ref: TeacherRef, data: ImageData) -> tuple[nn.Module, str]:
    """The snapshot as a module, on the CPU, and its digest."""
    name = teacher_name(ref)
    run = store.read_json(paths.run_json(name))
    if run is None:
        raise LostNeedError(f"{name} has no run.json", "run the sweep again")
    spec = from_canonical(run["spec"])
    assert isinstance(spec, TeacherSpec)
    weights, digest = read_snapshot_weights(store, ref)
    return teacher_with(spec, data, weights), digest


def teacher_with(spec: TeacherSpec, data: ImageData, weights: dict[str, Tensor]) -> nn.Module:
    """A teacher with these weights, on the CPU."""
    model = build_teacher(
        spec.backbone, image_size=data.info.image_size, num_classes=data.info.num_classes,
        seed=spec.seed,
    )  # fmt: skip
    model.load_state_dict(weights)
    return model


def targets_identity(spec: TargetsSpec, digest: str) -> TargetsIdentity:
    return TargetsIdentity(
        teacher_digest=digest,
        dataset_fingerprint=spec.dataset.fingerprint,
        split=spec.split,
        view=spec.stored_view,
        temperature=spec.temperature,
        dtype=spec.dtype,
    )


def open_mapping(
    store: Store, spec: StudentSpec, data: ImageData
) -> tuple[nn.Module | None, SoftTargets | None, str | None]:
    """Strategy B's teacher or strategy C's targets, and the digest of the snapshot behind them."""
    if spec.teacher is None:
        return None, None, None
    if spec.strategy == "B":
        teacher, digest = load_teacher(store, spec.teacher, data)
        return teacher, None, digest
    assert spec.temperature is not None
    digest = read_snapshot(store, spec.teacher)["digest"]
    wanted = targets_spec(
        spec.dataset, spec.teacher, spec.temperature,
        num_classes=data.info.num_classes, view=spec.target_view,
    )  # fmt: skip
    rel = paths.targets_file(wanted, digest)
    return None, _open_targets(store, rel, targets_identity(wanted, digest)), digest


def _open_targets(store: Store, rel: str, identity: TargetsIdentity) -> SoftTargets:
    """DamagedFileError when the file is not what its name says, LostNeedError when it is gone."""
    if not store.exists(rel):
        raise LostNeedError(f"{rel} is gone", "run the sweep again: it is made anew")
    try:
        return SoftTargets(store.local(rel), identity)
    except TargetsError as error:
        raise DamagedFileError(rel, error.problem) from error


def open_scores(store: Store, spec: StudentSpec) -> tuple[Tensor | None, str | None]:
    """What a student selects by, (N,), and the digest; None where it does not select."""
    if spec.selection is None:
        return None, None
    key = run_key(scores_spec(spec.dataset, spec.selection.scoring))
    return read_scores(store, paths.run_name("scores", key))


def load_scorer(
    store: Store, scoring: Scoring
) -> tuple[StudentSpec | None, list[dict[str, Tensor]], list[str]]:
    """The student that scores, its weights at each of `scoring.steps`, and their digests; none of
    them for `random`."""
    if scoring.student is None:
        return None, [], []
    name = paths.run_name("student", scoring.student.key)
    run = store.read_json(paths.run_json(name))
    if run is None:
        raise LostNeedError(f"{name} has no run.json", "run the sweep again")
    spec = from_canonical(run["spec"])
    assert isinstance(spec, StudentSpec)
    kept = [read_kept_weights(store, name, step) for step in scoring.steps]
    return spec, [weights for weights, _ in kept], [record["digest"] for _, record in kept]
