"""Which cells a contrast sets against each other, by their coordinates alone."""

from __future__ import annotations

from collections.abc import Sequence

from dashboards.labels import Key, as_key
from dashboards.layout import Contrast

__all__ = ["SAME_TEACHER", "Coordinates", "paired_coordinates"]

Coordinates = tuple[Key, ...]

SAME_TEACHER = ("strategy", "metric", "step", "ipc", "augmentation")
"""Fields along which a comparison should rest on one teacher snapshot. Along others (the teacher's
accuracy, the backbone) the teacher differs by design."""


def paired_coordinates(
    spanning: Sequence[str], contrast: Contrast, cells: Sequence[Coordinates], label: str
) -> list[tuple[Coordinates, Coordinates, Coordinates]]:
    """(at, of, to) of every pair, in cell order; `at` has `label` in place of the contrast's value.

    A side to which a field does not apply (strategy A has no teacher) has one cell there, which
    stands against the other side's cell of every value.
    """
    axis = spanning.index(contrast.field)
    present = set(cells)
    # the exact cell first: False sorts before True
    masks = sorted({tuple(value is None for value in cell) for cell in cells})

    def side(at: Coordinates, value: Key) -> Coordinates | None:
        exact = (*at[:axis], value, *at[axis + 1 :])
        for mask in masks:
            where = tuple(None if m else v for m, v in zip(mask, exact, strict=True))
            if where in present and where[axis] == value:
                return where
        return None

    found = []
    for at in dict.fromkeys((*c[:axis], label, *c[axis + 1 :]) for c in cells):
        of, to = side(at, as_key(contrast.of)), side(at, as_key(contrast.to))
        if of and to:
            found.append((at, of, to))
    return found
