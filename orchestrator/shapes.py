"""How many devices a unit takes, from the sweep's `scaling`, the options and what there is."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.admission import Shape
from orchestrator.errors import MachineError
from orchestrator.units import Unit

__all__ = ["refuse_unfit", "shape_of"]


def shape_of(
    unit: Unit,
    *,
    use_gpu: bool,
    devices: float,
    workers_per_run: int | None = None,
    gpus_per_run: float | None = None,
    auto_share: float = 1.0,
) -> Shape:
    """devices: of a node; a run whose workers are `auto` takes no more. workers_per_run and
    gpus_per_run stand above the sweep's own: 0.5 shares a GPU between two one-worker runs; 4 makes
    every run four workers of one GPU each. auto_share: of a GPU, where the sweep leaves that to
    `auto` (`Sharing.share`). Without GPUs a worker takes a CPU slot."""
    wide = int(gpus_per_run) if use_gpu and gpus_per_run and gpus_per_run > 1 else None
    given = workers_per_run or wide
    workers = given or unit.workers
    if unit.workers_auto and not given:
        workers = _most_workers(unit, min(workers, int(devices)))
    if unit.kind == "targets":
        workers = 1
    own = auto_share if unit.gpus_auto else unit.gpus_per_worker
    share = min(gpus_per_run or own, 1.0) if use_gpu and workers == 1 else 1.0
    return Shape(workers=workers, devices_per_worker=share)


def _most_workers(unit: Unit, at_most: int) -> int:
    fitting = (count for count in range(1, at_most + 1) if _misfit(unit, count) is None)
    return max(fitting, default=1)


def _misfit(unit: Unit, workers: int) -> tuple[str, str] | None:
    """Why its batch cannot be shared by so many, and what to do; None where it can."""
    batch = getattr(unit.spec, "batch_size", 0)
    if batch % workers:
        return (
            f"has batches of {batch}, which {workers} workers cannot share",
            "choose a number of workers that divides training.batch_size",
        )
    norm_batch = getattr(unit.spec, "norm_batch", None)
    if norm_batch is not None and batch // workers % norm_batch:
        return (
            f"has norm_batch {norm_batch}, which does not divide what each of {workers} workers "
            f"sees, {batch // workers} samples",
            "choose another number of workers",
        )
    return None


def refuse_unfit(pairs: Iterable[tuple[Unit, Shape]], total: float, *, use_gpu: bool) -> None:
    """Before any trial starts. Raises MachineError for runs that no device could take, or whose
    batch cannot be split. total: devices in all."""
    kind = "GPUs" if use_gpu else "CPU slots"
    for unit, shape in pairs:
        if misfit := _misfit(unit, shape.workers):
            raise MachineError(f"{unit.label} {misfit[0]}", misfit[1])
        if shape.devices > total + 1e-9:
            raise MachineError(
                f"{unit.label} wants {shape.devices:g} {kind} ({shape.workers} workers), but only "
                f"{total:g} are there",
                "lower scaling.workers or --workers-per-run, or leave them to `auto`",
            )
