"""The numbers of a table: cells over seeds, the paper's Gain, paired differences.

`build_table` needs a plan and its results; how a table is written is in `table_text`. Every order
follows from the plan, none from how the store lists or returns its files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dashboards.cells import Cell, build_cells, scores_matrix, value_order
from dashboards.labels import Key, as_key, value_label
from dashboards.layout import Contrast, TableItem
from dashboards.results import Results
from dashboards.statistics import Paired, Summary, paired, ratio_of_means, summarise

__all__ = ["Coordinates", "Differences", "Pair", "Ratios", "Table", "build_table"]

Coordinates = tuple[Key, ...]

_SAME_TEACHER = ("strategy", "metric", "step", "ipc", "augmentation")
"""Fields along which a comparison should rest on one teacher snapshot. Along others (the teacher's
accuracy, the backbone) the teacher differs by design."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two cells that differ in the contrast's field alone.

    at: common coordinates, with the contrast's label in place of its field. is_mixed: a side rests
    on several teacher snapshots, or both on different ones where they should share one.
    """

    at: Coordinates
    of: Cell
    to: Cell
    is_mixed: bool


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """The paper's Gain: ratio, (num_pairs,), is mean(of) / mean(to)."""

    label: str
    pairs: tuple[Pair, ...]
    ratio: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Differences of − to by seed; arrays of `summary` are (num_pairs,)."""

    label: str
    pairs: tuple[Pair, ...]
    summary: Paired


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table. cells: in row, column order; arrays of `summary` are (num_cells,) over them.
    ranks: order of the values of each spanning field, contrast labels last."""

    item: TableItem
    cells: tuple[Cell, ...]
    summary: Summary
    ratios: Ratios | None
    differences: Differences | None
    ranks: tuple[dict[Key, int], ...]

    @property
    def title(self) -> str:
        """Heading; the name when the item has none."""
        return self.item.title or self.item.name

    @property
    def is_mixed(self) -> bool:
        """Whether some number rests on more than one teacher snapshot."""
        pairs = (self.ratios.pairs if self.ratios else ()) + (
            self.differences.pairs if self.differences else ()
        )
        return any(len(cell.digests) > 1 for cell in self.cells) or any(p.is_mixed for p in pairs)

    def order(self, coordinates: Coordinates) -> tuple[int, ...]:
        """Sort key of a row, a column or a cell given as full coordinates."""
        return _order(self.ranks, coordinates)


def build_table(results: Results, item: TableItem) -> Table:
    """Raises ReportError when a cell would mix settings (`cells.build_cells`)."""
    found = build_cells(results, item)
    ranks = tuple(value_order(results.plan, item, name) for name in item.spanning)
    cells = tuple(found[at] for at in sorted(found, key=lambda at: _order(ranks, at)))
    return Table(
        item=item,
        cells=cells,
        summary=summarise(scores_matrix(cells)),
        ratios=_ratios(item, cells),
        differences=_differences(item, cells),
        ranks=ranks,
    )


def _order(ranks: Sequence[dict[Key, int]], at: Coordinates) -> tuple[int, ...]:
    return tuple(rank.get(value, len(rank)) for rank, value in zip(ranks, at, strict=True))


def _ratios(item: TableItem, cells: tuple[Cell, ...]) -> Ratios | None:
    if item.ratio is None:
        return None
    label = f"Gain ({_side(item.ratio, 'of')} / {_side(item.ratio, 'to')})"
    pairs = _pairs(item, cells, item.ratio, label)
    of, to = _sides(pairs)
    return Ratios(label=label, pairs=pairs, ratio=ratio_of_means(of, to))


def _differences(item: TableItem, cells: tuple[Cell, ...]) -> Differences | None:
    if item.paired is None:
        return None
    label = f"{_side(item.paired, 'of')} − {_side(item.paired, 'to')}"
    pairs = _pairs(item, cells, item.paired, label)
    return Differences(label=label, pairs=pairs, summary=paired(*_sides(pairs)))


def _side(contrast: Contrast, name: str) -> str:
    return value_label(contrast.field, as_key(getattr(contrast, name)))


def _sides(pairs: tuple[Pair, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of both sides, each (num_seeds, num_pairs), the same seeds in the same rows."""
    both = scores_matrix([pair.of for pair in pairs] + [pair.to for pair in pairs])
    return both[:, : len(pairs)], both[:, len(pairs) :]


def _pairs(
    item: TableItem, cells: tuple[Cell, ...], contrast: Contrast, label: str
) -> tuple[Pair, ...]:
    """Pairs in cell order. A side to which a field does not apply (strategy A has no teacher) has
    one cell there, which stands against the other side's cell of every value."""
    axis = item.spanning.index(contrast.field)
    by_coordinates = {cell.coordinates: cell for cell in cells}
    masks = {tuple(value is None for value in cell.coordinates) for cell in cells}

    def side(at: Coordinates, value: Key) -> Cell | None:
        exact = (*at[:axis], value, *at[axis + 1 :])
        for mask in sorted(masks):  # the exact cell first: False sorts before True
            where = tuple(None if m else v for m, v in zip(mask, exact, strict=True))
            if where in by_coordinates and where[axis] == value:
                return by_coordinates[where]
        return None

    pairs = []
    for at in dict.fromkeys(
        (*c.coordinates[:axis], label, *c.coordinates[axis + 1 :]) for c in cells
    ):
        of, to = side(at, as_key(contrast.of)), side(at, as_key(contrast.to))
        if of and to:
            mixed = _is_mixed(of, to, contrast.field)
            pairs.append(Pair(at=at, of=of, to=to, is_mixed=mixed))
    return tuple(pairs)


def _is_mixed(of: Cell, to: Cell, field: str) -> bool:
    shared = field in _SAME_TEACHER and len(of.digests | to.digests) > 1
    return shared or max(len(of.digests), len(to.digests)) > 1
