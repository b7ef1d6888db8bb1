"""How many students share a GPU where a sweep leaves it to `auto`: as many as got most done where
that was measured, one elsewhere.

`sweeps/sharing.json` holds what `benchmarks/sharing.py` measured: the images/s of 1, 2, 4 and 8
students of strategy A that train on one GPU at once, in all, by GPU, model and batch. Nothing is
guessed: what the table does not name gets a GPU of its own. So do teachers, on which others wait
and whose validations fill a GPU, and probes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from orchestrator.devices import usable_gpus
from orchestrator.errors import StoreError
from orchestrator.labels import backbone_name
from orchestrator.units import Unit
from trainers.data.info import DatasetInfo
from trainers.spec import Backbone, StudentSpec

__all__ = [
    "Choice",
    "Load",
    "Measured",
    "Sharing",
    "gpu_model",
    "local_gpus",
    "most_runs",
    "parse_table",
    "shipped_table",
]

_NEAR = 0.98
"""Share of the best total that counts as the best: fewer runs take less memory and end earlier."""

_RAY_UNITS = 10_000
"""Ray counts resources in so many parts."""


@dataclass(frozen=True)
class Load:
    """What decides how well runs share a GPU. image_size: pixels; None where nobody knows yet."""

    backbone: Backbone
    batch_size: int
    image_size: int | None
    precision: str

    def __str__(self) -> str:
        size = "" if self.image_size is None else f" {self.image_size}px"
        name = backbone_name(self.backbone)
        return f"{name}{size} batch {self.batch_size} {self.precision}"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """images_per_s: of all runs together, by how many there were; that of one is among them."""

    gpu: str
    load: Load
    images_per_s: Mapping[int, float]
    date: str

    @property
    def best(self) -> int:
        """The fewest runs whose total is near the highest."""
        highest = max(self.images_per_s.values())
        return min(runs for runs, total in self.images_per_s.items() if total >= _NEAR * highest)

    @property
    def gain(self) -> float:
        """Total of the best number of runs, over that of one."""
        return self.images_per_s[self.best] / self.images_per_s[1]


@dataclass(frozen=True)
class Choice:
    """runs: at once on one GPU. why: for people."""

    load: Load
    runs: int
    why: str


class Sharing:
    """gpus: names of the GPUs that are there, as torch or Ray say them; with several kinds of them,
    what suits all is chosen. infos: for the image size of data sets that say none."""

    def __init__(
        self, table: Sequence[Measured], gpus: Collection[str], infos: Mapping[str, DatasetInfo]
    ) -> None:
        self._gpus = sorted(set(gpus))
        self._infos = infos
        self._measured = {(gpu_model(row.gpu), row.load): row for row in table}

    def share(self, unit: Unit, at_most: int) -> float:
        """What a one-worker unit takes of a GPU. at_most: runs on one (`most_runs`). Rounded down
        to Ray's four decimals: six times its 1/6, which is 0.1667, are more than one."""
        if not unit.gpus_auto or not isinstance(unit.spec, StudentSpec):
            return unit.gpus_per_worker
        runs = min(self._choice(self._load(unit.spec)).runs, at_most)
        return math.floor(_RAY_UNITS / runs) / _RAY_UNITS

    def choices(self, units: Iterable[Unit]) -> list[Choice]:
        """What is chosen for the students among the units that leave it open, each load once."""
        loads = {
            self._load(unit.spec): None
            for unit in units
            if unit.gpus_auto and unit.workers == 1 and isinstance(unit.spec, StudentSpec)
        }
        return [self._choice(load) for load in loads]

    def _load(self, spec: StudentSpec) -> Load:
        info = self._infos.get(spec.dataset.name)
        size = spec.dataset.image_size or (info.image_size if info else None)
        return Load(spec.backbone, spec.batch_size, size, spec.precision)

    def _choice(self, load: Load) -> Choice:
        """The most cautious of the GPUs' own."""
        if not self._gpus:
            return Choice(load, 1, "there is no GPU to look up")
        return min((self._on(gpu, load) for gpu in self._gpus), key=lambda choice: choice.runs)

    def _on(self, gpu: str, load: Load) -> Choice:
        row = self._measured.get((gpu_model(gpu), load))
        if row is None:
            return Choice(load, 1, f"nothing measured on {gpu or 'a GPU that Ray does not name'}")
        why = f"{row.gain:.2f} × the images/s of one, measured on {row.gpu} on {row.date}"
        return Choice(load, row.best, why)


def most_runs(students: int, nodes: Iterable[tuple[float, float]]) -> int:
    """How many of `students` may be put on one GPU: no more than keep all GPUs busy, and no more
    than there are cores, since each takes one. nodes: GPUs and cores of each."""
    rooms = [(gpus, cpus) for gpus, cpus in nodes if gpus >= 1]
    devices = sum(gpus for gpus, _ in rooms)
    cores = min((int(cpus / gpus) for gpus, cpus in rooms), default=1)
    return max(1, min(math.ceil(students / max(devices, 1.0)), cores))


def gpu_model(name: str) -> str:
    """The model in a GPU's full name: H200 of `NVIDIA H200`, A100 of `NVIDIA A100-SXM4-80GB`, as
    Ray names a node's `accelerator_type`; what is no full name is taken for a model."""
    maker, *words = name.split() or [""]
    if not words:
        return maker
    kept: list[str] = []
    for word in words:
        stem = word.partition("-")[0]
        kept.append(stem)
        if stem != stem.upper():
            break  # a consumer's card, all of whose name tells
        if any(letter.isdigit() for letter in stem):
            return "-".join(kept)
    return "-".join(words if maker == "NVIDIA" else (maker, *words))


def local_gpus() -> tuple[str, ...]:
    """Names of the GPUs of this machine."""
    import torch

    return tuple(torch.cuda.get_device_name(index) for index in range(usable_gpus()))


def shipped_table() -> list[Measured]:
    """What came with the package."""
    text = resources.files("sweeps").joinpath("sharing.json").read_text(encoding="utf-8")
    return parse_table(json.loads(text))


def parse_table(data: Any) -> list[Measured]:
    """The rows of a table (`sweeps/sharing.json`). Raises StoreError when it is none."""
    try:
        return [_row(row) for row in data["measured"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"the table of shared GPUs cannot be read: {error!r}") from error


def _row(row: Mapping[str, Any]) -> Measured:
    totals = {int(runs): float(total) for runs, total in row["images_per_s"].items()}
    if 1 not in totals or min(totals) < 1 or min(totals.values()) <= 0:
        raise ValueError(f"images_per_s is {totals}")
    load = Load(
        Backbone(**row["backbone"]),
        int(row["batch_size"]),
        int(row["image_size"]),
        str(row["precision"]),
    )
    return Measured(gpu=str(row["gpu"]), load=load, images_per_s=totals, date=str(row["date"]))
