"""Sweeps for the simulated cluster, and what a schedule of them is worth.

A sweep is as the paper's: teachers whose snapshots appear on their way, soft targets of each
snapshot, students of strategies A, B and C. Times are drawn from a seed.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.admission import Shape
from tests.simulation import NARROW, NodeChange, Run, Simulation, Span

__all__ = [
    "NARROW",
    "QUARTER",
    "WIDE",
    "Mix",
    "Verdict",
    "judge",
    "longest_chain_s",
    "shortest_s",
    "sweep",
]

WIDE = Shape(workers=8)
QUARTER = Shape(devices_per_worker=0.25)

_EFFICIENCY = 0.9
"""Eight workers are 8 × 0.9 times as fast a step as one."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Shares of the runs that are wide, and that take a quarter of a GPU; the others take one.
    noise: estimates are wrong by up to this factor in both directions (1: steps are known exactly).
    """

    wide: float = 0.0
    quarter: float = 0.0
    noise: float = 1.0


_STUDENT_STEPS = (3_900, 7_800, 19_500, 39_000)
_SNAPSHOTS = 6
_STUDENTS = 12
"""A snapshot has: six of strategy B, six of C."""


def sweep(runs: int, mix: Mix, *, seed: int) -> list[Run]:
    """About `runs` runs: one in twenty teaches nobody and learns from nobody (strategy A)."""
    rng = random.Random(seed)
    made: list[Run] = []
    teacher = 0
    while len(made) < runs:
        made += _family(f"t{teacher}", mix, rng)
        made += [_student(f"a{teacher}-{n}", (), _shape(mix, rng), mix, rng) for n in range(4)]
        teacher += 1
    made = made[:runs]
    held = {token for run in made for token in run.provides}
    return [run for run in made if held.issuperset(run.needs)]


def _family(teacher: str, mix: Mix, rng: random.Random) -> list[Run]:
    """A teacher and all that learn from it, of one shape: they share the data set and backbone."""
    shape = _shape(mix, rng)
    tokens = [f"{teacher}/acc-{number}" for number in range(_SNAPSHOTS)]
    shares = sorted(rng.random() ** 2 for _ in tokens)  # low accuracies come early
    steps = rng.uniform(3_000, 40_000)
    made = [
        Run(
            name=teacher,
            cost=10_000.0,  # as units.Unit estimates it: nobody knows how long a search is
            seconds=_seconds(steps, shape, rng),
            shape=shape,
            offers=tuple(zip(shares, tokens, strict=True)),
        )
    ]
    for token in tokens:
        targets = f"{token}-targets"
        made.append(
            Run(
                name=targets,
                cost=1.0,
                seconds=rng.uniform(5, 60),
                shape=NARROW if shape is WIDE else shape,
                needs=(token,),
                offers=((1.0, targets),),
            )
        )
        for number in range(_STUDENTS):
            needs = (token, targets) if number % 2 else (token,)
            made.append(_student(f"{token}-s{number}", needs, shape, mix, rng))
    return made


def _student(name: str, needs: tuple[str, ...], shape: Shape, mix: Mix, rng: random.Random) -> Run:
    steps = float(rng.choice(_STUDENT_STEPS))
    wrong = mix.noise ** rng.uniform(-1, 1)
    return Run(
        name=name,
        cost=steps * wrong,
        seconds=_seconds(steps, shape, rng),
        shape=shape,
        needs=needs,
    )


def _seconds(steps: float, shape: Shape, rng: random.Random) -> float:
    """Wide runs are the larger models: four times the work a step, on eight devices. A quarter of a
    GPU is slower than a whole one, by less than four."""
    per_step = rng.uniform(0.02, 0.06)
    if shape.workers > 1:
        return steps * per_step * 4 / (shape.workers * _EFFICIENCY)
    return steps * per_step * (1.0 if shape.devices_per_worker == 1.0 else 1.6)


def _shape(mix: Mix, rng: random.Random) -> Shape:
    draw = rng.random()
    if draw < mix.wide:
        return WIDE
    return QUARTER if draw < mix.wide + mix.quarter else NARROW


# -- what a schedule is worth ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """ratio: makespan over the least that any schedule needs. starved: by kind, the longest time in
    which one was ready and none ran, as a share of the makespan. waited: by kind, a unit's longest
    wait, as a share. busy: share of the devices in use, by tenths of the makespan."""

    makespan_s: float
    ratio: float
    starved: dict[str, float]
    waited: dict[str, float]
    busy: tuple[float, ...]


def judge(simulation: Simulation, changes: Sequence[NodeChange] = ()) -> Verdict:
    end = simulation.now
    kinds: dict[str, list[Span]] = defaultdict(list)
    for span in simulation.spans:
        kinds[f"{span.run.shape.devices:g}"].append(span)
    total = simulation.devices.total - sum(change.devices for change in changes)
    return Verdict(
        makespan_s=end,
        ratio=end / shortest_s(simulation.runs, total, changes),
        starved={kind: _starved_s(spans) / end for kind, spans in sorted(kinds.items())},
        waited={
            kind: max(span.start_s - span.ready_s for span in spans) / end
            for kind, spans in sorted(kinds.items())
        },
        busy=_busy(simulation.spans, end, total, changes),
    )


def shortest_s(runs: Iterable[Run], devices: int, changes: Sequence[NodeChange] = ()) -> float:
    """No schedule is shorter: all devices busy until the work is done, or the longest chain."""
    runs = list(runs)
    work = sum(run.device_seconds for run in runs)
    at, there = 0.0, float(devices)
    for change in sorted(changes, key=lambda change: change.at_s):
        if work <= there * (change.at_s - at):
            break
        work -= there * (change.at_s - at)
        at, there = change.at_s, there + change.devices
    return max(at + work / there, longest_chain_s(runs))


def longest_chain_s(runs: Iterable[Run]) -> float:
    """The earliest end of the last run if devices were endless. Makers come before their takers."""
    there: dict[str, float] = {}
    last = 0.0
    for run in runs:
        start = max((there[token] for token in run.needs), default=0.0)
        for share, token in run.offers:
            there[token] = start + share * run.seconds
        last = max(last, start + run.seconds)
    return last


def _starved_s(spans: Sequence[Span]) -> float:
    """The longest stretch with one waiting and none running."""
    moves: dict[float, list[int]] = defaultdict(lambda: [0, 0])
    for span in spans:
        moves[span.ready_s][0] += 1
        moves[span.start_s][0] -= 1
        moves[span.start_s][1] += 1
        moves[span.end_s][1] -= 1
    longest, since, waiting, running = 0.0, None, 0, 0
    for at in sorted(moves):
        if since is not None:
            longest = max(longest, at - since)
        waiting, running = waiting + moves[at][0], running + moves[at][1]
        if not waiting or running:
            since = None
        elif since is None:
            since = at
    return longest


def _busy(
    spans: Sequence[Span], end: float, devices: int, changes: Sequence[NodeChange], parts: int = 10
) -> tuple[float, ...]:
    width = end / parts
    used = [0.0] * parts
    for span in spans:
        for part in range(int(span.start_s / width), min(parts, int(span.end_s / width) + 1)):
            begin, stop = max(span.start_s, part * width), min(span.end_s, (part + 1) * width)
            used[part] += max(0.0, stop - begin) * span.run.shape.devices
    there = [devices * width] * parts
    for change in changes:
        for part in range(parts):
            after = min(width, max(0.0, (part + 1) * width - change.at_s))
            there[part] += after * change.devices
    return tuple(round(a / b, 4) for a, b in zip(used, there, strict=True))
