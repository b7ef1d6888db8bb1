"""What a unit's workers go by, written before each attempt: what the run is, and what is wanted."""

from __future__ import annotations

import errno
import platform
import secrets
from dataclasses import asdict

from orchestrator import paths
from orchestrator.errors import StoreError
from orchestrator.identity import canonical
from orchestrator.store import Store
from orchestrator.units import Unit
from trainers.spec import SEMANTICS

__all__ = ["attempt_name", "check_seen", "describe", "write_orders"]


def attempt_name(failures: int) -> str:
    """Of the attempt after so many failures. Drawn, not timed: no clock can give a name twice."""
    return f"{failures}-{secrets.token_hex(8)}"


def write_orders(store: Store, unit: Unit, attempt: str) -> None:
    """run.json once; request.json before every attempt, which takes the run away from a worker of
    an earlier one that should be dead and is not (its driver or its network died). Raises
    StoreError."""
    if not _is_described(store, unit):
        describe(store, unit)
    request = asdict(unit.request) | {
        "keep_checkpoint": unit.keep_checkpoint,
        "workers": unit.workers,
        "attempt": attempt,
    }
    if unit.measures:  # for whoever judges the result: what it did not reach is no failure
        request["measures"] = True
    store.write_json(paths.request_json(unit.name), request)


def describe(store: Store, unit: Unit) -> None:
    """run.json: what the run is."""
    store.write_json(
        paths.run_json(unit.name),
        {
            "key": unit.key,
            "kind": unit.kind,
            "semantics": SEMANTICS,
            "spec": canonical(unit.spec),
            "label": unit.label,
        },
    )


def _is_described(store: Store, unit: Unit) -> bool:
    """Whether run.json is there and can be read; a damaged one is written anew."""
    try:
        return store.read_json(paths.run_json(unit.name)) is not None
    except StoreError:
        return False


def check_seen(store: Store, driver: str) -> None:
    """Raises StoreError on a node that sees another folder of this name than the driver, or none:
    a relative path, a mount that failed. The run is innocent, and is tried again."""
    if driver and not store.exists(paths.lease()):
        error = StoreError(
            f"{platform.node()} does not see the store {store.uri} that the driver writes to: it "
            f"finds no {paths.lease()} there",
            "give a path or URI that all nodes see, and mount it on every node",
        )
        error.errno, error.verb = errno.ENODEV, "read"
        raise error
