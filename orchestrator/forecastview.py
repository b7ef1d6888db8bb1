"""`plan --budget`: which units of a plan would fit, as a person reads it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from orchestrator.admission import Shape
from orchestrator.budget import Limit, reserve_s
from orchestrator.estimate import Pace
from orchestrator.forecast import Forecast, Setting, forecast
from orchestrator.glance import duration
from orchestrator.ledger import Task
from orchestrator.overheads import Overheads
from orchestrator.pacing import Pacing
from orchestrator.plan import Plan
from orchestrator.rates import Rates
from orchestrator.shapes import shape_of
from orchestrator.sharing import Sharing, shipped_table
from orchestrator.units import ARTEFACTS, SEARCH_STEPS, Unit

__all__ = ["Expected", "expect"]

_OPENING_S = 15.0
"""From the command to its first step, until a run in the store measured it."""


class Expected:
    """A forecast and what it is of. devices: that train at once. opening_s: until the first step.
    measured: whether this store measured what lies around the training."""

    def __init__(
        self,
        plan: Plan,
        found: Forecast,
        limit: Limit,
        *,
        devices: float,
        opening_s: float,
        measured: bool,
    ) -> None:
        self.plan = plan
        self.forecast = found
        self._limit = limit
        self._devices = devices
        self._opening_s = opening_s
        self._measured = measured

    def lines(self) -> Iterator[str]:
        found, limit = self.forecast, self._limit
        training = max(0.0, limit.stop_at - self._opening_s)
        about = "as the last run here took" if self._measured else "never measured here"
        yield (
            f"budget {duration(limit.total_s)}: {duration(self._opening_s)} to begin and "
            f"{duration(limit.reserve_s)} to end ({about}), {duration(training)} of training, "
            f"{self._devices:g} at once"
        )
        yield (
            f"  would end {len(found.done):,} units ({self._kinds(found.done)}), begin and save "
            f"{len(found.cut_off):,}, leave {found.left:,}; then {found.means}"
        )
        if found.unknown:
            yield (
                f"  {found.unknown:,} units have no measured pace and count as left: `--calibrate` "
                "measures it here, `--device NAME` takes another's; a run measures it on its way"
            )
        searches = sum(unit.kind == "teacher" for unit in self.plan.left)
        if searches:
            yield (
                f"  {searches:,} teachers count as {SEARCH_STEPS:,} steps at most; nobody knows "
                "how long they search"
            )
        labels = {unit.name: unit.label for unit in self.plan.units}
        for name, share in list(found.cut_off.items())[:_SHOWN]:
            yield f"  would be cut off at {100 * share:.0f}% of what is left: {labels[name]}"

    def to_json(self) -> dict[str, Any]:
        return {
            "seconds": self._limit.total_s,
            "reserve_s": round(self._limit.reserve_s, 1),
            "opening_s": round(self._opening_s, 1),
            "devices": self._devices,
            **self.forecast.to_json(),
        }

    def _kinds(self, names: Sequence[str]) -> str:
        kinds = Counter(name.partition("-")[0] for name in names)
        return ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items())) or "none"


_SHOWN = 8


def expect(
    plan: Plan,
    rates: Rates,
    overheads: Overheads,
    seconds: float,
    *,
    gpus: Sequence[str],
    concurrency: int | None = None,
) -> Expected:
    """What `seconds` of a `run` would do of what is left. gpus: models of those that train; none:
    the cores of this machine."""
    devices = float(len(gpus) or max(os.cpu_count() or 1, concurrency or 1, 2))
    opening_s = _OPENING_S if overheads.opening_s is None else overheads.opening_s
    reserve = reserve_s(seconds, overheads.ending_s)
    limit = Limit(total_s=seconds, end_s=seconds, reserve_s=reserve)
    steps = plan.costs_left
    shape_of = _shapes(plan, gpus, devices)
    pacing = Pacing(Pace(rates, plan.infos, shape_of), plan.infos, steps)
    setting = Setting(
        limit=limit,
        opening_s=opening_s,
        devices=devices,
        most_runs=concurrency,
        seconds=lambda task: _seconds(pacing, _unit(task)),
        saves=lambda task: _unit(task).kind not in ARTEFACTS,
        is_search=lambda task: _unit(task).kind == "teacher",
        shape_of=shape_of,
    )
    found = forecast(
        plan.left,
        setting,
        priorities=plan.priorities,
        means=plan.means,
        held=plan.held_tokens,
        costs=steps,
        done_before=plan.done_names,
    )
    measured = overheads.ending_s is not None
    return Expected(plan, found, limit, devices=devices, opening_s=opening_s, measured=measured)


def _unit(task: Task) -> Unit:
    assert isinstance(task, Unit)
    return task


def _seconds(pacing: Pacing, unit: Unit) -> float | None:
    """Files for others to learn from count nothing, as in the plan's hours."""
    return 0.0 if unit.kind in ARTEFACTS else pacing.seconds(unit)


def _shapes(plan: Plan, gpus: Sequence[str], devices: float) -> Callable[[Task], Shape]:
    """devices: in all, as if of one node: a forecast knows of no others."""
    sharing = Sharing(shipped_table(), gpus, plan.infos)

    def shape(task: Task) -> Shape:
        unit = _unit(task)
        share = sharing.share(unit, _MANY) if gpus else 1.0
        return shape_of(unit, use_gpu=bool(gpus), devices=devices, auto_share=share)

    return shape


_MANY = 1_000
"""Runs at once, as far as the number of runs limits how many share a GPU."""
