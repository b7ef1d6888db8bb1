"""Contenders in turn, round after round, and what one takes against another in the same round.

A ratio of two things that ran a second apart holds on a machine whose speed drifts; a ratio of two
averages does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, Protocol

import torch

__all__ = ["Contender", "Spread", "Stopwatch", "Turn", "play", "spread"]


@dataclass(frozen=True)
class Turn:
    """What one turn took. wall_s: by the clock. cpu_s: processor time of this process and all its
    threads, which other processes on the machine hardly change; helpers in processes of their own
    (workers of a DataLoader) are not in it. images: passed in that time."""

    wall_s: float
    cpu_s: float
    images: int


class Contender(Protocol):
    """Something that is measured. `turn` does `steps` steps and says what they took; what it does
    before them, to be in its stride, is not counted."""

    name: str

    def turn(self, steps: int) -> Turn: ...

    def close(self) -> None: ...


class Stopwatch:
    """Times the block that it enters; waits for the device at both ends."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._wall = self._cpu = 0.0

    def __enter__(self) -> Stopwatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._synchronize()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self._synchronize()
        self._wall = time.perf_counter() - self._wall
        self._cpu = time.process_time() - self._cpu

    def turn(self, images: int) -> Turn:
        return Turn(self._wall, self._cpu, images)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def play(
    contenders: list[Contender],
    *,
    rounds: int,
    steps: int,
    told: Callable[[int, dict[str, Turn]], None] = lambda number, turns: None,
) -> Iterator[dict[str, Turn]]:
    """Each round's turns by name, as it ends. A first round, in which compilers and clocks settle,
    is told of and thrown away. Who begins changes from round to round, so that nobody always
    follows the same one."""
    for number in range(rounds + 1):
        first = number % len(contenders)
        order = contenders[first:] + contenders[:first]
        turns = {contender.name: contender.turn(steps) for contender in order}
        told(number, turns)
        if number > 0:
            yield turns


@dataclass(frozen=True)
class Spread:
    """n values, one a round: their median, quartiles, least and greatest."""

    median: float
    quartiles: tuple[float, float]
    least: float
    greatest: float
    n: int

    def as_json(self) -> dict[str, Any]:
        """Five digits: more than any benchmark knows."""
        numbers = {
            "median": self.median,
            "quartiles": list(self.quartiles),
            "least": self.least,
            "greatest": self.greatest,
        }
        return {name: _rounded(value) for name, value in numbers.items()} | {"n": self.n}


def _rounded(value: Any) -> Any:
    return [_rounded(part) for part in value] if isinstance(value, list) else float(f"{value:.5g}")


def spread(values: Iterable[float]) -> Spread:
    found = sorted(values)
    lower, _, upper = quantiles(found, n=4, method="inclusive") if len(found) > 1 else found * 3
    return Spread(median(found), (lower, upper), found[0], found[-1], len(found))
