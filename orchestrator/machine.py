"""What this machine and its surroundings offer: the facts behind `targetsweep doctor`.

A check never raises, waits at most 3 s for a network, and says what to do about what is missing.
Imports that cost seconds (torch) happen inside the check that needs them.
"""

from __future__ import annotations

import importlib
import importlib.metadata as metadata
import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import psutil
from packaging.requirements import Requirement

from orchestrator import paths
from orchestrator.clusterchecks import ask_head, ask_job_server
from orchestrator.errors import StoreError, UserError
from orchestrator.lease import holder
from orchestrator.mounts import listing_age_s
from orchestrator.store import Store
from orchestrator.tracking import tracking_uri
from orchestrator.tracking_client import redacted

__all__ = ["Check", "checks"]

Status = Literal["ok", "warn", "missing"]

_TIMEOUT_S = 3.0
_LOW_DISK_GB = 10.0
_LOW_MEMORY_GB = 4.0
_GB = 1e9
_MOUNTS = Path("/proc/self/mountinfo")
_OLDEST_S = (3, 5)
"""acdirmin and acdirmax that are well below the 30 s of a spot instance's notice."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """missing: runs cannot start without it. warn: they can, but read the remedy."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


def checks(
    store: Store,
    data_paths: Mapping[str, str | Path] | None = None,
    ray_address: str | None = None,
) -> list[Check]:
    """Everything doctor prints, in reading order. data_paths: data set -> its raw files."""
    found: list[Check] = []
    probes: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("python", _python),
        ("torch", _torch_pair),
        ("GPU", _gpus),
        ("CPU and memory", _cpus),
        ("store", lambda: _store(store)),
        ("disk", lambda: _disk(store)),
        ("mount", lambda: _mount(store)),
        ("data", lambda: _data(store, data_paths or {})),
        ("mlflow", lambda: _tracking(store)),
        ("ray", lambda: _ray(ray_address)),
    ]
    for name, probe in probes:
        try:
            found += probe()
        except Exception as error:  # doctor must survive the patient
            found.append(Check(name=name, status="warn", detail=f"the check failed: {error!r}"))
    return found


def _python() -> Iterator[Check]:
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Check(name="python", status="ok", detail=detail)


def _torch_pair() -> Iterator[Check]:
    """Compares metadata, because a mismatched pair already fails at import."""
    versions = {name: _version(name) for name in ("torch", "torchvision")}
    absent = [name for name, version in versions.items() if version is None]
    if absent:
        detail = f"not installed: {', '.join(absent)}"
        yield Check(name="torch", status="missing", detail=detail, remedy=_PAIR_REMEDY)
        return
    wanted = [
        requirement
        for requirement in map(Requirement, metadata.requires("torchvision") or [])
        if requirement.name == "torch" and _applies(requirement)
    ]
    detail = f"torch {versions['torch']}, torchvision {versions['torchvision']}"
    for requirement in wanted:
        if not requirement.specifier.contains(str(versions["torch"]), prereleases=True):
            detail += f", which needs torch {requirement.specifier}"
            yield Check(name="torch", status="missing", detail=detail, remedy=_PAIR_REMEDY)
            return
    yield Check(name="torch", status="ok", detail=detail)


_PAIR_REMEDY = "install both in one command, from one index: pip install -U torch torchvision"


def _gpus() -> Iterator[Check]:
    """Importing torch costs seconds; only doctor pays."""
    try:
        torch: Any = importlib.import_module("torch")
    except Exception as error:  # a broken torch raises OSError, RuntimeError and more
        detail = f"torch cannot be imported: {error}"
        yield Check(name="GPU", status="missing", detail=detail, remedy=_PAIR_REMEDY)
        return
    if not torch.cuda.is_available():
        remedy = "fine for the demo; the paper's sweeps need GPUs"
        if shutil.which("nvidia-smi") is not None:
            remedy = (
                "nvidia-smi is there: its driver may be too old for torch's CUDA "
                f"{torch.version.cuda} (update it, or install a torch and torchvision pair of an "
                "older CUDA), or CUDA_VISIBLE_DEVICES hides them"
            )
        yield Check(name="GPU", status="warn", detail="none that torch can use", remedy=remedy)
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        detail = f"{device.name}, {device.total_memory / _GB:.0f} GB"
        yield Check(name=f"GPU {index}", status="ok", detail=detail)


def _cpus() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    free_gb = memory.available / _GB
    detail = f"{cores} cores, {memory.total / _GB:.0f} GB memory, {free_gb:.0f} GB free"
    if free_gb < _LOW_MEMORY_GB:
        remedy = "run fewer trials at once"
        yield Check(name="CPU and memory", status="warn", detail=detail, remedy=remedy)
    else:
        yield Check(name="CPU and memory", status="ok", detail=detail)


def _store(store: Store) -> Iterator[Check]:
    probe = f"control/doctor-{os.getpid()}"
    try:
        store.write_bytes(probe, b"")
        store.delete(probe)
        found = holder(store)
    except StoreError as error:
        yield Check(name="store", status="missing", detail=error.problem, remedy=error.remedy)
        return
    if found is not None:
        remedy = "a second driver is refused until that one ends"
        detail = f"{store.uri} is driven by {found}"
        yield Check(name="store", status="warn", detail=detail, remedy=remedy)
    else:
        yield Check(name="store", status="ok", detail=f"{store.uri} is writable, nobody drives it")


def _disk(store: Store) -> Iterator[Check]:
    if not store.is_local:
        return
    place = next(path for path in (store.root, *store.root.parents) if path.exists())
    free_gb = shutil.disk_usage(place).free / _GB
    detail = f"{free_gb:.0f} GB free for {store.root}"
    if free_gb < _LOW_DISK_GB:
        remedy = "`targetsweep plan` says what a sweep needs; checkpoints: keep_checkpoint: none"
        yield Check(name="disk", status="warn", detail=detail, remedy=remedy)
    else:
        yield Check(name="disk", status="ok", detail=detail)


def _mount(store: Store) -> Iterator[Check]:
    """Of a store on NFS. Only Linux tells; nothing is said elsewhere."""
    if not store.is_local or not _MOUNTS.exists():
        return
    mounts = _MOUNTS.read_text(encoding="utf-8", errors="replace")
    ages = listing_age_s(mounts, store.root.resolve())
    if ages is None:
        return
    detail = f"{store.root} is on NFS, which keeps listings for {ages[0]} to {ages[1]} s"
    if ages[0] > _OLDEST_S[0] or ages[1] > _OLDEST_S[1]:
        remedy = "mount it with acdirmin=1,acdirmax=3 on every node, else trials see the flags of "
        remedy += "`stop` and of nodes that leave too late"
        yield Check(name="mount", status="warn", detail=detail, remedy=remedy)
    else:
        yield Check(name="mount", status="ok", detail=detail)


def _data(store: Store, data_paths: Mapping[str, str | Path]) -> Iterator[Check]:
    names = store.list(paths.datasets_dir())
    prepared = [name for name in names if store.exists(paths.dataset_meta(name))]
    for name in prepared:
        yield Check(name=f"data {name}", status="ok", detail="prepared in the store")
    for name, place in data_paths.items():
        if name in prepared:
            continue
        if Path(place).exists():
            detail = f"raw files in {place}, prepared at the first run"
            yield Check(name=f"data {name}", status="ok", detail=detail)
        else:
            remedy = "download it there, or correct the path"
            detail = f"{place} does not exist"
            yield Check(name=f"data {name}", status="missing", detail=detail, remedy=remedy)


def _tracking(store: Store) -> Iterator[Check]:
    """Reaches a server by TCP only: importing MLflow to ask costs seconds and knows no more."""
    version = _version("mlflow")
    if version is None:
        remedy = "pip install mlflow"
        yield Check(name="mlflow", status="missing", detail="not installed", remedy=remedy)
        return
    try:
        uri = tracking_uri(store)
    except UserError as error:
        yield Check(name="mlflow", status="warn", detail=error.problem, remedy=error.remedy)
        return
    detail = f"{version}, tracking at {redacted(uri)}"
    problem = _unreachable(uri) if uri.startswith(("http://", "https://")) else None
    if problem:
        remedy = "start it or correct MLFLOW_TRACKING_URI; runs go on without, sync later"
        yield Check(name="mlflow", status="warn", detail=f"{detail}: {problem}", remedy=remedy)
    else:
        yield Check(name="mlflow", status="ok", detail=detail)


def _ray(address: str | None) -> Iterator[Check]:
    version = _version("ray")
    if version is None:
        remedy = "pip install 'ray[tune,train]'"
        yield Check(name="ray", status="missing", detail="not installed", remedy=remedy)
    elif address is None or address in ("auto", "local"):
        yield Check(name="ray", status="ok", detail=f"{version}, {address or 'a local cluster'}")
    elif address.startswith("ray://"):
        remedy = "give --ray-address auto, on a machine of the cluster: the driver runs there; "
        remedy += "from elsewhere `targetsweep submit --ray-address http://HEAD:8265`"
        detail = f"{address} is a Ray client address"
        yield Check(name="ray", status="missing", detail=detail, remedy=remedy)
    elif problem := _unreachable(address if "://" in address else f"//{address}"):
        remedy = "check the address (host:6379, or http://host:8265 for `submit`) and that "
        remedy += "`ray start --head` runs there"
        yield Check(name="ray", status="missing", detail=f"{address}: {problem}", remedy=remedy)
    else:
        yield Check(name="ray", status="ok", detail=f"{version}, {address} answers")
        yield from _cluster(address, version)


def _cluster(address: str, version: str) -> Iterator[Check]:
    ask = ask_job_server if address.startswith(("http://", "https://")) else ask_head
    for found in ask(address, version):
        status: Status = "ok" if found.is_good else "warn"
        yield Check(name="ray cluster", status=status, detail=found.detail, remedy=found.remedy)


def _unreachable(uri: str) -> str | None:
    """Why no TCP connection to `uri` opens, None when one does."""
    try:
        parts = urlsplit(uri)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError as error:
        return str(error)
    if not parts.hostname or port is None:
        return "it has no host or no port"
    try:
        socket.create_connection((parts.hostname, port), _TIMEOUT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate()
