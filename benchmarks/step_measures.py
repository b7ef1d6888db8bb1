"""From the turns of the step benchmark to the rows of its tables and of its JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rounds import Spread, Turn, spread

__all__ = ["Measure", "measures", "per_step"]

Rounds = list[dict[str, Turn]]

_EPOCH_IMAGES, _TEST_IMAGES = 390 * 128, 10_000
"""What an epoch of CIFAR-10 trains on (the rest of 50,000 is dropped), and what it is tested on."""

_VALIDATIONS_AN_EPOCH = 10
"""The paper's rate."""


@dataclass(frozen=True)
class Measure:
    """One row: a name, the goal it has (in words), a value a round, and the same from the sums of
    all rounds, which rare costs (a new block of random draws) are in too. on_cpu: the ratio of
    processor times, which other processes on the machine hardly change; None where it says nothing.
    """

    name: str
    goal: str
    spread: Spread
    pooled: float
    on_cpu: Spread | None = None

    def as_json(self) -> dict[str, Any]:
        found = {"measure": self.name, "goal": self.goal, **self.spread.as_json()}
        found["pooled"] = float(f"{self.pooled:.5g}")
        return found | ({} if self.on_cpu is None else {"on_cpu": self.on_cpu.as_json()})


def measures(rounds: Rounds, *, on_cpu: bool) -> list[Measure]:
    """What can be said of the contenders that took part. on_cpu: they ran on one."""
    return list(_measures(rounds, on_cpu))


def _measures(rounds: Rounds, on_cpu: bool) -> Iterator[Measure]:
    there = set(rounds[0])
    ratios = (
        ("A", "floor", "≤ 1.10"),
        ("A", "floor, eager", ""),
        ("floor, NCHW", "floor", ""),
        ("C", "A", "≤ 1.02"),
        ("B", "A", "≤ 1.40"),
    )
    for over, under, goal in ratios:
        if {over, under} <= there:
            yield _ratio(rounds, over, under, f"step of {over} / {under}", goal, on_cpu)
    if "A" in there:
        yield _rate(rounds, "A", "≥ 60,000 (one H200, bf16, width 64)")
    if {"A", "Lightning"} <= there:
        yield _ratio(rounds, "Lightning", "A", "images/s of A / Lightning", "≥ 8 (one H200)", False)
    if {"B", "torchdistill"} <= there:
        yield _ratio(rounds, "torchdistill", "B", "images/s of B / torchdistill", "", False)
    if {"A", "evaluation"} <= there:
        yield _validation_share(rounds)


def _ratio(rounds: Rounds, over: str, under: str, name: str, goal: str, with_cpu: bool) -> Measure:
    """Time an image of `over` by that of `under`: the rate of `under` by that of `over`."""
    pooled = _pooled(rounds, over) / _pooled(rounds, under)
    values = [_image_s(turns[over]) / _image_s(turns[under]) for turns in rounds]
    cpu = [_image_cpu_s(turns[over]) / _image_cpu_s(turns[under]) for turns in rounds]
    return Measure(name, goal, spread(values), pooled, spread(cpu) if with_cpu else None)


def _rate(rounds: Rounds, name: str, goal: str) -> Measure:
    values = [1 / _image_s(turns[name]) for turns in rounds]
    return Measure(f"images/s of {name}", goal, spread(values), 1 / _pooled(rounds, name))


def _validation_share(rounds: Rounds) -> Measure:
    shares = [_share(_image_s(turns["A"]), _image_s(turns["evaluation"])) for turns in rounds]
    pooled = _share(_pooled(rounds, "A"), _pooled(rounds, "evaluation"))
    return Measure(
        "validation's share of a run, 10 an epoch", "≤ 0.15 (GPU)", spread(shares), pooled
    )


def _share(step_image_s: float, test_image_s: float) -> float:
    """Of the time of an epoch of CIFAR-10: that of evaluating the test set ten times in it."""
    tested = _VALIDATIONS_AN_EPOCH * _TEST_IMAGES * test_image_s
    return tested / (tested + _EPOCH_IMAGES * step_image_s)


def _image_s(turn: Turn) -> float:
    return turn.wall_s / turn.images


def _image_cpu_s(turn: Turn) -> float:
    return turn.cpu_s / turn.images


def _pooled(rounds: Rounds, name: str) -> float:
    """Seconds an image over all rounds."""
    return sum(turns[name].wall_s for turns in rounds) / sum(turns[name].images for turns in rounds)


def per_step(rounds: Rounds, batch: int) -> dict[str, dict[str, Any]]:
    """Milliseconds a step of `batch` images by contender: the spread over rounds, each round's
    value, and the median processor time. For the evaluation it is a batch's share of it."""
    found = {}
    for name in rounds[0]:
        wall_ms = [1000 * batch * _image_s(turns[name]) for turns in rounds]
        cpu_ms = [1000 * batch * _image_cpu_s(turns[name]) for turns in rounds]
        about = spread(wall_ms)
        found[name] = {
            "step_ms": about.as_json(),
            "images_per_s": round(1000 * batch / about.median, 1),
            "cpu_ms": float(f"{spread(cpu_ms).median:.5g}"),
            "rounds_ms": [float(f"{value:.5g}") for value in wall_ms],
        }
    return found
