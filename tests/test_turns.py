"""Which width is next: turns by the work that is left, and places that stay with their kind."""

from __future__ import annotations

from itertools import pairwise

from orchestrator.admission import Capacity, Shape
from orchestrator.turns import Turns

NARROW, WIDE, QUARTER = Shape(), Shape(workers=4), Shape(devices_per_worker=0.25)


def turns_of(**kinds: tuple[Shape, int]) -> Turns:
    """By name of the kind: its shape, and how many units of one step."""
    turns = Turns()
    made = [(name, shape, n) for name, (shape, count) in kinds.items() for n in range(count)]
    for _, shape, _ in made:
        turns.expect(shape, 1.0)
    for order, (name, shape, n) in enumerate(made):
        turns.add(shape, 1.0, 1.0, order, f"{name}{n}")
    return turns


def take(turns: Turns, capacity: Capacity, shape: Shape) -> str | None:
    name = turns.take(capacity)
    if name is not None:
        capacity.take(shape)
    return name


def test_longest_chain_first_then_the_order_of_the_plan() -> None:
    turns = Turns()
    for order, chain in enumerate((1.0, 5.0, 5.0)):
        turns.expect(NARROW, 1.0)
        turns.add(NARROW, 1.0, chain, order, f"u{order}")
    assert [turns.take(Capacity(9)) for _ in range(4)] == ["u1", "u2", "u0", None]


def test_the_widest_that_fits_goes_first() -> None:
    turns = turns_of(narrow=(NARROW, 100), wide=(WIDE, 100))
    assert turns.take(Capacity(4)) == "wide0"
    assert turns.take(Capacity(3)) == "narrow0"


def test_a_place_stays_with_its_kind_until_the_other_is_a_twentieth_behind() -> None:
    turns = turns_of(narrow=(NARROW, 100), wide=(WIDE, 100))
    taken = [turns.take(Capacity(4)) or "" for _ in range(30)]
    changes = sum(a[0] != b[0] for a, b in pairwise(taken))
    assert [name[0] for name in taken].count("n") >= 10
    assert changes <= 5


def test_devices_wait_for_a_wide_one_that_fell_behind() -> None:
    turns = turns_of(narrow=(NARROW, 100), wide=(WIDE, 2))
    crowded = Capacity(4, used=3)
    taken = []
    while (name := turns.take(crowded)) is not None:
        taken.append(name)
    assert 5 <= len(taken) <= 6
    assert turns.take(Capacity(4)) == "wide0"
    assert turns.take(crowded) == "narrow" + str(len(taken))


def test_what_no_device_can_take_keeps_nobody_waiting() -> None:
    turns = turns_of(narrow=(NARROW, 50), wide=(Shape(workers=8), 50))
    assert sum(turns.take(Capacity(4)) is not None for _ in range(60)) == 50


def test_a_kind_that_comes_late_does_not_take_everything() -> None:
    turns = Turns()
    for number in range(50):
        turns.expect(NARROW, 1.0)
        turns.expect(WIDE, 1.0)
        turns.add(NARROW, 1.0, 1.0, number, f"n{number}")
    for _ in range(25):
        turns.take(Capacity(1))
    for number in range(50):
        turns.add(WIDE, 1.0, 1.0, number, f"w{number}")
    taken = [(turns.take(Capacity(4)) or "")[0] for _ in range(12)]
    assert "n" in taken


def test_fractions_fill_shared_devices_while_a_wide_one_waits() -> None:
    turns = turns_of(quarter=(QUARTER, 100), wide=(WIDE, 1))
    capacity = Capacity(6, used=4)  # two devices for the quarters, four that are busy
    taken = 0
    while (take(turns, capacity, QUARTER)) is not None:
        taken += 1
    assert taken == 8  # beyond a twentieth, but into devices that were shared already
