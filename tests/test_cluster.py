"""A sweep on a Ray cluster of two nodes: one dies in the middle, one joins, the head goes.

The same sweep on this machine alone, undisturbed, says what the tables must be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator import paths
from orchestrator.lease import holder
from orchestrator.store import Store
from tests.clusters import Cluster, cluster
from tests.commands import check_tracking, running, tables, targetsweep
from tests.driving import digits_store, facts
from tests.sweep_files import write

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

MIXED = """\
name: mixed
title: One run over two nodes among runs of one worker
set:
  dataset: digits
  backbone: {name: resnet18, width: 4}
  training: {steps: 60, batch_size: 64, lr: 0.005}
  augmentation: none
grids:
  - axes: {strategy: [A], seed: [0, 1, 2]}
  - set: {scaling: {workers: 2}, training: {steps: 200}}
    axes: {strategy: [A], augmentation: [crop], seed: [0]}
report:
  - table: strategies
    rows: [step]
    columns: [augmentation]
    steps: [20, 40, 60]
"""
KEPT = "--checkpoint-every=0.05"


@dataclass
class Reference:
    file: Path
    tables: dict[str, bytes]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("reference")
    store = digits_store(folder / "store")
    file = write(folder, MIXED)
    targetsweep("run", file, "--store", store.root)
    return Reference(file, tables(store, "mixed"))


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    with cluster(nodes=2, cpus=1) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return digits_store(tmp_path / "store")


def wide_run(store: Store) -> str:
    (name,) = [
        name for name in store.list("runs") if facts(store, name)["environment"]["workers"] == 2
    ]
    return name


def test_a_node_dies_under_a_run_of_both(
    reference: Reference, store: Store, two_nodes: Cluster
) -> None:
    """The run over both nodes loses one of them; it waits until another joins, goes on from its
    checkpoint, and all tables are those of the sweep that nothing happened to."""
    with running(
        "run", reference.file, "--store", store.root, KEPT,
        "--ray-address", two_nodes.address, environment=two_nodes.environment,
    ) as command:  # fmt: skip
        command.until(r"A .*crop.*starts at step")
        two_nodes.kill_node(1)
        command.until(r"node .* is gone: 1 nodes, 1 CPU slots")
        command.until(r"1 runs wait for 2 CPU slots each: the cluster has 1")
        two_nodes.add_node()
        assert command.end() == 0, command.text
    assert "Traceback" not in command.text
    assert re.search(r"node .* joined: 2 nodes, 2 CPU slots", command.text)
    assert tables(store, "mixed") == reference.tables
    assert facts(store, wide_run(store))["status"] == "complete"
    check_tracking(store, "mixed")
    assert holder(store) is None


NARROW = """\
name: narrow
set:
  dataset: digits
  backbone: {name: resnet18, width: 4}
  training: {steps: 20, batch_size: 64, lr: 0.005}
  augmentation: none
grids:
  - axes: {strategy: [A], seed: {seeds}}
  - set: {scaling: {workers: 2}}
    axes: {strategy: [A], augmentation: [crop], seed: [0]}
report:
  - table: strategies
    rows: [step]
    columns: [augmentation]
"""


def test_a_node_that_fails_all_it_gets_is_set_aside(tmp_path: Path, store: Store) -> None:
    """A library is broken on it. The others do what failed there, and a run of two workers, which
    its devices would have room for."""
    broken = tmp_path / "broken" / "torchvision"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libjpeg.so.62: cannot open')")
    file = write(tmp_path, NARROW.replace("{seeds}", str(list(range(8)))))
    with cluster(nodes=1, cpus=2) as nodes:
        nodes.add_node(cpus=2, environment={"PYTHONPATH": str(broken.parent)})
        bad = nodes.nodes[1].node_id[:8]
        with running(
            "run", file, "--store", store.root,
            "--ray-address", nodes.address, environment=nodes.environment,
        ) as command:  # fmt: skip
            command.until(
                rf"\(node {bad}\) is set aside: runs there all fail alike \(error: Import"
            )
            assert command.end() == 0, command.text
    assert "cannot open" in command.text
    assert re.search(
        rf"\(node {bad}\) was set aside in this run .*: mend it or take it", command.text
    )
    assert len(store.list("runs")) == 9
    assert all(facts(store, name)["status"] == "complete" for name in store.list("runs"))
    assert not any(store.exists(paths.failure(name)) for name in store.list("runs"))
    assert not [name for name in store.list("control") if "drain" in name]
    check_tracking(store, "narrow")


@pytest.mark.slow
def test_the_head_goes(reference: Reference, store: Store, two_nodes: Cluster) -> None:
    """One message, exit status 1, the command that goes on; and that command goes on."""
    with running(
        "run", reference.file, "--store", store.root, KEPT, "--set", "training.steps=4000",
        "--limit", "augmentation=none", "--ray-address", two_nodes.address,
        environment=two_nodes.environment,
    ) as command:  # fmt: skip
        command.until(r"starts at step")
        two_nodes.kill_head()
        assert command.end() == 1, command.text
    assert "Traceback" not in command.text
    assert "the head of the Ray cluster does not answer" in command.text
    assert f"targetsweep run {reference.file}" in command.text
    assert holder(store) is None
