"""The command with a server for everything: the store on S3's protocol, MLflow on its server."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tracking_helpers import Seen, empty_database

from orchestrator import paths
from orchestrator.store import Store
from tests.commands import targetsweep
from tests.driving import digits_store
from tests.servers import mlflow_server, s3_server
from tests.sweep_files import write

WITH_FAILURES = """\
name: tiny
set: {dataset: digits, backbone: {name: resnet18, width: 4}, strategy: A, augmentation: none}
grids:
  - set: {training: {steps: 10, batch_size: 32}}
    axes: {seed: [0, 1], training.lr: [0.01, 1.0e+30]}
report:
  - {table: numbers, rows: [training.lr], columns: [ipc]}
"""


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TARGETSWEEP_CACHE", str(tmp_path / "cache"))
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server.uri


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """For Ray's logs; sockets lie in it, whose names may not be long."""
    folder = Path(tempfile.mkdtemp(prefix="ts-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_command_with_a_server_for_each_and_no_secret_anywhere(
    tmp_path: Path, uri: str, ray_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store on S3, MLflow on a server, two runs that diverge; then everything that is left is
    searched for the credentials: objects, screen, Ray's logs, MLflow's database."""
    password, token = "Planted-in-uri-1", "0f9e" * 16
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    monkeypatch.setenv("RAY_TMPDIR", str(ray_folder))
    remote = Store(uri)
    digits = digits_store(tmp_path / "local").root / "datasets/digits"
    for path in digits.iterdir():
        remote.upload(path, f"datasets/digits/{path.name}")
    file = write(tmp_path, WITH_FAILURES)
    shutil.copy(empty_database(), tmp_path / "mlflow.db")
    with mlflow_server(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts") as mlflow:
        address = mlflow.uri.replace("//", f"//runner:{password}@")
        first = targetsweep("run", file, "--store", uri, "--tracking-uri", address, status=1)
        runs = Seen(mlflow.uri, "tiny").runs()
    assert sorted(one.info.status for one in runs) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    assert f"{paths.report_dir('tiny')}/index.html?endpoint_override" in first.text
    secrets = [password, token, os.environ["AWS_SECRET_ACCESS_KEY"]]
    left = {"screen": first.text.encode(), **contents(remote)}
    for folder in (tmp_path / "artifacts", ray_folder):
        left |= {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    left["mlflow.db"] = (tmp_path / "mlflow.db").read_bytes()
    assert len(left) > 30
    leaking = [
        (name, one) for name, data in left.items() for one in secrets if one.encode() in data
    ]
    assert leaking == []


def contents(store: Store, folder: str = "") -> dict[str, bytes]:
    """Every object of a store."""
    found = {}
    for name, stamp in store.stamps(folder).items():
        rel = f"{folder}/{name}" if folder else name
        inner = contents(store, rel)
        found |= inner if inner or not stamp.num_bytes else {rel: store.read_bytes(rel)}
    return found
