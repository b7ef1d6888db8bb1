"""Slots: what fits now, what never will, and that giving back restores everything."""

from __future__ import annotations

from collections import Counter

import pytest

from orchestrator.admission import Capacity, Rooms, Shape
from orchestrator.ledger import State
from tests.ledgers import Fake, ledger_of, names, take_all


@pytest.mark.parametrize(
    ("workers", "per_worker", "devices"),
    [(1, 1.0, 1.0), (1, 0.5, 0.5), (1, 2.0, 2.0), (2, 1.0, 2.0), (4, 0.5, 4.0), (2, 1.5, 4.0)],
)
def test_devices_of_a_shape(workers: int, per_worker: float, devices: float) -> None:
    """A fraction is shared by one-worker runs only: NCCL refuses one GPU twice."""
    assert Shape(workers=workers, devices_per_worker=per_worker).devices == devices


def test_what_is_taken_is_not_free() -> None:
    capacity = Capacity(total=3.0)
    wide = Shape(workers=2)
    capacity.take(wide)
    assert capacity.free == 1.0
    assert not capacity.fits(wide)
    assert capacity.fits(Shape())
    capacity.release(wide)
    assert capacity.free == 3.0


def test_thirds_of_a_device_fill_it_whole() -> None:
    """0.1 + 0.2 is not 0.3: a third slice of 1/3 must fit, a fourth must not."""
    capacity, third = Capacity(total=1.0), Shape(devices_per_worker=1 / 3)
    for _ in range(3):
        assert capacity.fits(third)
        capacity.take(third)
    assert not capacity.fits(third)


def test_tenths_come_and_go_without_losing_a_slot() -> None:
    capacity, tenth = Capacity(total=1.0), Shape(devices_per_worker=0.1)
    for _ in range(1000):
        capacity.take(tenth)
        capacity.release(tenth)
    assert capacity.fits(Shape())
    assert capacity.used >= 0.0


def test_too_wide_for_ever_is_another_thing_than_too_wide_now() -> None:
    capacity = Capacity(total=2.0, used=2.0)
    assert capacity.can_ever_fit(Shape(workers=2))
    assert not capacity.can_ever_fit(Shape(workers=3))
    capacity.total = 4.0  # a node joined
    assert capacity.can_ever_fit(Shape(workers=3))


def test_what_others_hold_is_not_free() -> None:
    """A run that does not fit beside other people's waits for them, and keeps nobody waiting."""
    capacity = Capacity(total=8.0, taken=3.0)
    assert capacity.free == 5.0
    assert not capacity.fits(Shape(workers=6))
    assert not capacity.can_ever_fit(Shape(workers=6))
    assert capacity.fits(Shape(workers=5))


def test_nodes_that_leave_take_the_room_of_what_still_runs() -> None:
    capacity = Capacity(total=16.0)
    capacity.take(Shape(workers=16))
    capacity.total = 8.0
    assert not capacity.fits(Shape())
    capacity.release(Shape(workers=16))
    assert capacity.free == 8.0


def test_no_more_runs_than_somebody_allows() -> None:
    capacity = Capacity(total=8.0, most_runs=2)
    capacity.take(Shape())
    capacity.take(Shape(workers=2))
    assert not capacity.fits(Shape())
    capacity.release(Shape())
    assert capacity.fits(Shape())


# -- which node ----------------------------------------------------------------------------------

TWO = {"a": 8.0, "b": 8.0}
WIDE = Shape(workers=8)


def test_halves_of_two_nodes_are_no_room_for_a_wide_run() -> None:
    """Eight free devices, four on each node: its workers would wait for the network each step."""
    capacity = Capacity(total=16.0, rooms=Rooms(TWO))
    for number in range(8):
        capacity.take(Shape())
        capacity.rooms.begin(f"u{number}", Shape())
        capacity.rooms.lies(f"u{number}", {"ab"[number % 2]: 1})
    assert capacity.free == 8.0
    assert not capacity.fits(WIDE)
    assert capacity.fits(Shape(workers=4))
    for number in range(0, 8, 2):
        capacity.release(Shape())
        capacity.rooms.end(f"u{number}")
    assert capacity.fits(WIDE)


def test_a_run_that_has_not_said_where_it_is_may_be_anywhere() -> None:
    """On one node, though: of two empty ones it spoils one, and two such runs may spoil both."""
    rooms = Rooms(TWO)
    rooms.begin("u", Shape())
    assert rooms.has_room(WIDE)
    rooms.begin("v", Shape())
    assert not rooms.has_room(WIDE)
    assert rooms.has_room(Shape(workers=6))
    rooms.lies("v", {"b": 1})
    assert not rooms.has_room(WIDE)  # the other may be on a
    rooms.lies("u", {"b": 1})
    assert rooms.has_room(WIDE)
    rooms.begin("w", Shape(workers=9))
    assert not rooms.has_room(WIDE)
    rooms.end("w")
    rooms.end("u")
    rooms.end("u")  # of a run that began before anybody counted
    assert rooms.has_room(WIDE)


def test_a_wide_run_that_was_split_holds_both_its_halves() -> None:
    rooms = Rooms(TWO)
    rooms.begin("u", WIDE)
    rooms.lies("u", {"a": 5, "b": 3})
    assert rooms.has_room(Shape(workers=5))
    assert not rooms.has_room(Shape(workers=6))


@pytest.mark.parametrize("nodes", [{}, TWO, {"a": 7.0, "b": 7.0}])
def test_a_run_wider_than_any_node_takes_what_there_is(nodes: dict[str, float]) -> None:
    wide = Shape(workers=16 if nodes == TWO else 8)
    capacity = Capacity(total=16.0, rooms=Rooms(nodes))
    assert capacity.fits(wide)


def test_runs_of_one_worker_go_where_ray_puts_them() -> None:
    rooms = Rooms({"a": 1.0, "b": 1.0})
    rooms.begin("u", Shape())
    assert rooms.has_room(Shape())
    assert rooms.has_room(Shape(devices_per_worker=0.5))


def test_a_mixed_sweep_splits_no_wide_run_and_ends() -> None:
    """Two nodes; what Ray does: one worker goes to the fullest node with room, several to one node
    if it has room for all, else to both."""
    narrow = [Fake(f"n{number}", cost=5 + 7 * number % 50) for number in range(60)]
    wide = [Fake(f"w{n}", ("t",), cost=20 + n, workers=8) for n in range(8)]
    ledger = ledger_of(Fake("t", provides=("t",), cost=30), *narrow, *wide, slots=16)
    ledger.capacity.rooms.nodes = dict(TWO)
    free, going, spans = dict(TWO), dict[str, tuple[float, Counter[str]]](), list[int]()
    now = 0.0
    while not ledger.finished:
        for name in take_all(ledger):
            where: Counter[str] = Counter()
            left = ledger.entries[name].shape.workers
            for node in sorted(free, key=lambda one: (free[one] < left, free[one])):
                taken = min(left, int(free[node]))
                where[node], left = taken, left - taken
                free[node] -= taken
            assert not left
            ledger.lies(name, where.elements())
            going[name] = (now + ledger.entries[name].cost, where)
            spans += [sum(count > 0 for count in where.values())] * (where.total() > 1)
        name = min(going, key=lambda one: going[one][0])
        now, where = going.pop(name)
        for node, count in where.items():
            free[node] += count
        ledger.done(name)
    assert spans == [1] * 8
    assert names(ledger, State.DONE) == ledger.entries.keys()


def test_how_many_runs_of_a_shape_there_is_room_for() -> None:
    assert Capacity(8.0).most_at_once(Shape(devices_per_worker=0.25)) == 32
    assert Capacity(8.0).most_at_once(Shape(workers=4)) == 2
    assert Capacity(8.0, most_runs=3).most_at_once(Shape()) == 3
