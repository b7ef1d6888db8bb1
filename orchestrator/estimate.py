"""How long a plan will take: from steps/s that were measured, never from a guess.

Measured in this store (rows of complete runs), or on the spot with `--calibrate`.
"""

from __future__ import annotations

import dataclasses
import io
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator import paths
from orchestrator.errors import StoreError
from orchestrator.plan import Plan
from orchestrator.store import Store
from orchestrator.units import Unit
from trainers.data.info import DatasetInfo
from trainers.spec import Backbone, StudentSpec, TargetsSpec

if TYPE_CHECKING:
    from trainers.data import ImageData

__all__ = ["Estimate", "Group", "calibrate", "estimate", "measured_rates"]

_SAMPLES = 5
"""Runs looked at for each group: their rates differ by a few per cent."""

_IMAGES = 512
"""Random images that `calibrate` trains on."""


@dataclass(frozen=True)
class Group:
    """Runs that take about equally long a step."""

    dataset: str
    backbone: Backbone
    batch_size: int
    strategy: str


@dataclass(frozen=True)
class Estimate:
    """seconds: of one run after the other, of those whose pace is known. unknown: runs without a
    measured pace. Teachers count with the steps of `teacher_steps` each: their searches end when
    they end."""

    seconds: float
    unknown: int


def group_of(unit: Unit) -> Group:
    spec = unit.spec
    assert not isinstance(spec, TargetsSpec)
    strategy = spec.strategy if isinstance(spec, StudentSpec) else "teacher"
    return Group(spec.dataset.name, spec.backbone, spec.batch_size, strategy)


def measured_rates(store: Store, plan: Plan) -> dict[Group, float]:
    """Median steps/s by group, from runs of this plan that the store holds."""
    seen: dict[Group, list[float]] = defaultdict(list)
    for unit in plan.units:
        if unit.kind == "targets" or plan.work[unit.name].action != "done":
            continue
        group = group_of(unit)
        if len(seen[group]) < _SAMPLES and (rate := _rate(store, unit.name)):
            seen[group].append(rate)
    return {group: median(rates) for group, rates in seen.items() if rates}


def _rate(store: Store, name: str) -> float | None:
    try:
        data = store.read_bytes(paths.metrics(name))
        table = pq.read_table(io.BytesIO(data), columns=["step", "wall_time_s"])
    except (StoreError, OSError, pa.ArrowException):
        return None
    last = max(table.to_pylist(), key=lambda row: row["step"], default=None)
    return last["step"] / last["wall_time_s"] if last and last["wall_time_s"] else None


def estimate(plan: Plan, rates: Mapping[Group, float], *, teacher_steps: int = 1_000) -> Estimate:
    """Seconds of device time that is left. A group without a rate takes the mean of its siblings
    (same data set, backbone and batch), if there are any."""
    seconds, unknown = 0.0, 0
    for unit in plan.left:
        if unit.kind == "targets":
            continue
        rate = rates.get(group_of(unit)) or _sibling(group_of(unit), rates)
        steps = plan.work[unit.name].steps
        if rate is None:
            unknown += 1
        else:
            seconds += (min(steps, teacher_steps) if unit.kind == "teacher" else steps) / rate
    return Estimate(seconds, unknown)


def _sibling(group: Group, rates: Mapping[Group, float]) -> float | None:
    alike = [
        rate
        for other, rate in rates.items()
        if dataclasses.replace(other, strategy=group.strategy) == group
    ]
    return sum(alike) / len(alike) if alike else None


def calibrate(
    infos: Mapping[str, DatasetInfo], units: Iterable[Unit], *, steps: int = 10
) -> dict[Group, float]:
    """Steps/s by measuring a few steps of strategy A of each model here, on this device, on random
    images of the data set's shape: no data is needed. Data sets of unknown shape are left out."""
    import torch

    from trainers.distributed import World
    from trainers.engine import configure
    from trainers.spec import Runtime
    from trainers.student import build_engine

    runtime = Runtime(device="cuda" if torch.cuda.is_available() else "cpu")
    configure(runtime)
    rates: dict[Group, float] = {}
    for unit in units:
        if not isinstance(unit.spec, StudentSpec):
            continue
        group = dataclasses.replace(group_of(unit), strategy="A")
        info = infos.get(group.dataset)
        if group in rates or info is None:
            continue
        dataset = dataclasses.replace(unit.spec.dataset, ipc=None, subset_seed=None)
        spec = dataclasses.replace(
            unit.spec, dataset=dataset, strategy="A", teacher=None, temperature=None
        )
        engine = build_engine(spec, _random_data(info), runtime, World())
        for _ in range(3):  # the first steps allocate
            engine.update()
        began = time.perf_counter()
        for _ in range(steps):
            engine.update()
        if runtime.device == "cuda":
            torch.cuda.synchronize()
        rates[group] = steps / (time.perf_counter() - began)
    return rates


def _random_data(info: DatasetInfo) -> ImageData:
    """A few images of the data set's shape. The order of samples repeats them to fill any batch."""
    import torch

    from trainers.data import ImageData

    generator = torch.Generator().manual_seed(0)
    shape = (_IMAGES, 3, info.image_size, info.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.arange(_IMAGES) % info.num_classes
    return ImageData(
        info=info,
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
