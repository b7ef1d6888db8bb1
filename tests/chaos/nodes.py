"""Nodes of a Ray cluster that die, the head too, and nodes that are drained."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.flights import Flight
from tests.chaos.kinds import Kind
from tests.chaos.scene import Scene
from tests.clusters import Cluster, cluster

__all__ = ["drained", "heads", "nodes"]


def _is_student(flight: Flight) -> bool:
    return flight.unit.startswith("student")


def _node_of(made: Cluster, pid: int) -> int | None:
    """The index of the node on which a process lives."""
    for node in made.nodes[1:]:
        if node.is_alive and any(one.pid == pid for one in node.processes()):
            return node.index
    return None


def _join(scene: Scene, made: Cluster) -> None:
    """The scene's commands drive this cluster from now on."""
    scene.extra = {
        name: value for name, value in made.environment.items() if name.startswith("RAY_")
    }
    scene.options = ["--ray-address", made.address]


def nodes(scene: Scene) -> Iterator[None]:
    """A head without CPUs and three nodes of one each, so that distributed runs lie across two.
    Nodes die in mid-run, and new ones take their place."""
    with scene.inherited(), cluster(nodes=1, cpus=0) as made:
        for _ in range(3):
            made.add_node(cpus=1)
        _join(scene, made)
        run = scene.run()
        for _ in range(3):
            flight = scene.training(run, scene.random.randint(1, 200), _is_student)
            index = None if flight is None else _node_of(made, flight.pid)
            if flight is None or index is None:
                break
            scene.inject(Kind.NODE, f"node {index} with {flight.unit} at step {flight.last}")
            scene.hits[flight.unit] += 1
            made.kill_node(index)
            made.add_node(cpus=1)
        run.wait()
        yield


def drained(scene: Scene) -> Iterator[None]:
    """A node is to be taken away in thirty seconds: what runs on it saves itself in time."""
    with scene.inherited(), cluster(nodes=1, cpus=0) as made:
        for _ in range(3):
            made.add_node(cpus=1)
        _join(scene, made)
        run = scene.run()
        for _ in range(3):
            flight = scene.training(run, scene.random.randint(1, 200), _is_student)
            index = None if flight is None else _node_of(made, flight.pid)
            if flight is None or index is None:
                break
            scene.inject(Kind.DRAIN, f"node {index} with {flight.unit} at step {flight.last}")
            made.drain_node(index, 30)
            made.add_node(cpus=1)
        run.wait()
        if "preempted" not in run.text:
            scene.problems.append("a drained node's run was not preempted")
        yield


def heads(scene: Scene) -> Iterator[None]:
    """The head dies, and with it the cluster: the driver ends and says how to go on; the next
    command has another cluster."""
    for _ in range(2):
        with scene.inherited(), cluster(nodes=1, cpus=0) as made:
            made.add_node(cpus=2)
            _join(scene, made)
            run = scene.run()
            flight = scene.training(run, scene.random.randint(1, 200), _is_student)
            if flight is not None:
                scene.inject(Kind.HEAD, f"{flight.unit} at step {flight.last}")
                made.kill_head()
                status = run.wait(180.0)
                if status != 1 or "targetsweep run" not in run.text[-1000:]:
                    scene.problems.append(f"without a head the command ended with {status}")
        scene.leave_nobody()
    scene.extra, scene.options = {}, []
    yield
