"""What a sweep trains on, with a made-up cluster: no Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from orchestrator.admission import Capacity
from orchestrator.budget import Limit
from orchestrator.clusterview import ClusterView, Node, Picture
from orchestrator.devices import Accelerator, choose_gpus, own_gpus, seen_by
from orchestrator.driver import DriveOptions, _capacity, check_machine
from orchestrator.errors import MachineError
from tests.driving import Clock

GPU = Node(node_id="gpu", gpus=8, cpus=64, free_gpus=8, free_cpus=64, gpu_model="H200")
CPU = Node(node_id="cpu", cpus=4, free_cpus=4)
HEAD = Node(node_id="head")
"""It trains nothing."""


class Growing:
    """A cluster that has `late` as well after so many looks; `failing` of them get no answer."""

    def __init__(self, *nodes: Node, late: Node = GPU, after: int = 10_000, failing: int = 0):
        self.nodes, self.late, self.after, self.failing = nodes, late, after, failing
        self.looks = 0

    def __call__(self) -> list[Node]:
        self.looks += 1
        if 1 < self.looks <= 1 + self.failing:
            raise ConnectionError("the head is busy")
        return [*self.nodes, *([self.late] if self.looks > self.after else [])]


def chosen(
    cluster: Callable[[], Sequence[Node]],
    accelerator: Accelerator,
    *,
    is_shared: bool = True,
    wait_s: float = 600.0,
) -> tuple[bool, list[str], float]:
    """(whether GPUs, what was said, seconds that passed)."""
    clock, said = Clock(), list[str]()

    def sleep(seconds: float) -> None:
        clock.now += seconds

    view = ClusterView(lambda: seen_by(accelerator, cluster()))
    use_gpu = choose_gpus(
        view, accelerator, said.append, is_shared=is_shared, wait_s=wait_s, clock=clock, sleep=sleep
    )
    return use_gpu, said, clock.now


def has_torch(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)


@pytest.mark.parametrize(
    ("nodes", "accelerator", "use_gpu"),
    [
        ((HEAD, GPU), "auto", True),
        ((HEAD, CPU), "auto", False),
        ((CPU, GPU), "gpu", True),
        ((CPU, GPU), "cpu", False),
        ((GPU,), "cpu", False),
    ],
)
def test_what_is_there_decides_unless_somebody_says_otherwise(
    nodes: tuple[Node, ...], accelerator: Accelerator, use_gpu: bool
) -> None:
    assert chosen(Growing(*nodes), accelerator) == (use_gpu, [], 0.0)


def test_on_cpus_no_gpu_is_seen_whoever_looks() -> None:
    """Not by who shares GPUs, nor by who follows the cluster or looks measured paces up."""
    picture = Picture(tuple(seen_by("cpu", [GPU, CPU])))
    assert (picture.total(use_gpu=True), picture.total(use_gpu=False)) == (0, 68)
    assert picture.gpu_models == frozenset()
    assert seen_by("auto", [GPU]) == seen_by("gpu", [GPU]) == [GPU]


@pytest.mark.parametrize("failing", [0, 20])
def test_asked_for_gpus_it_waits_for_the_first(failing: int) -> None:
    use_gpu, said, passed = chosen(Growing(HEAD, CPU, after=30, failing=failing), "gpu")
    assert (use_gpu, passed) == (True, 30.0)
    assert said == ["no node has a GPU yet: waiting for one, 10 min 00 s at most"]


def test_but_not_for_ever() -> None:
    cluster = Growing(HEAD, CPU)
    with pytest.raises(MachineError, match="no node has a GPU\n  remedy: start nodes with GPUs"):
        chosen(cluster, "gpu")
    assert cluster.looks == 601


def test_no_longer_than_its_time_lasts() -> None:
    cluster = Growing(HEAD, CPU)
    with pytest.raises(MachineError):
        chosen(cluster, "gpu", wait_s=5.0)
    assert cluster.looks == 6


def test_a_ray_of_our_own_gets_no_more_nodes() -> None:
    with pytest.raises(MachineError, match="no node has a GPU"):
        chosen(cluster := Growing(CPU), "gpu", is_shared=False)
    assert cluster.looks == 1


def test_a_gpu_that_torch_cannot_use_is_said_before_any_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NVML counts it; the driver may be too old for this torch."""
    has_torch(monkeypatch, 0)
    with pytest.raises(
        MachineError, match=r"torch cannot use it\n.*targetsweep doctor.*--accelerator cpu"
    ):
        chosen(Growing(GPU), "auto", is_shared=False)
    assert chosen(Growing(GPU), "cpu", is_shared=False)[0] is False
    assert chosen(Growing(GPU), "auto")[0] is True  # of other machines, this torch knows nothing
    has_torch(monkeypatch, 8)
    assert chosen(Growing(GPU), "auto", is_shared=False)[0] is True


@pytest.mark.parametrize("accelerator", ["auto", "cpu"])
def test_a_cluster_without_workers_yet_is_no_sweep_that_is_too_wide(
    accelerator: Accelerator,
) -> None:
    with pytest.raises(MachineError, match=r"to train on\n.*--accelerator gpu waits"):
        chosen(Growing(HEAD), accelerator)


@pytest.mark.parametrize(
    ("gpus", "accelerator", "found"), [(2, "auto", 2), (2, "gpu", 2), (2, "cpu", 0), (0, "auto", 0)]
)
def test_gpus_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, gpus: int, accelerator: Accelerator, found: int
) -> None:
    has_torch(monkeypatch, gpus)
    assert own_gpus(accelerator) == found


def test_gpus_that_this_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Ray is started on it."""
    has_torch(monkeypatch, 0)
    with pytest.raises(MachineError, match="this machine has no GPU that torch can use"):
        check_machine([], DriveOptions(accelerator="gpu"))
    check_machine([], DriveOptions(accelerator="gpu", ray_address="auto"))  # `drive` looks then


def test_capacity_is_of_the_devices_that_were_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def capacity(accelerator: Accelerator) -> tuple[bool, Capacity]:
        options = DriveOptions(accelerator=accelerator, ray_address="auto", concurrency=3)
        view = ClusterView(lambda: seen_by(accelerator, [GPU, CPU]))
        progress = SimpleNamespace(noted=lambda text: None)
        use_gpu, found, limit = _capacity(view, options, progress, None)  # type: ignore[arg-type]
        assert limit is None
        return use_gpu, found

    use_gpu, found = capacity("auto")
    assert (use_gpu, found.total, found.most_runs) == (True, 8, 3)
    use_gpu, found = capacity("cpu")
    assert (use_gpu, found.total, found.rooms.nodes) == (False, 68, {"gpu": 64, "cpu": 4})


def test_waiting_for_a_gpu_is_no_sign_of_a_slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else as long would be kept for the end."""
    clock = Clock()
    monkeypatch.setattr("orchestrator.driver.time", SimpleNamespace(monotonic=clock))
    asked: list[float] = []

    def choose(*arguments: object, wait_s: float, **options: object) -> bool:
        asked.append(wait_s)
        clock.now += 200.0
        return True

    monkeypatch.setattr("orchestrator.driver.choose_gpus", choose)
    view, limit = ClusterView(lambda: [GPU]), Limit(total_s=400.0, end_s=380.0)
    progress = SimpleNamespace(noted=lambda text: None)
    _, _, left = _capacity(view, DriveOptions(), progress, limit)  # type: ignore[arg-type]
    assert asked == [360.0]
    assert left is not None
    assert left.ready(210.0).reserve_s == 20.0
