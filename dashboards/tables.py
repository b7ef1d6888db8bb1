"""The numbers of a table: cells over seeds, the paper's Gain, paired differences.

`build_table` needs a plan and its results; how a table is written is in `table_text`. Every order
follows from the plan, none from how the store lists or returns its files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dashboards.cells import Cell, build_cells, scores_matrix, value_order, values_here
from dashboards.comparisons import Comparison, GainSide, compare_gain, compare_mean
from dashboards.labels import Key, as_key, value_label
from dashboards.layout import Contrast, TableItem
from dashboards.pairs import SAME_TEACHER, Coordinates, paired_coordinates
from dashboards.references import Target, assigned, target
from dashboards.results import Results, Scale
from dashboards.statistics import Paired, Summary, paired, ratio_of_means, summarise

__all__ = ["Coordinates", "Differences", "Pair", "Ratios", "Table", "build_table"]


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

    @property
    def num_seeds(self) -> int:
        """Seeds of the side with fewer."""
        return min(len(self.of.scores), len(self.to.scores))


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """The paper's Gain: ratio, (num_pairs,), is mean(of) / mean(to). comparisons: (num_pairs,),
    None where the paper prints none."""

    label: str
    pairs: tuple[Pair, ...]
    ratio: NDArray[np.float64]
    comparisons: tuple[Comparison | None, ...]


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Differences of − to by seed; arrays of `summary` are (num_pairs,)."""

    label: str
    pairs: tuple[Pair, ...]
    summary: Paired


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table. cells: in row, column order; arrays of `summary` are (num_cells,) over them, and
    so is comparisons, None where the paper prints no number. ranks: order of the values of each
    spanning field, contrast labels last. scale: of a pilot, whose own values are `here`
    (`cells.values_here`). overrides: what makes another experiment of it (`results.Plan`).
    restriction: as in `Results`."""

    item: TableItem
    cells: tuple[Cell, ...]
    summary: Summary
    comparisons: tuple[Comparison | None, ...]
    ratios: Ratios | None
    differences: Differences | None
    ranks: tuple[dict[Key, int], ...]
    scale: Scale | None
    overrides: tuple[str, ...]
    restriction: str
    here: dict[str, dict[Key, tuple[Key, ...]]]

    @property
    def title(self) -> str:
        """Heading; the name when the item has none. A pilot says that it is one."""
        title = self.item.title or self.item.name
        return f"{title} ({self.scale.label})" if self.scale else title

    @property
    def num_planned(self) -> int:
        """Cells that the plan asks; a pilot leaves some out."""
        return sum(bool(cell.planned) for cell in self.cells)

    @property
    def compared(self) -> tuple[Comparison, ...]:
        """All numbers that stand beside one of the paper's: means, then Gains."""
        both = self.comparisons + (self.ratios.comparisons if self.ratios else ())
        return tuple(one for one in both if one is not None)

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
    summary = summarise(scores_matrix(cells))
    is_tested = not results.plan.departure
    comparisons = _comparisons(item, cells, summary, is_tested)
    return Table(
        item=item,
        cells=cells,
        summary=summary,
        comparisons=comparisons,
        ratios=_ratios(item, cells, _gain_sides(cells, summary, comparisons), is_tested),
        differences=_differences(item, cells),
        ranks=ranks,
        scale=results.plan.scale,
        overrides=results.plan.overrides,
        restriction=results.restriction,
        here=values_here(results.plan, item),
    )


def _cell_target(item: TableItem, cell: Cell) -> Target:
    return target(cell.settings, item.spanning, cell.coordinates, cell.metric, cell.step)


def _gain_target(item: TableItem, pair: Pair, contrast: Contrast) -> Target:
    of = pair.of
    return target(of.settings, item.spanning, pair.at, of.metric, of.step, contrast.field)


def _comparisons(
    item: TableItem, cells: tuple[Cell, ...], s: Summary, is_tested: bool
) -> tuple[Comparison | None, ...]:
    means = [reference for reference in item.references if reference.kind == "mean"]
    if not means:
        return (None,) * len(cells)
    found = assigned(means, [_cell_target(item, cell) for cell in cells])
    return tuple(
        compare_mean(one, float(s.mean[i]), float(s.std[i]), int(s.n[i]), is_tested=is_tested)
        if one
        else None
        for i, one in enumerate(found)
    )


def _order(ranks: Sequence[dict[Key, int]], at: Coordinates) -> tuple[int, ...]:
    return tuple(rank.get(value, len(rank)) for rank, value in zip(ranks, at, strict=True))


def _gain_sides(
    cells: tuple[Cell, ...], s: Summary, comparisons: tuple[Comparison | None, ...]
) -> dict[Coordinates, GainSide]:
    """What each cell is as a side of a Gain."""
    numbers = zip(cells, s.mean, s.std, s.n, comparisons, strict=True)
    return {
        cell.coordinates: GainSide(float(mean), float(std), int(n), one.reference if one else None)
        for cell, mean, std, n, one in numbers
    }


def _ratios(
    item: TableItem, cells: tuple[Cell, ...], sides: dict[Coordinates, GainSide], is_tested: bool
) -> Ratios | None:
    if item.ratio is None:
        return None
    label = f"Gain ({_side(item.ratio, 'of')} / {_side(item.ratio, 'to')})"
    pairs = _pairs(item, cells, item.ratio, label)
    ratio = ratio_of_means(*_sides(pairs))
    gains = [reference for reference in item.references if reference.kind == "gain"]
    targets = [_gain_target(item, pair, item.ratio) for pair in pairs] if gains else []
    comparisons = tuple(
        compare_gain(
            one, sides[pair.of.coordinates], sides[pair.to.coordinates], is_tested=is_tested
        )
        if one
        else None
        for pair, one in zip(pairs, assigned(gains, targets) or (None,) * len(pairs), strict=True)
    )
    return Ratios(label=label, pairs=pairs, ratio=ratio, comparisons=comparisons)


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
    """Pairs in cell order."""
    by_coordinates = {cell.coordinates: cell for cell in cells}
    pairs = []
    for at, one, other in paired_coordinates(item.spanning, contrast, list(by_coordinates), label):
        of, to = by_coordinates[one], by_coordinates[other]
        mixed = _is_mixed(of, to, contrast.field)
        pairs.append(Pair(at=at, of=of, to=to, is_mixed=mixed))
    return tuple(pairs)


def _is_mixed(of: Cell, to: Cell, field: str) -> bool:
    shared = field in SAME_TEACHER and len(of.digests | to.digests) > 1
    return shared or max(len(of.digests), len(to.digests)) > 1
