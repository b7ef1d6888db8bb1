"""What a reader must know to read a table, one sentence each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dashboards.comparisons import Comparison
from dashboards.grids import MIXED, heading
from dashboards.labels import field_label
from dashboards.results import Scale
from dashboards.tables import Table

__all__ = ["departure_notes", "notes", "override_notes", "restriction_notes", "scale_notes"]

_BOLD = {
    "row_max": "Bold: the largest of its row.",
    "column_max": "Bold: the largest of its column within a group of rows.",
    "gain": "Bold: a Gain above 1.",
}


def notes(table: Table) -> list[str]:
    """Sentences below the table, in a fixed order."""
    return [
        *_about_ours(table),
        *_spreads(table),
        *departure_notes(table),
        *_reference_notes(table),
        *_about_odd_numbers(table),
    ]


def _about_ours(table: Table) -> list[str]:
    planned = max((cell.num_planned for cell in table.cells), default=0)
    seeds = f"{planned} seed{'s' if planned != 1 else ''}"
    behind = {digest for cell in table.cells for digest in cell.digests}
    one = {0: "", 1: "; one teacher"}.get(len(behind), "; one teacher snapshot a cell")
    over = "students" + ("" if table.is_mixed else one)
    text = [f"Mean ± sample standard deviation over {seeds} ({over})."]
    heads = table.item.heads
    columns = [
        heads.get(name, field_label(name).lower())
        for name in table.item.columns
        if name != "metric"
    ]
    text += [f"Columns: {', '.join(columns)}."] if columns else []
    short = any(0 < len(cell.scores) < cell.num_planned for cell in table.cells)
    text += ["n is given where seeds are missing."] if short else []
    steps = sorted({cell.step for cell in table.cells})
    if "step" not in table.item.spanning and steps:
        shown = [heading(table, ("step",), (float(step),)) for step in steps]
        text.append(f"At step {', '.join(shown)}.")
    text += [_BOLD[table.item.bold]] if table.item.bold else []
    if table.is_mixed:
        text.append(f"{MIXED} More than one teacher snapshot (weight digest) stands behind it.")
    return text


def _spreads(table: Table) -> list[str]:
    """Ours beside the paper's: one that is much smaller, or larger, is a question."""
    pairs = [
        (std, comparison.reference.std)
        for std, comparison in zip(table.summary.std, table.comparisons, strict=True)
        if comparison is not None and comparison.reference.std is not None and not np.isnan(std)
    ]
    if not pairs:
        return []
    ours, theirs = np.median(pairs, axis=0)
    cells = f"{len(pairs)} cells that have both" if len(pairs) > 1 else "the one cell that has both"
    return [f"Median standard deviation of {cells}: ours {ours:.2f}, the paper's {theirs:.2f}."]


def departure_notes(table: Table) -> list[str]:
    """What a scaled sweep, or the command line, changed, and which runs alone count; nothing of a
    sweep as it is written."""
    text = override_notes(table.overrides)
    if table.scale is not None:
        text.append(f"A {table.scale.label}: the layout of the full experiment, not its scale.")
        text += scale_notes(table.scale)
    if text and table.compared:
        theirs = "settings" if table.scale is None else "scale"
        text.append(
            f"The paper's values are those of its own {theirs}; nothing is tested against them."
        )
    return restriction_notes(table.restriction) + text


def restriction_notes(restriction: str) -> list[str]:
    """Which runs alone count, as one sentence."""
    return [f"Restricted to runs of {restriction}; n counts those alone."] if restriction else []


def override_notes(overrides: Sequence[str]) -> list[str]:
    """What the command line changed, as one sentence."""
    changed = f"Another experiment than the sweep file's, changed by --set: {'; '.join(overrides)}."
    return [changed] if overrides else []


def scale_notes(scale: Scale) -> list[str]:
    """What the scale changed, as one sentence."""
    return [f"Scale: {'; '.join(scale.notes)}."] if scale.notes else []


def _reference_notes(table: Table) -> list[str]:
    if not table.compared:
        return []
    text = ["Small print: the paper's value"]
    if table.scale is None and not table.overrides:
        text = [
            "Small print: the paper's value, the difference ours − paper, and whether ours is "
            "inside, above or below by the 95% Welch interval of that difference",
            "std over students, one teacher; the paper's n = 5, its ± taken as sample std",
            "— where we have fewer than 5 seeds or the paper prints no ±",
        ]
        if table.ratios and any(table.ratios.comparisons):
            text.append(
                "a Gain's interval is that of the difference of logarithms, from the spread of our "
                "two means and of the paper's two, widened by the printed Gain's rounding, ±0.005"
            )
        text += _counts(table.compared)
    if any(c.reference.review_value is not None for c in table.compared):
        text.append("review copy: the value it prints where that differs from the arXiv copy")
    if any(c.reference.status == "partial" for c in table.compared):
        text.append("partly legible: read off a drawing")
    return ["; ".join(text) + "."]


def _counts(compared: tuple[Comparison, ...]) -> list[str]:
    found = Counter(c.verdict for c in compared if c.verdict not in (None, "—"))
    if not found:
        return []
    parts = [f"{found[v]} {v}" for v in ("inside", "above", "below") if found[v]]
    return [f"of {sum(found.values())} compared, {', '.join(parts)}"]


def _about_odd_numbers(table: Table) -> list[str]:
    """Notes that the reference file has, each with the cells it is about."""
    places: dict[str, list[str]] = {}
    fields = table.item.spanning
    for cell, comparison in zip(table.cells, table.comparisons, strict=True):
        if comparison and comparison.reference.note:
            where = heading(table, fields, cell.coordinates)
            places.setdefault(comparison.reference.note, []).append(where)
    for pair, gain in (
        zip(table.ratios.pairs, table.ratios.comparisons, strict=True) if table.ratios else ()
    ):
        if gain and gain.reference.note:
            where = heading(table, fields, pair.at)
            places.setdefault(gain.reference.note, []).append(where)
    return [f"{'; '.join(where)}: {note.rstrip('.')}." for note, where in places.items()]
