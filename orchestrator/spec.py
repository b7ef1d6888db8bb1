"""Sweep files as values: read, checked in full, and ready to be planned.

Nothing is filled in silence and nothing is checked twice: single values where they stand (an axis
of five values is five checks, however large the grid), combinations in `orchestrator.checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

from dashboards.layout import ClaimItem, FigureItem, TableItem
from orchestrator.checks import check_grids, check_unread
from orchestrator.claimpoints import check_claim_points
from orchestrator.errors import Problem, SpecError, nearest
from orchestrator.grid import (
    Condition,
    Grid,
    Place,
    Point,
    expand,
    expand_grid,
    matches,
    with_implied,
)
from orchestrator.groups import Group, check_claims, is_group, read_group
from orchestrator.referencepoints import check_references
from orchestrator.reportitems import read_report
from orchestrator.reportpoints import check_report
from orchestrator.scale import Scale
from orchestrator.scalefile import read_scale
from orchestrator.scaling import Scaling, nominal_infos
from orchestrator.settings import FIELDS
from orchestrator.settingsfile import SettingsReader, Written
from orchestrator.sweepfile import DataLocation, GridFile, SweepFile, read_sections
from orchestrator.yamlsource import Source, read_yaml
from trainers.data.catalogue import OFFICIAL
from trainers.data.info import DatasetInfo

__all__ = ["Sweep", "load_sweeps"]


@dataclass(frozen=True)
class Sweep:
    """One sweep file. limit: only these points of it are wanted (`--limit`).

    include: of a group, the names of all sweeps it stands for; a group has no points. claims: of
    groups, about this sweep. scale: what makes a pilot of it; its points are the full sweep's until
    `scaling.scale_sweep` has given it a `scaling`. overrides: what `--set` made another experiment
    of it with, `field=value` each.
    """

    name: str
    title: str
    description: str
    file: str
    grids: tuple[Grid, ...]
    data: Mapping[str, DataLocation] = field(default_factory=dict)
    report: tuple[TableItem | FigureItem | ClaimItem, ...] = ()
    limit: Condition = field(default_factory=dict)
    include: tuple[str, ...] = ()
    claims: tuple[ClaimItem, ...] = ()
    scale: Scale | None = None
    scaling: Scaling | None = None
    overrides: tuple[str, ...] = ()

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """Every grid point once, in the file's order; of a pilot, those of its layout."""
        points = expand(self.grids)
        if self.scaling is not None:
            points = tuple(filter(self.scaling.keeps, points))
        return tuple(filter(matches(self.limit), points)) if self.limit else points

    @cached_property
    def priorities(self) -> Mapping[Point, int]:
        """Of points, the highest of the grids that they are in; nothing where all are 0."""
        found: dict[Point, int] = {}
        for grid in self.grids if any(grid.priority for grid in self.grids) else ():
            for point in expand_grid(grid):
                found[point] = max(grid.priority, found.get(point, grid.priority))
        return found

    @property
    def axes(self) -> tuple[str, ...]:
        """Fields that are an axis of some grid, in the file's order."""
        return tuple(dict.fromkeys(name for grid in self.grids for name in grid.axes))

    def layout_infos(self, infos: Mapping[str, DatasetInfo]) -> Mapping[str, DatasetInfo]:
        """What the points' epochs are counted on: a pilot's on the full sweep's data sets."""
        return infos if self.scale is None else nominal_infos(infos)


def load_sweeps(
    files: Iterable[str | Path],
    infos: Mapping[str, DatasetInfo] | None = None,
    located: Collection[str] = (),
    scale: Scale | None = None,
) -> list[Sweep]:
    """Reads and checks sweep files; a group gives its members, each once, and then itself. infos:
    what is known of data sets (default: the official ones). located: further data set names that
    the store can find. scale: makes a pilot of each; it goes before what the files say.

    Raises SpecError with every problem of every file.
    """
    loader = _Loader(OFFICIAL if infos is None else infos, located)
    for file in files:
        loader.read(Path(file), scale)
    sweeps = loader.sweeps
    problems = [problem for found in loader.problems for problem in sorted(found, key=_line)]
    problems += _same_names(sweeps)
    if problems:
        raise SpecError(problems)
    return _with_claims(sweeps)


def _line(problem: Problem) -> int:
    return problem.line or 0


def _with_claims(sweeps: Sequence[Sweep]) -> list[Sweep]:
    """The sweeps with what groups claim about them, so that it is evaluated."""
    claims: dict[str, dict[str, ClaimItem]] = {}
    for group in filter(attrgetter("include"), sweeps):
        for item in group.report:
            if isinstance(item, ClaimItem):
                for test in item.tests:
                    claims.setdefault(test.sweep or "", {})[item.name] = item
    return [
        replace(sweep, claims=tuple(claims[sweep.name].values()))
        if sweep.name in claims and not sweep.include
        else sweep
        for sweep in sweeps
    ]


class _Loader:
    """Reads files and what they include, each once for every scale. problems: by file."""

    def __init__(self, infos: Mapping[str, DatasetInfo], located: Collection[str]) -> None:
        self.infos = infos
        self.located = located
        self.sweeps: list[Sweep] = []
        self.problems: list[list[Problem]] = []
        self._seen: dict[Path, list[tuple[Scale | None, list[Sweep]]]] = {}
        self._scales: dict[Path, Scale | None] = {}

    def read(self, path: Path, scale: Scale | None, chain: tuple[Path, ...] = ()) -> list[Sweep]:
        """The file's sweep, or those that its group stands for; what could be read of them."""
        resolved = path.resolve()
        known = self._seen.setdefault(resolved, [])
        for other, sweeps in known:
            if other == scale:
                return sweeps
        source = read_yaml(path)
        found: list[Problem] = list(source.problems)
        self.problems.append(found)
        members: list[Sweep] = []
        if not found and is_group(source):
            members = self._group(source, scale, (*chain, resolved), found)
        elif not found:
            own = self._scale(source, source.data.get("scale"), found)
            reader = _Reader(source, self.infos, self.located, scale or own)
            members = [reader.read()]
            found += reader.problems
            self.sweeps += members
        known.append((scale, members))
        return members

    def _group(
        self, source: Source, scale: Scale | None, chain: tuple[Path, ...], found: list[Problem]
    ) -> list[Sweep]:
        group, problems = read_group(source, chain)
        found += problems
        scale = scale or self._scale(source, group.scale, found)
        included = [self.read(file, scale, chain) for file in group.files.values()]
        members = {sweep.name: sweep for sweeps in included for sweep in sweeps}
        nominal = {_nominal(sweep): sweep.name for sweep in members.values()}
        if all(included) and not any(problem.key.startswith("include") for problem in problems):
            found += check_claims(source, group.report, nominal)
        if not any(self.problems):
            points = {_nominal(sweep): sweep.points for sweep in members.values()}
            infos = self.infos if scale is None else nominal_infos(self.infos)
            found += check_claim_points(group.report, points, source, infos)
        own = _of_group(group, source, scale, nominal)
        report = {item.name: item for item in (*self._claims_of(group, scale), *own.report)}
        self.sweeps.append(replace(own, report=tuple(report.values())))
        return list(members.values())

    def _claims_of(self, group: Group, scale: Scale | None) -> list[Any]:
        """What the groups that `group` includes claim: it stands for them too."""
        files = {file.resolve() for file in group.files.values()}
        inner = [sweep for sweep in self.sweeps if sweep.include and sweep.scale == scale]
        return [
            item for sweep in inner if Path(sweep.file).resolve() in files for item in sweep.report
        ]

    def _scale(self, source: Source, raw: object, found: list[Problem]) -> Scale | None:
        """What a `scale:` key says: a file relative to this one, or the scale itself."""
        if raw is None:
            return None
        if isinstance(raw, Mapping):
            scale, problems = read_scale(raw, ("scale",), source)
            found += problems
            return scale
        if not isinstance(raw, str):
            found.append(_scale_problem(source, f"is {raw!r}, expected a file or a mapping"))
            return None
        path = (Path(source.file).parent / raw).resolve()
        if path not in self._scales:
            if not path.is_file():
                found.append(_scale_problem(source, f"is {raw!r}: there is no file {path}"))
                return None
            file = read_yaml(path)
            scale, problems = (
                (None, file.problems) if file.problems else read_scale(file.data, (), file)
            )
            self.problems.append(problems)
            self._scales[path] = scale
        return self._scales[path]


def _scale_problem(source: Source, message: str) -> Problem:
    remedy = "give a scale file, relative to this one, or its keys"
    return source.problem(("scale",), message, remedy)


def _scaled_name(name: str, scale: Scale | None) -> str:
    return name if scale is None else f"{name}-{scale.name}"


def _nominal(sweep: Sweep) -> str:
    return sweep.name.removesuffix(f"-{sweep.scale.name}") if sweep.scale else sweep.name


def _of_group(
    group: Group, source: Source, scale: Scale | None, members: Mapping[str, str]
) -> Sweep:
    """members: names of its sweeps as they are called, by their names without a scale."""
    return Sweep(
        name=_scaled_name(group.name, scale),
        title=group.title,
        description=group.description,
        file=source.file,
        grids=(),
        report=tuple(_about(item, lambda name: members.get(name, name)) for item in group.report),
        include=tuple(members.values()),
        scale=scale,
    )


def _about(
    item: TableItem | FigureItem | ClaimItem, called: Callable[[str], str]
) -> TableItem | FigureItem | ClaimItem:
    """A claim about the sweeps as they are called: a pilot's claims are about pilots."""
    if not isinstance(item, ClaimItem):
        return item
    tests = tuple(
        test.model_copy(update={"sweep": called(test.sweep) if test.sweep else None})
        for test in item.tests
    )
    return item.model_copy(update={"tests": tests})


def _same_names(sweeps: Iterable[Sweep]) -> list[Problem]:
    first: dict[str, Sweep] = {}
    problems = []
    for sweep in sweeps:
        other = first.setdefault(sweep.name, sweep)
        if other is not sweep and sweep.name:
            message = f"{sweep.name!r} is the name of {other.file} too"
            remedy = "give each sweep a name of its own"
            problems.append(Problem(file=sweep.file, key="name", message=message, remedy=remedy))
    return problems


class _Reader:
    """Reads one file, collecting its problems."""

    def __init__(
        self,
        source: Source,
        infos: Mapping[str, DatasetInfo],
        located: Collection[str],
        scale: Scale | None,
    ) -> None:
        self.source = source
        self.scale = scale
        # A pilot's layout is the full sweep's, whatever data it trains on.
        self.infos = infos if scale is None else nominal_infos(infos)
        self.located = located
        self.known: set[str] = set()
        self.problems: list[Problem] = []

    def read(self) -> Sweep:
        sections, self.problems = read_sections(SweepFile, self.source.data, (), self.source)
        base = self._settings(sections["set"], ("set",))
        self.known = {*self.infos, *sections["data"], *self.located}
        grids = self._grids(sections["grids"], base, sections["priority"])
        report, problems = read_report(sections["report"], self.source)
        self.problems += problems
        own = sections["name"] or ""
        name = _scaled_name(own, self.scale)
        sweep = Sweep(
            name=name,
            title=sections["title"],
            description=sections["description"].strip(),
            file=self.source.file,
            grids=grids,
            data=sections["data"],
            report=tuple(
                _about(item, lambda other: _scaled_name(other, self.scale)) for item in report
            ),
            scale=self.scale,
        )
        self._check(sweep)
        return sweep

    def _settings(self, raw: Mapping[str, Any], path: tuple[str | int, ...]) -> Written:
        written, problems = SettingsReader(self.source).read(raw, path)
        self.problems += problems
        return written

    def _grids(self, raw: list[Any], base: Written, priority: int) -> tuple[Grid, ...]:
        if not raw:
            place = Place(self.source.file, "set", self.source.line(("set",)))
            return (_grid("", place, base, priority),)
        return tuple(self._grid(item, index, base, priority) for index, item in enumerate(raw))

    def _grid(self, raw: object, index: int, base: Written, priority: int) -> Grid:
        path = ("grids", index)
        sections, problems = read_sections(GridFile, raw, path, self.source)
        self.problems += problems
        own = self._settings(sections["set"], (*path, "set"))
        reader = SettingsReader(self.source)
        axes = reader.read_axes(sections["axes"], (*path, "axes"))
        exclude = reader.read_conditions(sections["exclude"], (*path, "exclude"))
        self.problems += reader.problems
        place = Place(self.source.file, f"grids[{index}]", self.source.line(path))
        places = {**base.places, **own.places, **axes.places}
        return Grid(
            name=sections["name"],
            place=place,
            base=with_implied(_base(base, own), places),
            axes=axes.values,
            exclude=exclude,
            places=places,
            value_places=axes.value_places,
            priority=priority if sections["priority"] is None else sections["priority"],
        )

    def _check(self, sweep: Sweep) -> None:
        """Combinations; what one wrong value would only echo is left for when it is right."""
        clean = not self.problems
        self.problems += self._unknown_datasets(sweep)
        self.problems += check_grids(sweep.grids, self.infos, complete=clean)
        if clean and not self.problems:
            self.problems += check_unread(sweep.grids)
            report = (sweep.report, sweep.points, self.source, self.infos)
            self.problems += check_report(*report) or check_references(*report)
            points = {sweep.name: sweep.points}
            self.problems += check_claim_points(
                sweep.report, points, self.source, self.infos, default=sweep.name
            )

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


def _grid(name: str, place: Place, base: Written, priority: int) -> Grid:
    values = with_implied(_base(base), base.places)
    return Grid(name=name, place=place, base=values, places=base.places, priority=priority)
