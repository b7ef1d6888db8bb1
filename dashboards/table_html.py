"""Tables for the page: heads that span, the paper's number small below ours."""

from __future__ import annotations

from dataclasses import dataclass

from dashboards.grids import Grid, Head

__all__ = ["Block", "BodyCell", "HeadCell", "Line", "block"]

_VERDICTS = {"inside": "agrees", "above": "differs", "below": "differs"}


@dataclass(frozen=True, kw_only=True)
class HeadCell:
    """A head above `colspan` columns and over `rowspan` lines. is_key: it names row heads."""

    text: str
    colspan: int = 1
    rowspan: int = 1
    is_key: bool = False


@dataclass(frozen=True, kw_only=True)
class BodyCell:
    """text: ours. paper, comparison: below it. verdict: class of the comparison, or empty."""

    text: str
    paper: str = ""
    comparison: str = ""
    verdict: str = ""
    is_best: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """A body line. starts_block: its outermost key differs from the line's above."""

    keys: list[str]
    cells: list[BodyCell]
    starts_block: bool


@dataclass(frozen=True, kw_only=True)
class Block:
    """A table with its caption."""

    caption: str
    head: list[list[HeadCell]]
    body: list[Line]


def block(grid: Grid) -> Block:
    """The page's form of a laid-out table."""
    lines, previous = [], ""
    for texts, seconds, bold in zip(grid.body, grid.seconds, grid.bold, strict=True):
        keys = texts[: grid.num_keys]
        cells = [
            _cell(text, second, is_best)
            for text, second, is_best in zip(
                texts[grid.num_keys :], seconds[grid.num_keys :], bold[grid.num_keys :], strict=True
            )
        ]
        lines.append(Line(keys=keys, cells=cells, starts_block=keys[0] != previous))
        previous = keys[0]
    return Block(caption=grid.caption, head=_head(grid), body=lines)


def _cell(text: str, second: str, is_best: bool) -> BodyCell:
    paper, _, comparison = second.partition(" · ")
    verdict = _VERDICTS.get(comparison.rpartition(" · ")[2], "")
    return BodyCell(text=text, paper=paper, comparison=comparison, verdict=verdict, is_best=is_best)


def _head(grid: Grid) -> list[list[HeadCell]]:
    """Key heads stand once, over all lines of the head."""
    num_lines = len(grid.head_lines)
    keys = [
        HeadCell(text=head.text, rowspan=num_lines, is_key=True)
        for head in grid.head_lines[-1][: grid.num_keys]
    ]
    lines = [[_spanning(head) for head in line[grid.num_keys :]] for line in grid.head_lines]
    return [keys + lines[0], *lines[1:]]


def _spanning(head: Head) -> HeadCell:
    return HeadCell(text=head.text, colspan=head.span)
