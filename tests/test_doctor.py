"""What `targetsweep doctor` knows, on machines that lack one thing each."""

from __future__ import annotations

import importlib
import importlib.metadata as metadata
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import machine
from orchestrator.lease import Lease
from orchestrator.machine import Check, checks
from orchestrator.store import Store
from tests.job_server import job_server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


class FakeTorch:
    """The real one costs seconds to import and tells of this machine, not of the code."""

    def __init__(self, names: list[str]) -> None:
        devices = [SimpleNamespace(name=name, total_memory=143e9) for name in names]
        self.version = SimpleNamespace(cuda="13.2")
        self.cuda = SimpleNamespace(
            is_available=lambda: bool(devices),
            device_count=lambda: len(devices),
            get_device_properties=devices.__getitem__,
        )


@pytest.fixture(autouse=True)
def torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    install_torch(monkeypatch, FakeTorch(["H200", "H200"]))


def install_torch(monkeypatch: pytest.MonkeyPatch, torch: Any) -> None:
    real = importlib.import_module

    def fake_import(name: str, package: str | None = None) -> Any:
        if name != "torch":
            return real(name, package)
        if isinstance(torch, Exception):
            raise torch
        return torch

    monkeypatch.setattr(machine.importlib, "import_module", fake_import)


def versions(monkeypatch: pytest.MonkeyPatch, **known: str | None) -> None:
    real = metadata.version

    def version(name: str) -> str:
        found = known[name] if name in known else real(name)
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(machine.metadata, "version", version)


def named(found: list[Check], name: str) -> Check:
    (check,) = [check for check in found if check.name == name]
    return check


def test_a_healthy_machine(store: Store) -> None:
    found = checks(store)
    names = [check.name for check in found]
    for name in ("python", "torch", "GPU 0", "GPU 1", "CPU and memory", "store", "mlflow", "ray"):
        assert name in names
    assert not [check for check in found if check.status == "missing"]
    assert named(found, "GPU 1").detail == "H200, 143 GB"
    assert store.list("control") == []


def test_every_bad_news_has_a_remedy(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    install_torch(monkeypatch, FakeTorch([]))
    versions(monkeypatch, ray=None, mlflow=None, torchvision=None)
    monkeypatch.setattr(machine, "_LOW_DISK_GB", 1e9)
    monkeypatch.setattr(machine, "_LOW_MEMORY_GB", 1e9)
    bad = [check for check in checks(store, {"cifar10": "/nowhere"}) if check.status != "ok"]
    expected = {"torch", "GPU", "CPU and memory", "disk", "data cifar10", "mlflow", "ray"}
    assert {check.name for check in bad} == expected
    assert all(check.remedy for check in bad)


def test_a_torch_that_torchvision_was_not_built_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(monkeypatch, torch="2.12.0+cpu", torchvision="0.26.0")
    monkeypatch.setattr(machine.metadata, "requires", lambda _: ["numpy", "torch==2.11.0"])
    check = named(checks(store), "torch")
    assert check.status == "missing"
    assert "needs torch ==2.11.0" in check.detail
    versions(monkeypatch, torch="2.11.0+cpu", torchvision="0.26.0")
    assert named(checks(store), "torch").status == "ok"


def test_a_torch_that_does_not_load(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    install_torch(monkeypatch, OSError("libcudart.so.13: cannot open shared object file"))
    assert "libcudart" in named(checks(store), "GPU").detail


def test_a_store_in_use_and_one_that_cannot_be_written(store: Store) -> None:
    with Lease(store, "targetsweep run a.yaml"):
        check = named(checks(store), "store")
    assert check.status == "warn"
    assert "targetsweep run a.yaml" in check.detail
    check = named(checks(Store("/proc/targetsweep")), "store")
    assert check.status == "missing"


@pytest.mark.parametrize(
    ("options", "status"), [("rw,acdirmax=3", "warn"), ("rw,acdirmin=1,acdirmax=3", "ok")]
)
def test_a_store_on_nfs(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, status: str
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"40 21 0:52 / {tmp_path} rw - nfs4 nas:/export {options}\n")
    monkeypatch.setattr(machine, "_MOUNTS", mounts)
    check = named(checks(store), "mount")
    assert check.status == status
    assert ("acdirmin=1,acdirmax=3" in check.remedy) == (status == "warn")
    monkeypatch.setattr(machine, "_MOUNTS", tmp_path / "none")
    assert "mount" not in [check.name for check in checks(store)]


def test_data_sets(store: Store, tmp_path: Path) -> None:
    store.write_json("datasets/digits/meta.json", {})
    store.write_bytes("datasets/half/train-images.npy", b"")
    found = checks(store, {"cifar10": tmp_path, "digits": "/nowhere", "imagenet": "/nowhere"})
    status = {c.name.removeprefix("data "): c.status for c in found if c.name.startswith("data")}
    assert status == {"digits": "ok", "cifar10": "ok", "imagenet": "missing"}


def test_servers(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@{address}")
        closed = checks(store, ray_address=address)
        listener.listen()
        opened = checks(store, ray_address=address)
    assert named(closed, "mlflow").status == "warn"  # tracking can be synced later
    assert named(closed, "ray").status == "missing"
    assert {named(opened, name).status for name in ("mlflow", "ray")} == {"ok"}
    assert not any("secret" in check.detail for check in closed + opened)


def test_a_clusters_job_server(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it takes anybody's word, and whether it runs what runs here."""
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    with job_server(tmp_path / "open") as server:
        opened = checks(store, ray_address=server.address)
    with job_server(tmp_path / "guarded", token="right") as server:
        guarded = checks(store, ray_address=server.address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        refused = checks(store, ray_address=server.address)
    said = [
        [(check.status, check.detail) for check in found if check.name == "ray cluster"]
        for found in (opened, guarded, refused)
    ]
    assert said[0][0] == ("warn", "takes commands from everybody who reaches it")
    assert said[1][0] == ("ok", "token authentication is on")
    status, versions = said[1][1]
    assert status == "warn"
    assert "the cluster runs Ray 2.1.0, Python 3.7.1; here 2." in versions
    assert said[2][1] == ("warn", "refuses this machine's token, or there is none")
    assert not any("right" in check.detail for check in opened + guarded)


@pytest.mark.parametrize("address", ["nonsense", "host:port", "ray://head:10001"])
def test_unusable_ray_addresses(store: Store, address: str) -> None:
    check = named(checks(store, ray_address=address), "ray")
    assert check.status == "missing"
    assert ("--ray-address auto" in check.remedy) == address.startswith("ray://")


def test_a_bucket_without_a_tracking_server() -> None:
    found = checks(Store("mock://bucket/x"))
    assert "MLFLOW_TRACKING_URI" in named(found, "mlflow").remedy
    assert "disk" not in [check.name for check in found]


def test_a_check_that_breaks_is_reported(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: 1 / 0)
    assert "ZeroDivisionError" in named(checks(store), "CPU and memory").detail


@pytest.mark.parametrize("has_driver", [False, True])
def test_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch, has_driver: bool) -> None:
    """A driver that is too old is no machine without GPUs."""
    install_torch(monkeypatch, FakeTorch([]))
    program = "/usr/bin/nvidia-smi" if has_driver else None
    monkeypatch.setattr(machine.shutil, "which", lambda name: program)
    (check,) = machine._gpus()
    assert check.status == "warn"
    assert ("too old for torch's CUDA" in check.remedy) == has_driver
