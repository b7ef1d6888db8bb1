"""Weights and checkpoints in bundles: what goes along, in which form, and how it is read again.

Snapshots go as they are where that is within the limit: then a student elsewhere learns from the
very same teacher. Larger ones go as 16-bit floats where those are within it, each measured on the
whole test set before it leaves, because it is another teacher then (`bundlesnapshots`). What is
larger still is left out, with a line. A checkpoint is a run's last resumable state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import Tensor

from orchestrator import paths
from orchestrator.bundlefile import Member
from orchestrator.errors import StoreError
from orchestrator.identity import from_canonical
from orchestrator.needs import teacher_with
from orchestrator.runrecord import RunRecord
from orchestrator.store import Store, store_errors
from trainers.checkpoint import (
    check_state,
    dump_weights,
    parse_state,
    parse_weights,
    weights_digest,
)
from trainers.data.prepared import load
from trainers.distributed import World
from trainers.engine import configure
from trainers.errors import TrainerError
from trainers.evaluate import evaluation_set, percent, teacher_heads
from trainers.presets import ROUNDING, TOLERANCE
from trainers.spec import Runtime, TeacherSpec

__all__ = [
    "MAX_CHECKPOINT_MB",
    "MAX_TEACHER_MB",
    "Carried",
    "Limits",
    "StateGoneError",
    "carry",
    "decoded",
    "state_fault",
    "weights_fault",
]

MAX_TEACHER_MB = 25.0
"""A full-width ResNet-18 is 44.7 MB, and 22.4 MB in 16 bits."""
MAX_CHECKPOINT_MB = 200.0
"""A full-width ResNet-18 with AdamW's moments is 134 MB."""

_DTYPES = ("float32", "float16")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a bundle takes beside the records. MB of one file; None: none of its kind."""

    teacher_mb: float | None = None
    checkpoint_mb: float | None = None


@dataclass
class Carried:
    """files: members of the bundle. left_out: a line each for what did not go along. spool: folder
    for temporary copies, None: where such files go. A context, in which they can be read."""

    spool: Path | None
    files: dict[str, Member] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    _copies: ExitStack = field(default_factory=ExitStack)
    _folder: Store | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._copies.close()

    def keep(self, file: str, data: bytes) -> None:
        """Adds what its run may replace before it is written."""
        if self._folder is None:
            with store_errors("write", str(self.spool or "temporary copies")):
                folder = TemporaryDirectory(prefix=".targetsweep-export-", dir=self.spool)
            self._folder = Store(self._copies.enter_context(folder))
        self._folder.write_bytes(file, data)
        self.files[file] = _reading(self._folder, file)


class StateGoneError(Exception):
    """The run has saved a later state since its record was read."""


# -- out of a store -----------------------------------------------------------------------------


def carry(
    store: Store, record: RunRecord, presets: frozenset[str], limits: Limits, carried: Carried
) -> RunRecord:
    """The record with what goes along of its run; its files are added to `carried`. presets: those
    that somebody learns from, as in file names. Checkpoints are those of teachers and students: a
    probe's student, and what a student selects by, do not travel. Raises StateGoneError, with
    nothing added, where the record's checkpoint was replaced."""
    record = _with_state(store, record, limits.checkpoint_mb, carried)
    weights: dict[str, dict[str, Any]] = {}
    if limits.teacher_mb is not None and record.kind == "teacher":
        for preset in sorted(presets & record.snapshots.keys(), key=float):
            try:
                weights[preset] = _snapshot(store, record, preset, limits.teacher_mb, carried)
            except (StoreError, TrainerError, _LeftOutError) as error:
                reason = error.problem if isinstance(error, StoreError | TrainerError) else error
                carried.left_out.append(f"weights of {record.name} at {preset}%: {reason}")
    return replace(record, weights=weights)


class _LeftOutError(Exception):
    """Why a file cannot go along."""


def _snapshot(
    store: Store, record: RunRecord, preset: str, limit_mb: float, carried: Carried
) -> dict[str, Any]:
    snapshot = record.snapshots[preset]
    rel = paths.snapshot_weights(record.name, float(preset))
    if not store.exists(rel):
        raise _LeftOutError("they are not in this store")
    data = store.read_bytes(rel)
    if weights_digest(data) != snapshot["digest"]:
        raise _LeftOutError("their digest does not fit: targetsweep store check says more")
    digest, accuracy, dtype = snapshot["digest"], snapshot["accuracy"], "float32"
    if len(data) > limit_mb * 1e6:
        data, dtype = _halved(data), "float16"
        if len(data) > limit_mb * 1e6:
            raise _LeftOutError(
                f"{len(data) / 1e6:.1f} MB as 16-bit floats, more than --max-teacher-mb "
                f"{limit_mb:g}"
            )
        widened = decoded(data, dtype)
        digest = weights_digest(widened)
        if digest != snapshot["digest"]:  # else a copy already: nothing is lost again
            accuracy = _measured(store, record, widened)
        if not _is_near(accuracy, preset):
            raise _LeftOutError(f"as 16-bit floats it is a teacher of {accuracy:.2f}%")
    file = f"snapshot-{digest[:16]}.safetensors"
    carried.files[file] = data
    return {"file": file, "digest": digest, "accuracy": accuracy, "dtype": dtype}


def _is_near(accuracy: float, preset: str) -> bool:
    return abs(accuracy - float(preset)) <= TOLERANCE + ROUNDING


def _halved(data: bytes) -> bytes:
    """Floats of 32 bits in 16; counters and whatever else as they are."""
    halved = _cast(parse_weights(data), torch.float32, torch.float16)
    if not all(bool(w.isfinite().all()) for w in halved.values()):
        raise _LeftOutError("some weights are beyond what 16-bit floats hold")
    return dump_weights(halved)


def decoded(data: bytes, dtype: str) -> bytes:
    """A snapshot's file as a store has it, from the one in a bundle."""
    if dtype == "float32":
        return data
    return dump_weights(_cast(parse_weights(data), torch.float16, torch.float32))


def _cast(weights: Mapping[str, Tensor], old: torch.dtype, new: torch.dtype) -> dict[str, Tensor]:
    return {name: w.to(new) if w.dtype == old else w for name, w in weights.items()}


def _measured(store: Store, record: RunRecord, data: bytes) -> float:
    """Top-1 (percent) on the whole test set, in the precision that the teacher was harvested in."""
    spec = from_canonical(record.spec)
    assert isinstance(spec, TeacherSpec)
    name = spec.dataset.name
    if not store.exists(paths.dataset_meta(name)):
        raise _LeftOutError(
            f"too large but as 16-bit floats, and those cannot be measured: {store.uri} has no "
            f"data set {name}"
        )
    images = load(Path(store.local(paths.dataset_dir(name))), image_size=spec.dataset.image_size)
    if images.info.fingerprint != spec.dataset.fingerprint:
        raise _LeftOutError(f"the data set {name} of this store is not the one it learnt from")
    # On a GPU, though its context then stays with this process, a run's driver too, until it ends:
    # by then the trials have ended, and a time box counts on a short end. A core of an EPYC takes
    # 3 minutes for one full-width ResNet-18 on CIFAR-10's test set, and 22 in bf16.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    configure(Runtime(device=device.type, threads=torch.get_num_threads()))
    model = teacher_with(spec, images, parse_weights(data))
    test = evaluation_set(images, device=device, world=World.current(), precision=spec.precision)
    return percent(test.correct(model.to(device), teacher_heads)[0], test.count)


def _with_state(
    store: Store, record: RunRecord, limit_mb: float | None, carried: Carried
) -> RunRecord:
    goes_on = record.kind in ("teacher", "student") and "selection" not in record.spec
    if limit_mb is None or record.state is None or not goes_on:
        return replace(record, state=None)
    step = int(record.state["step"])
    rel = paths.checkpoint(record.name, paths.step_name(step))
    try:
        data = store.read_bytes(rel)
        check_state(data)
    except (StoreError, TrainerError) as error:
        if not store.exists(rel):
            raise StateGoneError(rel) from error
        carried.left_out.append(f"checkpoint of {record.name}: {error.problem}")
        return replace(record, state=None)
    if len(data) > limit_mb * 1e6:
        carried.left_out.append(
            f"checkpoint of {record.name}: {len(data) / 1e6:.1f} MB, more than "
            f"--max-checkpoint-mb {limit_mb:g}"
        )
        return replace(record, state=None)
    digest = _learnt_from(store, record)
    if digest is None and "teacher" in record.spec:
        carried.left_out.append(f"checkpoint of {record.name}: its teacher's snapshot is gone")
        return replace(record, state=None)
    file = f"state-{record.name}.ckpt"
    carried.keep(file, data)  # a driver at work may extend any run and drop it
    return replace(record, state={"file": file, "step": step, "teacher_digest": digest})


def _learnt_from(store: Store, record: RunRecord) -> str | None:
    """Digest of the snapshot behind a student, which says it itself when it is complete."""
    teacher = record.spec.get("teacher")
    if record.result is not None or not teacher:
        return (record.result or {}).get("teacher_digest")
    name = paths.run_name("teacher", teacher["key"])
    snapshot = store.read_json(paths.snapshot_json(name, float(teacher["accuracy"])))
    return (snapshot or {}).get("digest")


def _reading(store: Store, rel: str) -> Callable[[], bytes]:
    """Read when it is written: a bundle may hold more checkpoints than fit into memory."""
    return lambda: store.read_bytes(rel)


# -- out of a bundle ----------------------------------------------------------------------------


def weights_fault(record: RunRecord, preset: str, read: Callable[[str], bytes]) -> str | None:
    """Why these are not the weights that the record speaks of. read: a file of the bundle."""
    entry, snapshot = record.weights[preset], record.snapshots.get(preset)
    if snapshot is None or entry["dtype"] not in _DTYPES:
        return f"weights {preset} are of none of its snapshots"
    try:
        digest = weights_digest(decoded(read(entry["file"]), entry["dtype"]))
    except TrainerError as error:
        return f"weights {preset}: {error.problem}"
    if digest != entry["digest"]:
        return f"weights {preset} are not those of their digest"
    if digest == snapshot["digest"]:
        return None
    is_copy = entry["dtype"] == "float16" and _is_near(float(entry["accuracy"]), preset)
    return None if is_copy else f"weights {preset} are not those of the snapshot"


def state_fault(record: RunRecord, read: Callable[[str], bytes]) -> str | None:
    """Why this is no resumable state of the run."""
    assert record.state is not None
    try:
        step = parse_state(read(record.state["file"])).get("step")
    except TrainerError as error:
        return f"its checkpoint: {error.problem}"
    if step != record.state["step"] or record.table is None:
        return "its checkpoint is of another step, or of a run without rows"
    return None
