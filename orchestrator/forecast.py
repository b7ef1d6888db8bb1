"""What a time limit would let be done: a schedule on a simulated clock, by measured paces. Pure.

The ledger, its turns and the admission are those of a real run; runs take what `Pacing` says of
them, and a teacher's snapshots come evenly along its search. Runs without a measured pace are not
begun here, since nobody can say what they would come to: a real run measures them on its way.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.admission import Capacity, Shape
from orchestrator.budget import Chance, Limit
from orchestrator.ledger import Ledger, Task
from orchestrator.worth import Means, Tally, Worth, tally

__all__ = ["Forecast", "Setting", "forecast"]

_START_UP_S = 0.5
"""Between two runs of one warm process."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a schedule is made for. limit: on a clock whose 0 is the command's start. opening_s:
    until the first run can begin. devices: that train at once. seconds: of a unit, None where
    nothing like it was measured. saves: whether a unit that is cut off goes on later. is_search: of
    a unit whose end nobody knows."""

    limit: Limit
    opening_s: float
    devices: float
    seconds: Callable[[Task], float | None]
    saves: Callable[[Task], bool]
    shape_of: Callable[[Task], Shape]
    most_runs: int | None = None
    is_search: Callable[[Task], bool] = lambda task: False


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """done: units that would end, cut_off: that would begin and be saved, with the share of what is
    left of them that is trained by then; both by name. left: others. unknown: of these, without a
    measured pace. means: with what the store has already. ends_s: when nothing would run any
    more."""

    done: tuple[str, ...]
    cut_off: Mapping[str, float]
    left: int
    unknown: int
    means: Tally
    ends_s: float

    def to_json(self) -> dict[str, Any]:
        return {
            "done": list(self.done),
            "cut_off": dict(self.cut_off),
            "left": self.left,
            "without_a_pace": self.unknown,
            "settings": {
                "complete": self.means.complete,
                "in_part": self.means.partly,
                "untouched": self.means.untouched,
            },
            "ends_s": round(self.ends_s, 1),
        }


def forecast(
    tasks: Sequence[Task],
    setting: Setting,
    *,
    priorities: Mapping[str, int],
    means: Means,
    held: Iterable[str] = (),
    costs: Mapping[str, float] | None = None,
    done_before: Collection[str] = (),
) -> Forecast:
    """tasks: what is left. held, costs: as the ledger takes them. done_before: runs that the store
    has."""
    simulated = _Simulated(tasks, setting, Worth(tasks, priorities, means), held, costs)
    simulated.run()
    done, cut_off = simulated.done, simulated.cut_off
    return Forecast(
        done=tuple(done),
        cut_off=cut_off,
        left=len(tasks) - len(done) - len(cut_off),
        unknown=sum(seconds is None for seconds in simulated.seconds.values()),
        means=tally(means, {*done, *done_before}),
        ends_s=simulated.now,
    )


class _Simulated:
    def __init__(
        self,
        tasks: Sequence[Task],
        setting: Setting,
        worth: Worth,
        held: Iterable[str],
        costs: Mapping[str, float] | None,
    ) -> None:
        self.now = setting.opening_s
        self.done: list[str] = []
        self.cut_off: dict[str, float] = {}
        self.seconds = {task.name: setting.seconds(task) for task in tasks}
        self._setting = setting
        self._saves = {task.name: setting.saves(task) for task in tasks}
        self._searches = {task.name for task in tasks if setting.is_search(task)}
        self._ledger = Ledger(
            tasks,
            Capacity(setting.devices, most_runs=setting.most_runs),
            shape_of=setting.shape_of,
            held=held,
            costs=costs,
            worth=worth,
        )
        self._events: list[tuple[float, int, str, str]] = []
        self._number = 0

    def run(self) -> None:
        """Until nothing runs any more, at the moment to stop at the latest."""
        self._hand_out()
        while self._events:
            self.now, _, name, token = heapq.heappop(self._events)
            if token:
                self._ledger.provide(token)
            elif name in self.cut_off:
                self._ledger.interrupt(name)
            else:
                self._ledger.done(name)
                self.done.append(name)
            self._hand_out()

    def _chance(self, name: str) -> Chance:
        seconds = self.seconds[name]
        if seconds is None:
            return Chance.NONE
        return self._setting.limit.chance(
            self.now, _START_UP_S, seconds, self._saves[name], is_search=name in self._searches
        )

    def _hand_out(self) -> None:
        while (task := self._ledger.next(self._chance)) is not None:
            seconds = self.seconds[task.name]
            assert seconds is not None
            began, stop = self.now + _START_UP_S, self._setting.limit.stop_at
            if began + seconds > stop:
                self.cut_off[task.name] = round((stop - began) / seconds, 4)
            for number, token in enumerate(task.provides, 1):
                at = began + seconds * number / len(task.provides)
                if at < min(stop, began + seconds):
                    self._at(at, task.name, token)
            self._at(min(stop, began + seconds), task.name, "")

    def _at(self, when: float, name: str, token: str) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, name, token))
