"""When failures say more than that a run failed: a pure policy over those that are alike, one after
the other, of whatever runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.retry import Failure

__all__ = ["Repeats"]


class Repeats:
    """first: so many failures alike before anything ended well are too many. in_a_row: so many
    attempts that failed alike one after the other, anywhere or on one node. 0 switches a rule off.
    """

    def __init__(self, first: int, in_a_row: int) -> None:
        self._first = first
        self._in_a_row = in_a_row
        self._any_success = False
        self._first_failures: list[Failure] = []
        self._rows: dict[str, list[Failure]] = defaultdict(list)
        """Of each node, and under "" of all of them."""

    def ended(self, node: str, *, well: bool = False) -> None:
        """An attempt did work that lasts, on this node ("": nobody knows), which breaks rows. well:
        it ended, and failed in nothing."""
        self._any_success = self._any_success or well
        for place in {"", node}:
            self._rows.pop(place, None)

    def failed(self, failure: Failure, *, given_up: bool) -> Failure | None:
        """This failure, if it was one too many; its `where` and `node` then name the node that all
        of them were on, and are empty where there were several. given_up: its run is not tried
        again."""
        if not failure.is_systematic:
            return None
        rows = [self._rows[place] for place in sorted({"", failure.node})]
        for row in rows:
            if row and row[-1].signature != failure.signature:
                row.clear()
            row.append(failure)
        if given_up and not self._any_success:
            self._first_failures.append(failure)
        limits = [(self._first_failures, self._first), *((row, self._in_a_row) for row in rows)]
        too_many = [seen for seen, limit in limits if _alike(seen) and len(seen) >= limit > 0]
        return _named(failure, too_many[0]) if too_many else None


def _named(failure: Failure, seen: Sequence[Failure]) -> Failure:
    on_one = len({one.node for one in seen}) == 1
    return failure if on_one else replace(failure, where="", node="")


def _alike(failures: Sequence[Failure]) -> bool:
    return len({one.signature for one in failures}) == 1
