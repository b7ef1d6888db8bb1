"""How near the real searcher and ledger come to the shortest schedule, on a simulated clock.

    python benchmarks/schedule_sim.py [--json schedule_sim.json] [--seeds 3]

No Ray and no training: tests/simulation.py moves the clock, everything that decides is what decides
in life. ratio: makespan over max(Σ GPU·seconds / GPUs, longest chain). starved: the longest time
in which runs of one width were ready and none ran, over the makespan. us: real microseconds of the
searcher a hand-out (median, 99th percentile). Of several seeds the worst is shown.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe

from orchestrator.ledger import State
from tests.simulated_sweeps import Mix, judge, sweep
from tests.simulation import NodeChange, Simulation

HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Scenario:
    name: str
    runs: int
    mix: Mix
    nodes: int = 4
    losses: float = 0.0
    changes: list[NodeChange] = field(default_factory=list)


def comings_and_goings(nodes: int, hours: int) -> list[NodeChange]:
    """Every two hours a node of eight leaves with what runs on it, and another joins an hour
    later."""
    made = []
    for number, hour in enumerate(range(2, hours, 2)):
        made.append(NodeChange(at_s=hour * HOUR, node=number, devices=-8))
        made.append(NodeChange(at_s=(hour + 1) * HOUR, node=nodes + number, devices=8))
    return made


def scenarios() -> list[Scenario]:
    mixes = {
        "all narrow": Mix(),
        "5% wide": Mix(wide=0.05),
        "20% wide": Mix(wide=0.2),
        "50% wide": Mix(wide=0.5),
        "80% wide": Mix(wide=0.8),
        "20% wide, 30% quarters": Mix(wide=0.2, quarter=0.3),
        "10% wide, 50% quarters": Mix(wide=0.1, quarter=0.5),
    }
    made = [Scenario(name=name, runs=5_000, mix=mix) for name, mix in mixes.items()]
    for name in ("20% wide", "50% wide", "80% wide"):
        wrong = Mix(wide=mixes[name].wide, noise=3.0)
        made.append(Scenario(name=f"{name}, costs off by 3", runs=5_000, mix=wrong))
    some = Mix(wide=0.2)
    away = comings_and_goings(4, 20)
    made += [
        Scenario(name="20% wide, nodes leave", runs=5_000, mix=some, changes=away),
        Scenario(name="20% wide, 3% die", runs=5_000, mix=some, losses=0.03),
        Scenario(name="20% wide", runs=100_000, nodes=125, mix=some),
        Scenario(
            name="20% wide, costs off by 3", runs=100_000, nodes=125, mix=Mix(wide=0.2, noise=3.0)
        ),
        Scenario(
            name="20% wide, 20% quarters", runs=100_000, nodes=125, mix=Mix(wide=0.2, quarter=0.2)
        ),
        Scenario(
            name="20% wide, nodes leave, 3% die",
            runs=100_000,
            nodes=125,
            mix=some,
            losses=0.03,
            changes=comings_and_goings(125, 20),
        ),
    ]
    return made


def measure(scenario: Scenario, seed: int) -> dict[str, Any]:
    began = time.perf_counter()
    simulation = Simulation(
        sweep(scenario.runs, scenario.mix, seed=seed),
        nodes=scenario.nodes,
        per_node=8,
        seed=seed,
        losses=scenario.losses,
        changes=scenario.changes,
    ).run()
    verdict = judge(simulation, scenario.changes)
    asked = sorted(simulation.asked_s)
    return {
        "gpus": scenario.nodes * 8,
        "runs": len(simulation.runs),
        "scenario": scenario.name,
        "hours": round(verdict.makespan_s / HOUR, 1),
        "ratio": round(verdict.ratio, 4),
        "starved": round(max(verdict.starved.values()), 3),
        "us": round(1e6 * asked[len(asked) // 2], 1),
        "us_99": round(1e6 * asked[int(0.99 * len(asked))], 1),
        "again": len(simulation.spans) - len(simulation.runs),
        "done": simulation.ledger.count(State.DONE),
        "starved_by_width": {name: round(value, 3) for name, value in verdict.starved.items()},
        "longest_wait_by_width": {name: round(value, 3) for name, value in verdict.waited.items()},
        "busy_by_tenth": verdict.busy,
        "lost_gpu_hours": round(simulation.lost_s / HOUR, 2),
        "waited_for_devices": simulation.squeezed,
        "simulated_in_s": round(time.perf_counter() - began, 1),
        "seed": seed,
    }


SHOWN = {"gpus": 6, "runs": 8, "scenario": 32, "hours": 7, "ratio": 8, "starved": 9, "us": 7}
SHOWN |= {"us_99": 8, "again": 7}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None, help="write rows and machine there too")
    arguments = parser.parse_args()
    print("".join(f"{name:>{width}}" for name, width in SHOWN.items()))
    rows = []
    for scenario in scenarios():
        found = [measure(scenario, seed) for seed in range(arguments.seeds)]
        worst = max(found, key=lambda row: row["ratio"])
        rows.append(worst | {"ratios": [row["ratio"] for row in found]})
        print("".join(f"{worst[name]:>{width}}" for name, width in SHOWN.items()), flush=True)
    if arguments.json is not None:
        about = {"n": arguments.seeds, "machine": describe("ray"), "rows": rows}
        arguments.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
