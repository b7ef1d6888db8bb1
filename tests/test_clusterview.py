"""What follows from a cluster that changes, with a made-up one: no Ray."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import paths
from orchestrator.admission import Shape
from orchestrator.clusterview import ClusterView, Node, Picture, Silence, _node
from orchestrator.conductor import Conductor
from orchestrator.following import ClusterLostError, Follower
from orchestrator.listener import Listener
from orchestrator.retry import Cause, Failure
from orchestrator.store import Store
from tests.driving import GRID, TINY, Clock, conductor_of, tiny_plan


def gpu_node(name: str, gpus: float = 8, free: float | None = None, ours: float = 0.0) -> Node:
    left = gpus - ours if free is None else free
    return Node(node_id=name, gpus=gpus, cpus=64, free_gpus=left, free_cpus=64, ours_gpus=ours)


class Cluster:
    """Nodes by name; a test adds, changes and removes them. is_dead: nobody answers."""

    def __init__(self, *nodes: Node) -> None:
        self.nodes = {node.node_id: node for node in nodes}
        self.is_dead = False

    def __call__(self) -> list[Node]:
        if self.is_dead:
            raise ConnectionError("the head is gone")
        return list(self.nodes.values())


class Screen(Listener):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def noted(self, message: str) -> None:
        self.lines.append(message)

    def warned(self, message: str) -> None:
        self.lines.append(message)


def test_what_there_is() -> None:
    cluster = Cluster(gpu_node("a"), gpu_node("b", 4))
    view = ClusterView(cluster)
    assert view.picture.total(use_gpu=True) == 12
    assert view.picture.total(use_gpu=False) == 128
    cluster.nodes["b"] = replace(cluster.nodes["b"], is_draining=True)
    view.look()
    assert view.picture.total(use_gpu=True) == 8  # what is leaving is no capacity
    assert view.picture.draining == {"b"}


def test_a_node_without_gpus_adds_none() -> None:
    view = ClusterView(Cluster(gpu_node("a"), Node(node_id="head", cpus=4, free_cpus=4)))
    assert view.picture.total(use_gpu=True) == 8


def test_which_gpus_there_are() -> None:
    found = {"NodeID": "a", "Resources": {"GPU": 8.0, "CPU": 64.0, "accelerator_type:H200": 1.0}}
    node = _node(found, {}, {}, False)
    unnamed = gpu_node("b")
    head = Node(node_id="head", cpus=4, gpu_model="T4")  # its GPU is hidden from Ray
    assert Picture((node, head)).gpu_models == {"H200"}
    assert Picture((node, unnamed)).gpu_models == {"H200", ""}
    assert Picture((head,)).gpu_models == frozenset()


def test_what_others_hold() -> None:
    """Not what our trials hold; and not what is in nobody's hands for a moment."""
    cluster = Cluster(gpu_node("a", free=2, ours=3))
    view = ClusterView(cluster)
    assert view.taken(use_gpu=True) == 0  # one answer is not enough to tell
    for _ in range(3):
        view.look()
    assert view.taken(use_gpu=True) == 3
    cluster.nodes["a"] = gpu_node("a", free=5, ours=3)
    view.look()
    assert view.taken(use_gpu=True) == 0


def test_who_is_gone() -> None:
    cluster = Cluster(gpu_node("a"), gpu_node("b"), gpu_node("c"))
    view = ClusterView(cluster, every_s=60.0)
    with view.watching():
        assert not view.is_gone("a")
        del cluster.nodes["a"]
        cluster.nodes["b"] = replace(cluster.nodes["b"], is_draining=True)
        assert [view.is_gone(name) for name in "abc"] == [True, True, False]  # asked just now
        assert not view.is_gone("never there")


def test_a_head_that_does_not_answer() -> None:
    cluster = Cluster(gpu_node("a"))
    view = ClusterView(cluster, every_s=0.001)
    with view.watching():
        view.ask()
        cluster.is_dead = True
        view.ask(0.1)
        answers = view.answers
        view.ask(0.1)
        assert view.answers == answers
        assert view.picture.living == {"a"}  # the last that was known


def test_silence_counts_looks_not_sleep() -> None:
    now = [0.0]
    silence = Silence(longest_look_s=2.0, clock=lambda: now[0])
    silence.look(1)
    for _ in range(10):
        now[0] += 1.0
        silence.look(1)
    assert silence.quiet_s == 10.0
    now[0] += 3600.0  # the machine slept
    assert silence.look(1) == 12.0
    assert silence.look(2) == 0.0


# -- following it ----------------------------------------------------------------------------------


class Following:
    """A follower of a made-up cluster, over the runs of a sweep."""

    def __init__(self, folder: Path, *nodes: Node, wide: int = 1, use_gpu: bool = True) -> None:
        self.cluster = Cluster(*nodes)
        self.view = ClusterView(self.cluster)
        self.store = Store(folder / "store")
        self.screen = Screen()
        self.conductor: Conductor = conductor_of(tiny_plan(folder, text=TINY + GRID), self.store)
        for entry in self.conductor.ledger.entries.values():
            entry.shape = Shape(workers=wide)
        self.follower = Follower(
            self.view, self.conductor, self.screen, self.store,  # type: ignore[arg-type]
            use_gpu=use_gpu, is_shared=True, clock=Clock(step=1.0),
        )  # fmt: skip

    def look(self) -> None:
        for _ in range(3):
            self.view.look()
        self.follower.follow()

    @property
    def capacity(self) -> tuple[float, float]:
        found = self.conductor.ledger.capacity
        return found.total, found.taken


def test_capacity_follows_the_nodes(tmp_path: Path) -> None:
    one = Following(tmp_path, gpu_node("a"))
    one.look()
    assert one.capacity == (8, 0)
    one.cluster.nodes["b"] = gpu_node("b")
    one.look()
    assert one.capacity == (16, 0)
    assert one.screen.lines == ["node b joined: 2 nodes, 16 GPUs"]
    del one.cluster.nodes["a"]
    one.look()
    assert one.capacity == (8, 0)
    assert one.screen.lines[1:] == ["node a is gone: 1 nodes, 8 GPUs"]


def test_gpus_that_join_a_sweep_on_cpus_are_said_once(tmp_path: Path) -> None:
    one = Following(tmp_path, Node(node_id="head", cpus=4, free_cpus=4), use_gpu=False)
    one.look()
    assert one.screen.lines == []
    for name in "ab":
        one.cluster.nodes[name] = gpu_node(name)
        one.look()
    (line,) = [line for line in one.screen.lines if "GPUs" in line]
    assert "run it again with --accelerator gpu; nothing is lost" in line


def test_what_others_hold_is_left_to_them(tmp_path: Path) -> None:
    one = Following(tmp_path, gpu_node("a", free=5))
    one.look()
    assert one.capacity == (8, 3)
    assert one.conductor.ledger.capacity.free == 5


def test_rooms_are_what_the_nodes_have_and_others_leave(tmp_path: Path) -> None:
    one = Following(tmp_path, gpu_node("a", free=5), gpu_node("b"))
    one.look()
    assert one.conductor.ledger.capacity.rooms.nodes == {"a": 5, "b": 8}
    one.cluster.nodes["b"] = replace(one.cluster.nodes["b"], free_gpus=0)  # between two trials
    one.view.look()
    one.follower.follow()
    assert one.conductor.ledger.capacity.rooms.nodes == {"a": 5, "b": 8}
    assert one.view.rooms(use_gpu=True, is_shared=False) == {"a": 8, "b": 8}
    del one.cluster.nodes["a"]
    one.look()
    assert one.conductor.ledger.capacity.rooms.nodes == {"b": 0}


def test_runs_that_fit_nowhere_wait_and_say_so_once(tmp_path: Path) -> None:
    one = Following(tmp_path, gpu_node("a"), gpu_node("b"), wide=16)
    one.look()
    assert one.screen.lines == []
    del one.cluster.nodes["b"]
    one.look()
    one.look()
    (line,) = [line for line in one.screen.lines if "wait" in line]
    assert "runs wait for 16 GPUs each: the cluster has 8" in line
    assert not one.conductor.finished  # a node may come back


def test_a_draining_node_has_a_flag_until_it_is_gone(tmp_path: Path) -> None:
    one = Following(tmp_path, gpu_node("a"), gpu_node("b"))
    one.cluster.nodes["b"] = replace(one.cluster.nodes["b"], is_draining=True)
    one.look()
    assert one.store.exists(paths.drain_flag("b"))
    assert one.capacity == (8, 0)
    assert "node b is about to leave" in one.screen.lines[0]
    del one.cluster.nodes["b"]
    one.look()
    assert not one.store.exists(paths.drain_flag("b"))


def test_a_node_set_aside_is_closed_as_if_it_left(tmp_path: Path) -> None:
    one = Following(tmp_path, gpu_node("a"), gpu_node("b"))
    one.look()
    failure = Failure(cause=Cause.ERROR, message="OSError: libcudart", where="b01", node="b")
    one.conductor.ledger.aside["b"] = failure
    one.follower.follow()
    one.look()
    assert one.store.exists(paths.drain_flag("b"))
    assert one.capacity == (8, 0)
    assert one.conductor.ledger.capacity.rooms.nodes == {"a": 8, "b": 0}
    assert one.screen.lines == []  # the conductor says why
    assert not one.view.is_gone("b")
    one.follower.end()
    assert not one.store.exists(paths.drain_flag("b"))
    assert one.screen.lines == [
        "b01 was set aside in this run (error: OSError: libcudart): mend it or take it out of the "
        "cluster"
    ]


def test_a_killed_drivers_flags_are_removed(tmp_path: Path) -> None:
    Store(tmp_path / "store").write_bytes(paths.drain_flag("b"), b"drain\n")
    one = Following(tmp_path, gpu_node("a"), gpu_node("b"))
    one.look()
    assert not one.store.exists(paths.drain_flag("b"))


def test_no_flag_outlives_the_driver(tmp_path: Path) -> None:
    one = Following(tmp_path, replace(gpu_node("a"), is_draining=True))
    one.look()
    one.follower.end()
    assert not one.store.exists(paths.drain_flag("a"))


def test_without_a_head_it_ends(tmp_path: Path) -> None:
    one = Following(tmp_path, gpu_node("a"))
    for _ in range(31):
        one.follower.follow()
    with pytest.raises(ClusterLostError):
        one.follower.follow()


def test_nothing_is_asked_once_the_watching_is_over() -> None:
    """Ray would end the process, or be started anew."""
    cluster, asking, answers = Cluster(gpu_node("a")), threading.Event(), []

    def slowly() -> list[Node]:
        asking.set()
        time.sleep(0.3)
        answers.append(cluster())
        return answers[-1]

    view = ClusterView(slowly, every_s=0.01)
    asking.clear()
    with view.watching():
        assert asking.wait(10)
    seen = len(answers)
    time.sleep(0.5)
    assert len(answers) == seen
    assert "cluster-view" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    ("gpus", "cpus", "share", "runs"),
    [(8, 8, 1.0, None), (8, 2, 1.0, 8), (1, 4, 0.125, 8), (1, 8, 0.125, None), (0, 2, 1.0, None)],
)
def test_gpus_that_wait_for_cpus_are_said(
    gpus: float, cpus: float, share: float, runs: int | None
) -> None:
    """Ray places a run where a CPU is free too; the others would wait in silence."""
    text = Picture((Node(node_id="a", gpus=gpus, cpus=cpus),)).short_of_cpus(share)
    if runs is None:
        assert text == ""
    else:
        assert f"take {runs} runs at once, and {cpus:g} CPU(s)" in text


def test_the_widest_node_is_one_that_stays() -> None:
    leaving = replace(gpu_node("b"), gpus=16, is_draining=True)
    assert Picture((gpu_node("a"), leaving)).widest(use_gpu=True) == 8
    assert Picture().widest(use_gpu=True) == 0
