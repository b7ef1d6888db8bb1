"""A scale: how a pilot differs from the sweep whose layout it keeps, as values and pure functions.

A pilot's points stay the full sweep's, since they carry the layout of its tables; what trains is
another point (`orchestrator.scaling`). The functions below map one axis each: steps and batches so
that different ones stay different, teacher presets onto those that a teacher reached.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from orchestrator.fieldtypes import Value

__all__ = [
    "Scale",
    "batch_map",
    "factor",
    "measuring_grid",
    "norm_batch_for",
    "pick_ends",
    "preset_map",
    "step_map",
    "workers_for",
]

GRID_POINTS = 5
"""Percentage points between the presets that a teacher of a pilot is measured at."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What a scale file says; None, 1 and empty leave things as they are.

    name: the suffix of a scaled sweep's name. max_steps: what its last step becomes. seeds, ipc:
    how many values of these axes are kept. backbones: name and width that replace a backbone, by
    name. settings: further settings by dotted name, those of the teacher among them. measured:
    teacher columns are mapped onto presets that the teacher reached.
    """

    name: str
    max_steps: int | None = None
    seeds: int | None = None
    ipc: int | None = None
    divide_batch: int = 1
    max_image_size: int | None = None
    backbones: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    max_workers: int | None = None
    settings: Mapping[str, Value] = field(default_factory=dict)
    measured: bool = False


def factor(steps: Iterable[int], max_steps: int | None) -> Fraction:
    """min(1, max_steps / largest step): a pilot is never longer than its sweep."""
    largest = max(steps, default=0)
    if max_steps is None or largest <= max_steps:
        return Fraction(1)
    return Fraction(max_steps, largest)


def step_map(steps: Iterable[int], max_steps: int | None) -> dict[int, int]:
    """Actual step by nominal step, ascending: in proportion, so that the largest becomes
    `max_steps`, and strictly increasing, so that rows stay apart. Where there are more steps than
    `max_steps`, the last one becomes their number."""
    ordered = sorted(set(steps))
    share = factor(ordered, max_steps)
    last = round(ordered[-1] * share) if ordered else 0
    found: dict[int, int] = {}
    before = 0
    for step in ordered:
        before = found[step] = max(before + 1, round(step * share))
    behind = max(last, len(ordered))
    for step in reversed(ordered):
        found[step] = min(found[step], behind)
        behind -= 1
    return found


def batch_map(batches: Iterable[int], divisor: int) -> dict[int, int]:
    """Actual batch by nominal batch, ascending: divided, at least 2 (batch-norm needs two samples),
    and strictly increasing. Never above the nominal one."""
    found: dict[int, int] = {}
    before = 0
    for batch in sorted(set(batches)):
        before = found[batch] = max(before + 1, min(batch, 2), batch // divisor)
    return found


def norm_batch_for(norm_batch: int, batch_of_worker: int, divisor: int) -> int:
    """The largest divisor of a worker's batch up to the divided norm_batch; at least 2, or all of
    the batch where nothing else divides it."""
    wanted = max(2, norm_batch // divisor)
    fitting = (size for size in range(2, wanted + 1) if batch_of_worker % size == 0)
    return max(fitting, default=batch_of_worker)


def workers_for(workers: int, batch: int, at_most: int | None) -> int:
    """The most workers, up to those asked and those allowed, that can share `batch`."""
    limit = workers if at_most is None else min(workers, at_most)
    return max(count for count in range(1, limit + 1) if batch % count == 0)


def pick_ends(values: Sequence[Value], at_most: int | None) -> tuple[Value, ...]:
    """At most so many of `values`, evenly spread, the first and the last among them."""
    if at_most is None or len(values) <= at_most:
        return tuple(values)
    if at_most == 1:
        return (values[0],)
    last = len(values) - 1
    return tuple(values[round(Fraction(index * last, at_most - 1))] for index in range(at_most))


def measuring_grid(presets: Iterable[float], num_classes: int) -> tuple[float, ...]:
    """Presets to measure a teacher at: every five points from chance up to the largest nominal one,
    and the nominal ones. Below chance nothing is found, and looking for it would never end."""
    nominal = set(presets)
    first = math.ceil(100 / num_classes / GRID_POINTS)
    last = int(max(nominal, default=0.0) // GRID_POINTS)
    return tuple(sorted({*nominal, *(float(GRID_POINTS * n) for n in range(first, last + 1))}))


def preset_map(presets: Iterable[float], reached: Iterable[float]) -> dict[float, float]:
    """Reached preset by nominal preset, strictly increasing; what finds no place is left out.

    All of them reached: each is itself. Else p goes to the reached preset nearest to
    lo + (p − min P)(hi − lo)/(max P − min P), among those that leave room for the presets above it;
    hi is the highest reached, lo is min P, or the lowest reached where min P was not. Too few
    reached: the highest find no place.
    """
    nominal, places = sorted(set(presets)), sorted(set(reached))
    if set(nominal) <= set(places):
        return {preset: preset for preset in nominal}
    found: dict[float, float] = {}
    first = 0
    for index, preset in enumerate(nominal):
        if first >= len(places):
            break
        room = max(first, len(places) - (len(nominal) - index))
        target = _stretched(preset, nominal, places)
        at = min(range(first, room + 1), key=lambda slot: (abs(places[slot] - target), slot))
        found[preset] = places[at]
        first = at + 1
    return found


def _stretched(preset: float, nominal: Sequence[float], places: Sequence[float]) -> float:
    span = nominal[-1] - nominal[0]
    if not span:
        return preset
    lowest = nominal[0] if nominal[0] in places else places[0]
    return lowest + (preset - nominal[0]) * (places[-1] - lowest) / span
