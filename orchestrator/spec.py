"""Sweep files as values: read, checked in full, and ready to be planned.

Nothing is filled in silence and nothing is checked twice: single values where they stand (an axis
of five values is five checks, however large the grid), combinations in `orchestrator.checks`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dashboards.layout import FigureItem, TableItem
from orchestrator.checks import check_grids, check_unread
from orchestrator.errors import Problem, SpecError, nearest
from orchestrator.grid import Condition, Grid, Place, Point, expand, matches
from orchestrator.reportitems import read_report
from orchestrator.reportpoints import check_report
from orchestrator.settings import FIELDS
from orchestrator.settingsfile import SettingsReader, Written
from orchestrator.sweepfile import DataLocation, GridFile, SweepFile, read_sections
from orchestrator.yamlsource import Source, read_yaml
from trainers.data.catalogue import OFFICIAL
from trainers.data.info import DatasetInfo

__all__ = ["Sweep", "load_sweeps"]


@dataclass(frozen=True)
class Sweep:
    """One sweep file. limit: only these points of it are wanted (`--limit`)."""

    name: str
    title: str
    description: str
    file: str
    grids: tuple[Grid, ...]
    data: Mapping[str, DataLocation] = field(default_factory=dict)
    report: tuple[TableItem | FigureItem, ...] = ()
    limit: Condition = field(default_factory=dict)

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """Every grid point once, in the file's order."""
        points = expand(self.grids)
        return tuple(filter(matches(self.limit), points)) if self.limit else points

    @property
    def axes(self) -> tuple[str, ...]:
        """Fields that are an axis of some grid, in the file's order."""
        return tuple(dict.fromkeys(name for grid in self.grids for name in grid.axes))


def load_sweeps(
    files: Iterable[str | Path],
    infos: Mapping[str, DatasetInfo] | None = None,
    located: Collection[str] = (),
) -> list[Sweep]:
    """Reads and checks sweep files. infos: what is known of data sets (default: the official
    ones). located: further data set names that the store can find.

    Raises SpecError with every problem of every file.
    """
    infos = OFFICIAL if infos is None else infos
    readers = [_Reader(read_yaml(Path(file)), infos, located) for file in files]
    sweeps = [sweep for reader in readers if (sweep := reader.read()) is not None]
    problems = [problem for reader in readers for problem in sorted(reader.problems, key=_line)]
    problems += _same_names(sweeps)
    if problems:
        raise SpecError(problems)
    return sweeps


def _line(problem: Problem) -> int:
    return problem.line or 0


def _same_names(sweeps: Iterable[Sweep]) -> list[Problem]:
    first: dict[str, Sweep] = {}
    problems = []
    for sweep in sweeps:
        other = first.setdefault(sweep.name, sweep)
        if other is not sweep:
            message = f"{sweep.name!r} is the name of {other.file} too"
            remedy = "give each sweep a name of its own"
            problems.append(Problem(file=sweep.file, key="name", message=message, remedy=remedy))
    return problems


class _Reader:
    """Reads one file, collecting its problems."""

    def __init__(
        self, source: Source, infos: Mapping[str, DatasetInfo], located: Collection[str]
    ) -> None:
        self.source = source
        self.infos = infos
        self.located = located
        self.known: set[str] = set()
        self.problems = list(source.problems)

    def read(self) -> Sweep | None:
        if self.problems:
            return None
        sections, self.problems = read_sections(SweepFile, self.source.data, (), self.source)
        base = self._settings(sections["set"], ("set",))
        self.known = {*self.infos, *sections["data"], *self.located}
        grids = self._grids(sections["grids"], base)
        report, problems = read_report(sections["report"], self.source)
        self.problems += problems
        sweep = Sweep(
            name=sections["name"] or "",
            title=sections["title"],
            description=sections["description"].strip(),
            file=self.source.file,
            grids=grids,
            data=sections["data"],
            report=report,
        )
        self._check(sweep)
        return sweep

    def _settings(self, raw: Mapping[str, Any], path: tuple[str | int, ...]) -> Written:
        written, problems = SettingsReader(self.source).read(raw, path)
        self.problems += problems
        return written

    def _grids(self, raw: list[Any], base: Written) -> tuple[Grid, ...]:
        if not raw:
            return (_grid("", Place(self.source.file, "set", self.source.line(("set",))), base),)
        return tuple(self._grid(item, index, base) for index, item in enumerate(raw))

    def _grid(self, raw: object, index: int, base: Written) -> Grid:
        path = ("grids", index)
        sections, problems = read_sections(GridFile, raw, path, self.source)
        self.problems += problems
        own = self._settings(sections["set"], (*path, "set"))
        reader = SettingsReader(self.source)
        axes = reader.read_axes(sections["axes"], (*path, "axes"))
        exclude = reader.read_conditions(sections["exclude"], (*path, "exclude"))
        self.problems += reader.problems
        place = Place(self.source.file, f"grids[{index}]", self.source.line(path))
        return Grid(
            name=sections["name"],
            place=place,
            base=_base(base, own),
            axes=axes.values,
            exclude=exclude,
            places={**base.places, **own.places, **axes.places},
            value_places=axes.value_places,
        )

    def _check(self, sweep: Sweep) -> None:
        """Combinations; what one wrong value would only echo is left for when it is right."""
        clean = not self.problems
        self.problems += self._unknown_datasets(sweep)
        self.problems += check_grids(sweep.grids, self.infos, complete=clean)
        if clean and not self.problems:
            self.problems += check_unread(sweep.grids)
            self.problems += check_report(sweep.report, sweep.points, self.source, self.infos)

    def _unknown_datasets(self, sweep: Sweep) -> list[Problem]:
        found: dict[Place, Problem] = {}
        for grid in sweep.grids:
            for name in grid.axes.get("dataset", (grid.base[0],)):
                if name is None or name in self.known:
                    continue
                place = grid.place_of("dataset", name)
                found[place] = Problem(
                    file=place.file,
                    key=place.key,
                    line=place.line,
                    message=f"no data set is called {name!r}",
                    value=name,
                    nearest=nearest(name, self.known),
                    remedy=f"say where it lies, under `data: {{{name}: {{path: …}}}}`",
                )
        return list(found.values())


def _base(*layers: Written) -> Point:
    values = {name: setting.default for name, setting in FIELDS.items()}
    for layer in layers:
        values |= layer.values
    return tuple(values.values())


def _grid(name: str, place: Place, base: Written) -> Grid:
    return Grid(name=name, place=place, base=_base(base), places=base.places)
