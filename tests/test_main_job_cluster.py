"""The main job as on a cluster: `sweeps/demo.yaml` on two nodes, tracked by an MLflow server over
PostgreSQL; a node dies under the run that trains on both, another one joins. The tables are those
of the same job on one machine, undisturbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.lease import holder
from orchestrator.store import Store
from tests.clusters import cluster
from tests.commands import check_tracking, running, tables, targetsweep
from tests.driving import facts
from tests.servers import mlflow_server, postgres

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(2400)]

DEMO = Path(__file__).parents[1] / "sweeps" / "demo.yaml"
KEPT = "--checkpoint-every=1"
WIDE = r"[AB] .*crop.*: starts at step"


def test_the_main_job_loses_a_node(tmp_path: Path) -> None:
    alone, store = Store(tmp_path / "alone"), Store(tmp_path / "store")
    targetsweep("run", DEMO, "--store", alone.root)
    with postgres() as database, mlflow_server(database.uri) as mlflow, cluster(cpus=1) as nodes:
        # The server's variables, less whatever says how this machine alone is to be driven.
        environment = {**nodes.environment, **mlflow.environment}
        with running(
            *("run", DEMO, "--store", store.root, KEPT, "--ray-address", nodes.address),
            *("--tracking-uri", mlflow.uri),
            environment=environment,
        ) as command:
            command.until(WIDE)
            nodes.kill_node(1)
            command.until(r"node .* is gone: 1 nodes, 1 CPU slots")
            nodes.add_node()
            command.until(r"node .* joined: 2 nodes, 2 CPU slots")
            assert command.end() == 0, command.text
        check_tracking(store, "demo", mlflow.uri)
    assert "Traceback" not in command.text
    assert tables(store, "demo") == tables(alone, "demo")
    assert wide_runs(store) == 2
    assert holder(store) is None


def wide_runs(store: Store) -> int:
    """How many were trained by two workers."""
    results = [facts(store, name) for name in store.list("runs")]
    return sum(result.get("environment", {}).get("workers") == 2 for result in results)
