"""Which of the paper's numbers belongs to which cell.

A cell is described by a target: the value of every field it has, the spanning ones and those that
are the same in all its points, `metric` and `step` among them. A reference belongs to a cell when
every field of its `at` has the cell's value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from dashboards.labels import Key, as_key
from dashboards.layout import FigureItem, Reference, TableItem

__all__ = ["Target", "assigned", "fits", "is_about", "target"]

Target = Mapping[str, Key]
_MISSING = "\0"


def target(
    settings: Mapping[str, JsonValue],
    spanning: Sequence[str],
    at: Sequence[Key],
    metric: str,
    step: int,
    without: str | None = None,
) -> Target:
    """Every field of one cell. settings: of one of its points. at: values of `spanning`. without:
    the field that a Gain compares, which a Gain has no value of."""
    found: dict[str, Key] = {
        name: as_key(value) for name, value in settings.items() if name != "seed"
    }
    found |= {"metric": metric, "step": float(step)}
    found |= dict(zip(spanning, at, strict=True))
    return {name: value for name, value in found.items() if name != without}


def fits(references: Sequence[Reference], targets: Sequence[Target]) -> list[list[int]]:
    """For each reference the indices of the targets it fits, ascending. Linear in both."""
    indexes: dict[tuple[str, ...], dict[tuple[Key, ...], list[int]]] = {}
    found = []
    for reference in references:
        fields = tuple(sorted(reference.at))
        if fields not in indexes:
            indexes[fields] = _index(fields, targets)
        wanted = tuple(as_key(reference.at[name]) for name in fields)
        found.append(indexes[fields].get(wanted, []))
    return found


def _index(fields: Sequence[str], targets: Sequence[Target]) -> dict[tuple[Key, ...], list[int]]:
    index: dict[tuple[Key, ...], list[int]] = defaultdict(list)
    for position, one in enumerate(targets):
        index[tuple(one.get(name, _MISSING) for name in fields)].append(position)
    return index


def assigned(
    references: Sequence[Reference], targets: Sequence[Target]
) -> tuple[Reference | None, ...]:
    """The reference of each target, the first one where several fit."""
    of: dict[int, Reference] = {}
    for reference, places in zip(references, fits(references, targets), strict=True):
        for place in places:
            of.setdefault(place, reference)
    return tuple(of.get(index) for index in range(len(targets)))


def is_about(item: TableItem | FigureItem, reference: Reference) -> bool:
    """Whether the item's `where` leaves room for the reference. Several items may read one file."""
    for name, wanted in item.where.items():
        values = [as_key(value) for value in (wanted if isinstance(wanted, list) else [wanted])]
        if name in reference.at and as_key(reference.at[name]) not in values:
            return False
    return True
