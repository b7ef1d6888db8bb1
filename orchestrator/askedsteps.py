"""At which steps a report wants to see a point: tables and figures by their `steps`, claims by
those that their tests read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from dashboards.layout import PSEUDO_FIELDS, ClaimItem
from orchestrator.fieldtypes import Value, plain
from orchestrator.grid import Point, projection
from orchestrator.settings import INDEX

if TYPE_CHECKING:
    from orchestrator.spec import Sweep

__all__ = ["asked_steps", "steps_named"]


class _Wish(NamedTuple):
    """Steps at which points are wanted that have one of the values, field by field."""

    where: Mapping[str, Any]
    steps: tuple[int, ...]

    def accepts(self, settings: Mapping[str, Any]) -> bool:
        return all(
            settings.get(name) in (wanted if isinstance(wanted, list) else [wanted])
            for name, wanted in self.where.items()
        )


def steps_named(sweep: Sweep) -> set[int]:
    """All steps that the sweep's own report names; a group's claims do not count, so that a sweep
    is the same with its group and without."""
    return {step for wish in _wishes(sweep, with_groups=False) for step in wish.steps}


def asked_steps(sweep: Sweep) -> Callable[[Point], frozenset[int]]:
    """The steps at which somebody wants to see a point."""
    wishes = list(_wishes(sweep, with_groups=True))
    names = tuple(dict.fromkeys(name for wish in wishes for name in wish.where))
    pick = projection(names)
    known: dict[tuple[Value, ...], frozenset[int]] = {}

    def steps(point: Point) -> frozenset[int]:
        values = pick(point)
        if values not in known:
            settings = {name: plain(value) for name, value in zip(names, values, strict=True)}
            known[values] = frozenset(
                step for wish in wishes if wish.accepts(settings) for step in wish.steps
            )
        return known[values]

    return steps


def _wishes(sweep: Sweep, *, with_groups: bool) -> Iterator[_Wish]:
    for item in (*sweep.report, *(sweep.claims if with_groups else ())):
        if isinstance(item, ClaimItem):
            yield from _of_claim(item, sweep.name, own=item in sweep.report)
        elif item.steps:
            yield _Wish(item.where, item.steps)


def _of_claim(item: ClaimItem, sweep: str, *, own: bool) -> Iterator[_Wish]:
    """A side of a test overrides what its `where` says. Fields that no setting has are the report's
    to complain about."""
    for test in item.tests:
        if not test.named_steps or (test.sweep != sweep and not (own and test.sweep is None)):
            continue
        for side in test.sides:
            where = {**test.where, **side}
            settings = {name: where[name] for name in where if name not in PSEUDO_FIELDS}
            yield _Wish({k: v for k, v in settings.items() if k in INDEX}, test.named_steps)
