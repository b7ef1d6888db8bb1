"""What units are worth: priorities of a sweep file, and the means that they complete. Pure.

A **mean** is a setting of a sweep over its seeds. The fewer runs it still lacks, the sooner it is
worth something: so runs of one mean follow each other, instead of one seed of every setting.
Teachers and other makers count as what waits for them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

__all__ = ["NEUTRAL", "Means", "Rank", "Tally", "Worth", "tally"]

Rank = tuple[int, int]
"""(−priority, runs that the nearest mean lacks): the smaller, the sooner."""

NEUTRAL: Rank = (0, 0)

Means = Mapping[Hashable, Collection[str]]
"""Names of the runs of each mean."""


class _Task(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def needs(self) -> Sequence[str]: ...
    @property
    def provides(self) -> Sequence[str]: ...


class Worth:
    """Ranks of the units that are left. priorities: by name, of runs that a sweep asks; none: 0.
    means: none: they do not count."""

    def __init__(
        self, tasks: Iterable[_Task], priorities: Mapping[str, int], means: Means | None = None
    ) -> None:
        tasks = list(tasks)
        self._priorities = priorities
        self._takers = _takers(tasks)
        left = {task.name for task in tasks}
        self._lacking = {mean: left.intersection(runs) for mean, runs in (means or {}).items()}
        self._means: dict[str, list[Hashable]] = defaultdict(list)
        for mean, runs in self._lacking.items():
            for run in runs:
                self._means[run].append(mean)
        self._priority: dict[str, int | None] = {}

    def rank(self, name: str) -> Rank:
        counts = [len(self._lacking[mean]) for mean in self._means_behind(name)]
        return (-(self._priority_of(name) or 0), min(counts, default=0))

    def taken(self, name: str) -> set[str]:
        """A unit is handed out; gives the units whose rank may be another now."""
        mates: set[str] = set()
        for mean in self._means.get(name, ()):
            self._lacking[mean].discard(name)
            mates |= self._lacking[mean]
        return mates

    def returned(self, name: str) -> None:
        """A unit that was handed out did not end."""
        for mean in self._means.get(name, ()):
            self._lacking[mean].add(name)

    def _priority_of(self, name: str) -> int | None:
        """The highest of its own and of those that wait for it. None: nobody said."""
        if name not in self._priority:
            theirs = [self._priority_of(taker) for taker in self._takers.get(name, ())]
            said = [one for one in (self._priorities.get(name), *theirs) if one is not None]
            self._priority[name] = max(said, default=None)
        return self._priority[name]

    def _means_behind(self, name: str) -> Iterator[Hashable]:
        """Its own that still lack a run, and those of all that wait for it."""
        waiting, seen = [name], {name}
        while waiting:
            one = waiting.pop()
            yield from (mean for mean in self._means.get(one, ()) if self._lacking[mean])
            new = self._takers.get(one, set()) - seen
            seen |= new
            waiting += new


def _takers(tasks: Sequence[_Task]) -> dict[str, set[str]]:
    """By unit, who waits for something of it."""
    maker = {token: task.name for task in tasks for token in task.provides}
    takers: dict[str, set[str]] = defaultdict(set)
    for task in tasks:
        for token in task.needs:
            if token in maker:
                takers[maker[token]].add(task.name)
    return dict(takers)


@dataclass(frozen=True)
class Tally:
    """Means with all their runs, with some, and with none."""

    complete: int
    partly: int
    untouched: int

    @cached_property
    def total(self) -> int:
        return self.complete + self.partly + self.untouched

    def __str__(self) -> str:
        return (
            f"{self.complete:,} of {self.total:,} settings complete over their seeds, "
            f"{self.partly:,} in part, {self.untouched:,} without a run"
        )


def tally(means: Means, done: Collection[str]) -> Tally:
    """done: names of the runs that are complete."""
    there = [sum(run in done for run in runs) for runs in means.values()]
    sizes = [len(runs) for runs in means.values()]
    complete = sum(map(int.__eq__, there, sizes))
    untouched = there.count(0)
    return Tally(complete, len(there) - complete - untouched, untouched)
