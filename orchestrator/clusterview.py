"""What there is of a Ray cluster now: nodes come and go, and others may use them too.

A thread asks the cluster's head about every second, so that nobody else waits for an answer. What
follows from the answers is plain arithmetic over `Node`s, which needs no Ray.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["ClusterView", "Node", "Picture", "Silence", "read_cluster"]

_LAST_ANSWER_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Node:
    """A living node. gpus, cpus: in all. free_…: of nobody; ours_…: held by trials of this driver
    and by processes that Tune keeps warm. gpu_model: of its GPUs, as Ray names it; "" where it does
    not. is_draining: it is about to leave. is_aside: it was set aside by this driver."""

    node_id: str
    gpus: float = 0.0
    cpus: float = 0.0
    free_gpus: float = 0.0
    free_cpus: float = 0.0
    ours_gpus: float = 0.0
    ours_cpus: float = 0.0
    gpu_model: str = ""
    is_draining: bool = False
    is_aside: bool = False

    @property
    def is_closed(self) -> bool:
        """Whether no more runs begin there, and those that run are to go."""
        return self.is_draining or self.is_aside

    def devices(self, *, use_gpu: bool) -> float:
        """Whole ones that count as capacity: a node that is closed has none."""
        return 0.0 if self.is_closed else float(int(self.gpus if use_gpu else self.cpus))

    def taken(self, *, use_gpu: bool) -> float:
        """In other people's hands."""
        if self.is_closed:
            return 0.0
        if use_gpu:
            return max(0.0, self.gpus - self.free_gpus - self.ours_gpus)
        return max(0.0, self.cpus - self.free_cpus - self.ours_cpus)


@dataclass(frozen=True)
class Picture:
    nodes: tuple[Node, ...] = ()

    @property
    def living(self) -> frozenset[str]:
        return frozenset(node.node_id for node in self.nodes)

    @property
    def draining(self) -> frozenset[str]:
        return frozenset(node.node_id for node in self.nodes if node.is_draining)

    @property
    def closed(self) -> frozenset[str]:
        return frozenset(node.node_id for node in self.nodes if node.is_closed)

    @property
    def gpu_models(self) -> frozenset[str]:
        """Of nodes that have GPUs."""
        return frozenset(node.gpu_model for node in self.nodes if node.devices(use_gpu=True))

    def total(self, *, use_gpu: bool) -> float:
        return sum(node.devices(use_gpu=use_gpu) for node in self.nodes)

    def widest(self, *, use_gpu: bool) -> float:
        """Devices of the node that has most."""
        return max((node.devices(use_gpu=use_gpu) for node in self.nodes), default=0.0)

    def short_of_cpus(self, share: float) -> str:
        """Of the first node whose GPUs take more runs than it has CPUs, of which a run takes one;
        "" where there is none. share: of a GPU, that a run takes."""
        for node in self.nodes:
            gpus, cpus = node.devices(use_gpu=True), int(node.cpus)
            if gpus and (runs := int(gpus / share + 1e-9)) > cpus:
                return (
                    f"a node has {gpus:g} GPU(s), which take {runs} runs at once, and {cpus} "
                    f"CPU(s), of which a run takes one: no more than {cpus} run there"
                )
        return ""

    def taken(self, *, use_gpu: bool) -> dict[str, float]:
        """In other people's hands, by node."""
        return {node.node_id: node.taken(use_gpu=use_gpu) for node in self.nodes}


class ClusterView:
    """read: asks the cluster; it may raise, or never come back when the head is gone."""

    def __init__(self, read: Callable[[], Sequence[Node]], *, every_s: float = 1.0) -> None:
        self._read = read
        self._every_s = every_s
        self._end = threading.Event()
        self._asked = threading.Event()
        self._news = threading.Condition()
        self._aside: frozenset[str] = frozenset()
        self._picture = Picture(tuple(read()))
        self._seen = set(self._picture.living)
        self._answers = 1
        self._looks: deque[Picture] = deque(maxlen=3)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Asks again and again while the block runs. A question on its way at the end is waited
        for, but not for ever: Ray ends the whole process if it is asked while it shuts down, and
        where the head is gone there is no answer."""
        thread = threading.Thread(target=self._watch, name="cluster-view", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            self._asked.set()
            thread.join(_LAST_ANSWER_S)

    def _watch(self) -> None:
        while not self._end.is_set():
            self._asked.wait(self._every_s)
            self._asked.clear()
            try:
                self.look()
            except Exception:  # whoever counts `answers` notices
                continue

    def look(self) -> None:
        """Asks the cluster once, in this thread."""
        nodes = [replace(node, is_aside=node.node_id in self._aside) for node in self._read()]
        picture = Picture(tuple(nodes))
        self._seen |= picture.living
        self._looks.append(picture)
        with self._news:
            self._picture = picture
            self._answers += 1
            self._news.notify_all()

    def set_aside(self, nodes: Iterable[str]) -> None:
        """These are closed from the next answer on, which is asked for where they are others than
        before."""
        aside = frozenset(nodes)
        if aside != self._aside:
            self._aside = aside
            self._asked.set()

    def ask(self, patience_s: float = 3.0) -> None:
        """Waits for an answer that is not older than this call, no longer than that."""
        if self._has_news(patience_s / 2):  # its question may be older; the next one's is not
            self._has_news(patience_s / 2)

    def _has_news(self, patience_s: float) -> bool:
        with self._news:
            answers = self._answers
            self._asked.set()
            return self._news.wait_for(lambda: self._answers > answers, patience_s)

    @property
    def picture(self) -> Picture:
        """The last answer."""
        return self._picture

    @property
    def answers(self) -> int:
        """How many there were: a number that stands still means that the head does not answer."""
        return self._answers

    def taken(self, *, use_gpu: bool) -> float:
        """Devices that other people's jobs hold, by the last answers: what is on its way between
        two of our own trials is in nobody's hands for a moment, and must not count."""
        looks = [picture.taken(use_gpu=use_gpu) for picture in tuple(self._looks)]
        return min((sum(look.values()) for look in looks), default=0.0)

    def rooms(self, *, use_gpu: bool, is_shared: bool) -> dict[str, float]:
        """Devices by node; where others use the cluster, without those that they hold, as `taken`
        counts them."""
        looks = [picture.taken(use_gpu=use_gpu) for picture in tuple(self._looks) if is_shared]
        return {
            node.node_id: node.devices(use_gpu=use_gpu)
            - min((look.get(node.node_id, 0.0) for look in looks), default=0.0)
            for node in self._picture.nodes
        }

    def is_gone(self, node_id: str) -> bool:
        """Whether a node left, or is leaving, by an answer of this moment. False for one that was
        never there."""
        self.ask()
        picture = self._picture
        return node_id in picture.draining or node_id in self._seen - picture.living


class Silence:
    """How long a count has stood still, for somebody who looks now and then. A look that comes
    late, because this process slept, counts as one in time."""

    def __init__(
        self, longest_look_s: float = 2.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._longest_s = longest_look_s
        self._clock = clock
        self._last = clock()
        self._count: int | None = None
        self.quiet_s = 0.0

    def look(self, count: int) -> float:
        """Seconds of silence."""
        now = self._clock()
        passed, self._last = min(now - self._last, self._longest_s), now
        self.quiet_s = self.quiet_s + passed if count == self._count else 0.0
        self._count = count
        return self.quiet_s


# -- asking Ray ---------------------------------------------------------------------------------


def read_cluster(*, is_shared: bool) -> list[Node]:
    """Every living node. is_shared: others may use the cluster, so what we hold of it is asked
    too."""
    from ray._private.state import state

    remove_orphans()
    leaving = state.get_draining_nodes()
    free = state.available_resources_per_node()  # type: ignore[no-untyped-call]
    ours = _held_by_us() if is_shared else {}
    return [
        _node(found, free.get(found["NodeID"], {}), ours, found["NodeID"] in leaving)
        for found in state.node_table()  # type: ignore[no-untyped-call]
        if found["Alive"]
    ]


def _node(
    found: dict[str, Any],
    free: dict[str, float],
    ours: dict[str, tuple[float, float]],
    is_draining: bool,
) -> Node:
    node_id, resources = found["NodeID"], found["Resources"]
    gpus, cpus = ours.get(node_id, (0.0, 0.0))
    return Node(
        node_id=node_id,
        gpus=resources.get("GPU", 0.0),
        cpus=resources.get("CPU", 0.0),
        free_gpus=free.get("GPU", 0.0),
        free_cpus=free.get("CPU", 0.0),
        ours_gpus=gpus,
        ours_cpus=cpus,
        gpu_model=_gpu_model(resources),
        is_draining=is_draining,
    )


_GPU_MODEL = "accelerator_type:"


def _gpu_model(resources: dict[str, float]) -> str:
    """Ray counts one of a resource that is called after the model."""
    named = (name for name in resources if name.startswith(_GPU_MODEL))
    return next(named, "").removeprefix(_GPU_MODEL)


def _held_by_us() -> dict[str, tuple[float, float]]:
    """(GPUs, CPUs) by node in placement groups of this driver: everything of ours is in one, also
    what Tune keeps warm between two trials."""
    held: dict[str, tuple[float, float]] = {}
    for group in _our_groups():
        for bundle in group.bundles:
            gpus, cpus = held.get(bundle.node_id.hex(), (0.0, 0.0))
            wanted = bundle.unit_resources
            held[bundle.node_id.hex()] = (
                gpus + wanted.get("GPU", 0.0),
                cpus + wanted.get("CPU", 0.0),
            )
    return held


def _our_groups() -> Iterator[Any]:
    import ray
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    job = ray.get_runtime_context().get_job_id()
    table: Any = gcs_pb2.PlacementGroupTableData  # type: ignore[attr-defined]
    for data in state._connect_and_get_accessor().get_placement_group_table():
        group = table.FromString(data)
        if group.creator_job_id.hex() == job and group.state != table.REMOVED:
            yield group


_NO_ACTOR = b"\xff"


def remove_orphans() -> None:
    """Gives back the devices of distributed runs whose controller died with its node. Ray keeps an
    actor's placement group until the whole job ends, and Train's own cleaner needs a dashboard
    (Ray 2.60): without this, the half of it that lives would hold devices that nobody uses."""
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for group in _our_groups():
        # A group that the driver made for a trial has no actor, and counts as if that were dead.
        if group.creator_actor_dead and group.creator_actor_id.strip(_NO_ACTOR):
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
