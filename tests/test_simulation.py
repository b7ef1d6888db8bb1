"""The real searcher and ledger on a simulated cluster: how near to the shortest schedule they come,
and that no kind of run starves. Time is simulated, so nothing here depends on the machine."""

from __future__ import annotations

import pytest

from orchestrator.admission import Shape
from orchestrator.ledger import State
from tests.simulated_sweeps import (
    NARROW,
    QUARTER,
    WIDE,
    Mix,
    Verdict,
    judge,
    longest_chain_s,
    shortest_s,
    sweep,
)
from tests.simulation import Devices, NodeChange, Run, Simulation

MIXES = {
    "all narrow": Mix(),
    "few wide": Mix(wide=0.05),
    "half wide": Mix(wide=0.5),
    "many wide": Mix(wide=0.8),
    "wrong estimates": Mix(wide=0.3, noise=3.0),
}
LEAVES = [
    NodeChange(at_s=20_000, node=1, devices=-8),
    NodeChange(at_s=45_000, node=3, devices=-8),
    NodeChange(at_s=60_000, node=4, devices=8),
    NodeChange(at_s=60_000, node=5, devices=8),
]


def done(simulation: Simulation) -> bool:
    return simulation.ledger.count(State.DONE) == len(simulation.runs)


def fair(verdict: Verdict, most: float) -> bool:
    return max(verdict.starved.values()) <= most


@pytest.mark.parametrize("mix", MIXES)
def test_four_nodes_are_full_to_the_end(mix: str) -> None:
    simulation = Simulation(sweep(5_000, MIXES[mix], seed=0), nodes=4, per_node=8).run()
    verdict = judge(simulation)
    assert done(simulation)
    assert verdict.ratio <= 1.05
    assert min(verdict.busy[:-1]) >= 0.9
    assert fair(verdict, 0.10)


def test_quarters_of_a_gpu_leave_whole_ones_for_wide_runs() -> None:
    """What the ledger hands out fits the devices at once, piece by piece."""
    runs = sweep(5_000, Mix(wide=0.2, quarter=0.3), seed=0)
    simulation = Simulation(runs, nodes=4, per_node=8).run()
    verdict = judge(simulation)
    assert done(simulation)
    assert simulation.squeezed == 0
    assert verdict.ratio <= 1.05
    assert fair(verdict, 0.10)


def test_a_thousand_gpus() -> None:
    simulation = Simulation(sweep(10_000, Mix(wide=0.2), seed=0), nodes=125, per_node=8).run()
    verdict = judge(simulation)
    assert done(simulation)
    assert verdict.ratio <= 1.05
    assert fair(verdict, 0.10)


def test_a_sweep_as_short_as_its_longest_chain() -> None:
    """More devices than work: what counts is that the longest chains begin first."""
    runs = sweep(2_000, Mix(wide=0.1), seed=1)
    assert judge(Simulation(runs, nodes=125, per_node=8).run()).ratio <= 1.05


def test_nodes_leave_and_join() -> None:
    """What ran on a node goes on elsewhere, from its checkpoint."""
    runs = sweep(3_000, Mix(wide=0.2), seed=0)
    simulation = Simulation(runs, nodes=4, per_node=8, checkpoint_s=60, changes=LEAVES).run()
    preempted = len(simulation.spans) - len(runs)
    assert done(simulation)
    assert preempted > 0
    assert simulation.lost_s <= preempted * 60 * 8
    verdict = judge(simulation, LEAVES)
    assert verdict.ratio <= 1.05
    assert fair(verdict, 0.10)


def test_attempts_die_and_are_tried_again() -> None:
    runs = sweep(3_000, Mix(wide=0.2), seed=0)
    simulation = Simulation(runs, nodes=4, per_node=8, losses=0.03, seed=1).run()
    assert done(simulation)
    assert len(simulation.spans) > len(runs)
    assert judge(simulation).ratio <= 1.05


def test_a_wide_run_waits_for_a_cluster_that_grows() -> None:
    """It fits no device that is there; the others go on."""
    runs = [Run(name=f"n{n}", cost=10, seconds=10) for n in range(40)]
    runs.append(Run(name="wide", cost=10, seconds=10, shape=WIDE))
    joins = [NodeChange(at_s=95, node=1, devices=4)]
    simulation = Simulation(runs, nodes=1, per_node=4, changes=joins).run()
    assert done(simulation)
    assert [span.start_s for span in simulation.spans if span.run.name == "wide"] == [100]


# -- the measure itself ---------------------------------------------------------------------------


def test_the_longest_chain_begins_where_a_snapshot_appears() -> None:
    teacher = Run(name="t", cost=1, seconds=100, offers=((0.25, "t/1"), (0.5, "t/2")))
    student = Run(name="s", cost=1, seconds=60, needs=("t/2",))
    assert longest_chain_s([teacher, student]) == 110
    assert shortest_s([teacher, student], devices=4) == 110
    assert shortest_s([teacher, student], devices=1) == 160


def test_no_schedule_is_shorter_than_the_devices_that_are_there_allow() -> None:
    runs = [Run(name=f"r{n}", cost=1, seconds=10) for n in range(10)]
    leaves = [NodeChange(at_s=20, node=1, devices=-1)]
    assert shortest_s(runs, 2, leaves) == 20 + (100 - 40) / 1


def test_starving_is_waiting_while_none_of_the_kind_runs() -> None:
    runs = [
        Run(name="long", cost=9, seconds=90),
        Run(name="wide", cost=1, seconds=10, shape=Shape(workers=2)),
    ]
    verdict = judge(Simulation(runs, nodes=1, per_node=2).run())
    assert verdict.starved == {"1": 0.1, "2": 0.0}


def test_parts_share_a_device_and_leave_it_whole() -> None:
    devices = Devices(1, 2)
    places = [devices.place(QUARTER) for _ in range(4)]
    assert len({str(place) for place in places}) == 1
    assert devices.place(NARROW) is not None
    assert devices.place(QUARTER) is None
    for place in places:
        devices.free(place or [], QUARTER)
    assert len(devices.whole) == 1
