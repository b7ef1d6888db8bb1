"""Every relative path inside a store, in one place (see docs/architecture.md, "The store").

Paths are POSIX strings relative to the store, because a store may be a bucket. Names come from
sweep files, so each one passes `safe_name`: none of them can leave the store or hide in it.
"""

from __future__ import annotations

import re

from orchestrator.errors import StoreError
from trainers.spec import TargetsSpec

__all__ = [
    "checkpoint",
    "checkpoint_dir",
    "control_dir",
    "damaged_dir",
    "dataset_dir",
    "dataset_meta",
    "datasets_dir",
    "drain_flag",
    "failure",
    "hang",
    "imported_json",
    "job_json",
    "kept_json",
    "kept_weights",
    "lease",
    "listing_probe",
    "metrics",
    "mlartifacts_dir",
    "mlflow_db",
    "overheads",
    "plan_json",
    "preset_name",
    "probe",
    "progress",
    "report_dir",
    "request_json",
    "result",
    "run_dir",
    "run_json",
    "run_name",
    "runs_dir",
    "safe_name",
    "scores_json",
    "scores_weights",
    "sealing",
    "snapshot_json",
    "snapshot_weights",
    "snapshots_dir",
    "step_name",
    "stop_flag",
    "store_id",
    "sweep_dir",
    "sweeps_dir",
    "targets_dir",
    "targets_file",
    "tracking_json",
]

_SAFE = re.compile(r"[A-Za-z0-9_+=@%,-][A-Za-z0-9._+=@%, -]{0,199}")
_DTYPES = {"float32": "f32", "float16": "f16"}


def safe_name(name: str) -> str:
    """`name` as one path component; StoreError when it holds separators or `..`, or hides."""
    if _SAFE.fullmatch(name) is None or ".." in name:
        raise StoreError(
            f"{name!r} cannot name a file of the store",
            "use letters, digits, '-', '_' and '.' (not first), at most 200 of them",
        )
    return name


def preset_name(preset: float) -> str:
    """A teacher accuracy (percent) as it appears in file names: 30 -> `30`, 12.5 -> `12.5`."""
    return f"{preset:g}"


def step_name(step: int) -> str:
    """`step-00000300`: a state or weights of that step in file names, which then sort by step."""
    return f"step-{step:08d}"


def run_name(kind: str, key: str) -> str:
    """`student-0123456789abcdef`: a run's folder, from its kind and its 64-digit key."""
    return safe_name(f"{kind}-{key[:16]}")


def runs_dir() -> str:
    return "runs"


def run_dir(name: str) -> str:
    return f"runs/{safe_name(name)}"


def run_json(name: str) -> str:
    return f"{run_dir(name)}/run.json"


def request_json(name: str) -> str:
    return f"{run_dir(name)}/request.json"


def metrics(name: str) -> str:
    return f"{run_dir(name)}/metrics.parquet"


def result(name: str) -> str:
    return f"{run_dir(name)}/result.json"


def failure(name: str) -> str:
    return f"{run_dir(name)}/failure.json"


def hang(name: str, rank: int) -> str:
    """The stacks of a worker that hung; its first line names the attempt."""
    return f"{run_dir(name)}/hang-{rank}.txt"


def imported_json(name: str) -> str:
    """Which bundles brought parts of the run."""
    return f"{run_dir(name)}/imported.json"


def checkpoint_dir(name: str) -> str:
    return f"{run_dir(name)}/checkpoint"


def checkpoint(name: str, stem: str) -> str:
    """stem: `step-00000300`, or `acc-30` for a checkpoint a teacher keeps."""
    return f"{checkpoint_dir(name)}/{safe_name(stem)}.ckpt"


def listing_probe(name: str) -> str:
    """Beside the states, for a moment (`Records.load_state`); hidden, so no listing has it."""
    return f"{checkpoint_dir(name)}/.listing"


def snapshots_dir(name: str) -> str:
    return f"{run_dir(name)}/snapshots"


def snapshot_weights(name: str, preset: float) -> str:
    return f"{snapshots_dir(name)}/acc-{preset_name(preset)}.safetensors"


def snapshot_json(name: str, preset: float) -> str:
    """Written after the weights: this file makes the snapshot exist."""
    return f"{snapshots_dir(name)}/acc-{preset_name(preset)}.json"


def kept_weights(name: str, step: int) -> str:
    """The weights a student kept at a step, for its probes."""
    return f"{snapshots_dir(name)}/{step_name(step)}.safetensors"


def kept_json(name: str, step: int) -> str:
    """Written after the weights: this file makes them exist."""
    return f"{snapshots_dir(name)}/{step_name(step)}.json"


def scores_weights(name: str) -> str:
    """The scores of a training set, one tensor."""
    return f"{snapshots_dir(name)}/scores.safetensors"


def scores_json(name: str) -> str:
    """Written after the scores: this file makes them exist."""
    return f"{snapshots_dir(name)}/scores.json"


def targets_dir() -> str:
    return "targets"


def targets_file(spec: TargetsSpec, digest: str) -> str:
    """digest: SHA-256 of the teacher snapshot's weights. The teacher is named as well: at their
    random initialisation those of several data sets have the same weights."""
    stem = f"{digest[:16]}-{spec.teacher.key[:8]}-{spec.split}-{spec.stored_view}"
    stem += f"-T{spec.temperature:g}-{_DTYPES[spec.dtype]}"
    return f"targets/{safe_name(stem)}.arrow"


def dataset_dir(name: str) -> str:
    return f"datasets/{safe_name(name)}"


def datasets_dir() -> str:
    return "datasets"


def dataset_meta(name: str) -> str:
    """Written last: this file makes the data set exist."""
    return f"{dataset_dir(name)}/meta.json"


def sweeps_dir() -> str:
    return "sweeps"


def sweep_dir(sweep: str) -> str:
    return f"sweeps/{safe_name(sweep)}"


def plan_json(sweep: str) -> str:
    return f"{sweep_dir(sweep)}/plan.json"


def tracking_json(sweep: str) -> str:
    return f"{sweep_dir(sweep)}/tracking.json"


def report_dir(sweep: str) -> str:
    return f"{sweep_dir(sweep)}/report"


def control_dir() -> str:
    return "control"


def stop_flag(driver: str = "") -> str:
    """There while the trials of this driver (`lease.Holder.id`) are asked to checkpoint and stop.
    It names the driver, so that it cannot outlive the one it was meant for."""
    return f"control/stop-{safe_name(driver)}" if driver else "control/stop"


def job_json() -> str:
    """The Ray job that drives the store, or drove it last."""
    return "control/job.json"


def drain_flag(node_id: str) -> str:
    """Exists while a Ray node is about to leave: what runs there checkpoints and ends."""
    return f"control/drain-{safe_name(node_id)}"


def progress() -> str:
    """What the driver last said of its runs (`orchestrator.bulletin`); there while it drives."""
    return "control/progress.json"


def store_id() -> str:
    """Tells stores apart where several report to one MLflow server."""
    return "control/store.json"


def overheads() -> str:
    """Seconds that the last `run` spent around its training (`orchestrator.overheads`)."""
    return "control/overheads.json"


def probe() -> str:
    """Written to find out whether the store can be written at all."""
    return "control/probe"


def sealing() -> str:
    """Exists while `store check --seal` is not through: until then some files have no seal."""
    return "control/sealing"


def damaged_dir() -> str:
    """Damaged files that were set aside; nothing reads them."""
    return "damaged"


def lease() -> str:
    return "lease.json"


def mlflow_db() -> str:
    return "mlflow.db"


def mlartifacts_dir() -> str:
    return "mlartifacts"
