"""Groups: sweep files that stand for other sweep files (`include:`).

A group trains nothing itself. Its members are loaded as if they had been named one by one, each
with its own plan and report; the group adds a name, and a report over all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dashboards.layout import ClaimItem
from orchestrator.errors import Problem, nearest
from orchestrator.reportitems import read_report
from orchestrator.sweepfile import GroupFile, read_sections
from orchestrator.yamlsource import KeyPath, Source

__all__ = ["Group", "check_claims", "is_group", "read_group"]

_SWEEP_KEYS = ("set", "data", "grids")


@dataclass(frozen=True)
class Group:
    """A group's file, checked by itself. files: what it includes, by the index in `include`."""

    name: str
    title: str
    description: str
    files: dict[int, Path]
    scale: Any
    report: tuple[Any, ...]


def is_group(source: Source) -> bool:
    return "include" in source.data


def read_group(source: Source, chain: Sequence[Path]) -> tuple[Group, list[Problem]]:
    """chain: the files that led here, this one last, resolved. Files that are missing, that stand
    twice or that lead back here are problems, and left out."""
    data = {key: value for key, value in source.data.items() if key not in _SWEEP_KEYS}
    sections, problems = read_sections(GroupFile, data, (), source)
    for key in _SWEEP_KEYS:
        if key in source.data:
            remedy = "put it into the sweep files, or leave `include` out"
            message = "does not belong into a group, which has no points of its own"
            problems.append(source.problem((key,), message, remedy))
    files: dict[int, Path] = {}
    for index, entry in enumerate(sections["include"] or ()):
        path = Path(source.file).parent / entry
        fault = _fault(path, entry, files, chain)
        if fault is None:
            files[index] = path
        else:
            problems.append(source.problem(("include", index), *fault))
    report, wrong = read_report(sections["report"], source)
    problems += wrong
    for index, item in enumerate(report):
        if not isinstance(item, ClaimItem):
            message = "a group reports claims alone"
            remedy = "put tables and figures into the sweep whose points they show"
            problems.append(source.problem(("report", index), message, remedy))
    return Group(
        name=sections["name"] or "",
        title=sections["title"],
        description=sections["description"].strip(),
        files=files,
        scale=sections["scale"],
        report=report,
    ), problems


def _fault(
    path: Path, entry: str, earlier: dict[int, Path], chain: Sequence[Path]
) -> tuple[str, str] | None:
    """What is wrong with an entry, and the remedy."""
    resolved = path.resolve()
    if resolved in chain:
        back = [file.name for file in (*chain[chain.index(resolved) :], resolved)]
        return f"leads back to itself: {' includes '.join(back)}", "leave it out"
    for index, other in earlier.items():
        if other.resolve() == resolved:
            return f"is {entry!r}, which include[{index}] names too", "keep one of the two"
    if not path.is_file():
        there = sorted(file.name for file in path.parent.glob("*.yaml"))
        like = nearest(path.name, there)
        hint = f"nearest file: {like}" if like else "paths are relative to this file"
        return f"is {entry!r}: there is no file {path}", hint
    return None


def check_claims(source: Source, report: Iterable[Any], names: Iterable[str]) -> Iterator[Problem]:
    """Claims about sweeps that the group does not include. names: of those it does."""
    names = list(names)
    for index, item in enumerate(report):
        for number, test in enumerate(item.tests if isinstance(item, ClaimItem) else ()):
            path: KeyPath = ("report", index, "tests", number)
            if test.sweep is None:
                remedy = "add `sweep: …`: a group has no points of its own"
                yield source.problem(path, "names no sweep", remedy)
            elif test.sweep not in names:
                like = nearest(test.sweep, names)
                message = f"the group includes no sweep {test.sweep!r}"
                remedy = f"nearest: {like}" if like else f"it includes {', '.join(names)}"
                yield source.problem((*path, "sweep"), message, remedy)
