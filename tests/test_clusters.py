"""The test cluster itself: nodes join, are told apart, and die as a whole."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest

from tests.clusters import Cluster, cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_ASK = """
import json, os, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
ray.init(address={address!r}, log_to_driver=False, logging_level="ERROR")
alive = [node for node in ray.nodes() if node["Alive"]]

@ray.remote(num_cpus=1)
def where():
    return os.getppid(), ray.get_runtime_context().get_node_id()

def ask(node):
    return ray.get(where.options(scheduling_strategy=On(node["NodeID"], soft=False)).remote())

seen = {{node["NodeID"]: ask(node) for node in alive}}
print(json.dumps({{"resources": ray.cluster_resources(), "seen": seen}}))
"""


# What every driver begins with; `ray.init` itself repeats it for 20 s.
_NODES = """
from ray._raylet import GcsClient
print(len(GcsClient(address={address!r}).get_all_node_info()))
"""


def ask(made: Cluster) -> dict[str, dict[str, object]]:
    """What a driver in a process of its own sees: resources, and where tasks run by node."""
    done = subprocess.run(
        [sys.executable, "-c", _ASK.format(address=made.address)],
        env=made.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_cluster_of_two_nodes() -> None:
    with cluster(nodes=2, cpus=1, gpus=2) as made:
        seen = ask(made)
        assert seen["resources"]["CPU"] == 2
        assert seen["resources"]["GPU"] == 4
        assert seen["seen"] == {
            node.node_id: [node.raylet().pid, node.node_id] for node in made.nodes
        }
        listening = _listening(made)
        assert listening
        assert {address for address, _ in listening} <= {"127.0.0.1", "::ffff:127.0.0.1"}
        _refuses_without_the_token(made)

        there = made.nodes[1].processes()
        assert len(there) > 3
        made.kill_node(1)
        assert not any(process.is_running() for process in there)
        assert made.nodes[0].is_alive
        assert made.add_node(cpus=3, gpus=0) == 2
        pids = [process.pid for node in made.nodes for process in node.processes()]
    assert pids
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not made.folder.exists()


def _listening(made: Cluster) -> set[tuple[str, int]]:
    pids = {process.pid for node in made.nodes for process in node.processes()}
    return {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.net_connections("inet")
        if connection.pid in pids and connection.status == psutil.CONN_LISTEN
    }


def _refuses_without_the_token(made: Cluster) -> None:
    stranger = {**made.environment, "RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run(
        [sys.executable, "-c", _NODES.format(address=made.address)],
        env=stranger,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "token" in done.stderr.lower()
    assert made.token not in done.stdout + done.stderr
