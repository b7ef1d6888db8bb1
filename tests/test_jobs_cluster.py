"""A job on a real Ray cluster of two nodes: handed over, found, stopped, taken up, finished."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.jobrecord import read_job
from orchestrator.lease import holder
from orchestrator.store import Store
from tests.clusters import Cluster, cluster
from tests.commands import PROGRAM, tables, targetsweep
from tests.driving import TINY, digits_store
from tests.sweep_files import write

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SWEEP = (
    TINY
    + """\
grids:
  - axes: {strategy: [A, C], teacher.accuracy: [20], seed: [0, 1]}
report:
  - {table: t, rows: [strategy], columns: [teacher.accuracy]}
"""
)
PATIENCE_S = 300.0


def test_a_job_outlives_who_submitted_it(tmp_path: Path) -> None:
    file = write(tmp_path, SWEEP)
    store = digits_store(tmp_path / "store")
    with cluster(nodes=2, cpus=1, dashboard=True) as made:
        submit = ("submit", file, "--store", store.root, "--ray-address", made.dashboard)
        said = call(made, *submit)  # the submitter's process has ended here
        job = read_job(store)
        assert job is not None
        assert job.id in said
        held = hold_what_trains(made, store)

        said = call(made, "status", "--store", store.root)
        assert f"{job.id} at {made.dashboard}" in said
        assert "RUNNING" in said
        assert made.token not in said
        again = subprocess.run(
            [PROGRAM, *map(str, submit)], env=made.environment, capture_output=True, text=True
        )
        assert again.returncode == 2
        assert job.id in again.stderr  # who drives the store

        said = stop(made, store, held)
        assert "targetsweep submit" in said  # to go on
        assert holder(store) is None
        assert unfinished(call(made, "status", "--store", store.root))

        call(made, *submit, "--follow")
        assert "SUCCEEDED" in call(made, "status", "--store", store.root)
        doctor = call(made, "doctor", "--store", store.root, "--ray-address", made.dashboard)
        assert "token authentication is on" in doctor
        doctor = call(made, "doctor", "--store", store.root, "--ray-address", made.address)
        assert "token authentication is on" in doctor
        assert made.token not in whole(store)
    call_here("report", "--store", store.root)
    undisturbed = digits_store(tmp_path / "undisturbed")
    call_here("run", file, "--store", undisturbed.root)
    assert tables(store, "tiny") == tables(undisturbed, "tiny")


def call(made: Cluster, *arguments: object) -> str:
    """The command, in a process that knows the cluster's token."""
    done = subprocess.run(
        [PROGRAM, *map(str, arguments)], env=made.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def call_here(*arguments: object) -> None:
    targetsweep(*arguments)


def hold_what_trains(made: Cluster, store: Store) -> list[psutil.Process]:
    """Once the job has something to lose: its trials, which stand still from now on, so that it
    cannot end before it is asked to, however slow this machine is."""
    deadline = time.monotonic() + PATIENCE_S
    while not any((store.root / "runs").glob("*/checkpoint/*.ckpt")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    held = made.trials()
    for trial in held:
        trial.suspend()
    return held


def stop(made: Cluster, store: Store, held: list[psutil.Process]) -> str:
    """`targetsweep stop`, which waits for the trials; these go on once it has asked."""
    arguments = [PROGRAM, "stop", "--store", str(store.root)]
    with subprocess.Popen(
        arguments, env=made.environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("asked to stop"), said
        for trial in held:
            trial.resume()
        said += process.stdout.read()
    assert process.returncode == 0, said
    return said


def unfinished(status: str) -> bool:
    row = status.splitlines()[-1].split()
    return row[1] != row[2]


def whole(store: Store) -> str:
    """Every JSON of the store."""
    return "".join(file.read_text() for file in store.root.rglob("*.json"))
