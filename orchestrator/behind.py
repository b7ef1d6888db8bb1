"""What stands behind soft targets and scores, which no plan names: their run.json does, from the
moment they are begun."""

from __future__ import annotations

from typing import Any

from orchestrator import paths
from orchestrator.errors import StoreError
from orchestrator.store import Store
from orchestrator.units import snapshot_token

__all__ = ["scorer", "snapshot_behind"]


def scorer(store: Store, scores: str) -> str | None:
    """The student by whose weights the scores were taken; None before they were begun, and for
    scores that need none."""
    student = _spec(store, scores).get("scoring", {}).get("student")
    return paths.run_name("student", student["key"]) if student else None


def snapshot_behind(store: Store, targets: str) -> str | None:
    """Token of the teacher snapshot that the soft targets are of; None before they were begun."""
    teacher = _spec(store, targets).get("teacher")
    if not teacher:
        return None
    return snapshot_token(paths.run_name("teacher", teacher["key"]), float(teacher["accuracy"]))


def _spec(store: Store, name: str) -> dict[str, Any]:
    try:
        return dict((store.read_json(paths.run_json(name)) or {}).get("spec", {}))
    except StoreError:
        return {}
