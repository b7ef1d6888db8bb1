"""Seals the files of a store that was written before files had seals.

Their content is taken for what it is: nobody can tell damage that came before. What visibly is none
(no JSON, no Parquet) gets no seal, and is found damaged afterwards.
"""

from __future__ import annotations

import difflib
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from dashboards.seals import NoSealError, SealError, check_parquet, seal_parquet, unseal_json
from orchestrator import paths
from orchestrator.errors import DamagedFileError
from orchestrator.lease import Lease
from orchestrator.metricsfile import parse_metrics
from orchestrator.store import Store
from trainers.errors import TargetsError
from trainers.targets import SoftTargets, seal_targets

__all__ = ["seal_store"]

_THREADS = 8
_KEY = "sha256"


def seal_store(store: Store) -> int:
    """How many files got a seal. A kill in between is finished by sealing again; until then every
    other command refuses the store. Raises StoreError."""
    _seal_json(store, paths.lease())  # an older driver's, or nobody could take it
    with Lease(store, "targetsweep store check --seal"):
        store.write_bytes(paths.sealing(), b"sealing\n")
        with ThreadPoolExecutor(_THREADS) as pool:
            done = sum(pool.map(partial(_seal, store), _files(store)))
        store.delete(paths.sealing())
    return done


def _files(store: Store) -> Iterator[str]:
    for name in store.list(paths.runs_dir()):
        folder = paths.run_dir(name)
        yield from (f"{folder}/{file}" for file in store.list(folder))
        yield from (f"{folder}/snapshots/{f}" for f in store.list(paths.snapshots_dir(name)))
    for folder in (paths.targets_dir(), "rates"):
        yield from (f"{folder}/{file}" for file in store.list(folder))
    for sweep in store.list(paths.sweeps_dir()):
        yield paths.plan_json(sweep)
        yield paths.tracking_json(sweep)
    for name in store.list(paths.datasets_dir()):
        yield paths.dataset_meta(name)


def _seal(store: Store, rel: str) -> bool:
    """Whether the file got a seal: not where it has one, is none of ours or cannot be read."""
    if rel.endswith(".json"):
        return _seal_json(store, rel)
    if rel.endswith("/metrics.parquet"):
        return _seal_metrics(store, rel)
    return rel.endswith(".arrow") and _seal_targets(store, rel)


def _seal_json(store: Store, rel: str) -> bool:
    if not store.exists(rel):
        return False
    try:
        obj: Any = json.loads(store.read_bytes(rel))
        if isinstance(obj, dict):
            unseal_json(obj)
    except NoSealError:
        if difflib.get_close_matches(_KEY, obj, n=1, cutoff=0.8):
            return False  # it had a seal, whose name was hit
        store.write_json(rel, obj, in_order=rel.endswith(("/plan.json", "/meta.json")))
        return True
    except ValueError:  # SealError among it
        return False
    return False


def _seal_metrics(store: Store, rel: str) -> bool:
    data = store.read_bytes(rel)
    try:
        check_parquet(data)
        return False
    except NoSealError:
        pass
    except SealError:
        return False
    sealed = seal_parquet(data)
    try:
        parse_metrics(sealed, rel)
    except DamagedFileError:
        return False
    store.write_bytes(rel, sealed)
    return True


def _seal_targets(store: Store, rel: str) -> bool:
    path = store.local(rel)
    with suppress(TargetsError):
        SoftTargets(path, None)
        return False
    with tempfile.TemporaryDirectory() as folder, suppress(TargetsError):
        sealed = Path(folder) / "targets.arrow"
        seal_targets(path, sealed)
        store.upload(sealed, rel)
        return True
    return False
