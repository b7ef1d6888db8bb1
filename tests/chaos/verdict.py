"""After a scene: is everything as if nothing had happened?"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from orchestrator import paths
from orchestrator.lease import holder
from tests.chaos.flights import charge
from tests.chaos.kinds import BOUNDED, NOTICED
from tests.chaos.scene import INTERVAL_S, Scene
from tests.commands import check_tracking, tables

__all__ = ["Verdict", "judge"]

_SLACK_S = 2.0
"""Beside the interval: the step under way and the writing of the checkpoint, on a busy machine."""

_STAYS = ("job.json", "overheads.json", "store.json")
"""What a driver leaves under control/ for the next one to read."""


@dataclass
class Verdict:
    """What is wrong, in sentences; all empty when nothing is. interval_steps: the most steps that
    any run trained between two checkpoints."""

    wrong_numbers: list[str] = field(default_factory=list)
    retrained: list[str] = field(default_factory=list)
    tracking: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unnoticed: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    interval_steps: int = 0

    @property
    def is_clean(self) -> bool:
        return not (
            self.wrong_numbers or self.retrained or self.tracking or self.lost
            or self.unnoticed or self.left_behind or self.other
        )  # fmt: skip


def judge(scene: Scene) -> Verdict:
    """Reads the store, MLflow and the flight recorder after the scene's last command."""
    verdict = Verdict(other=list(scene.problems))
    _numbers(scene, verdict)
    _retrained(scene, verdict)
    _tracking(scene, verdict)
    _lost(scene, verdict)
    _damage(scene, verdict)
    _leftovers(scene, verdict)
    if re.search(r"^Traceback \(most recent call last\)", scene.text, re.MULTILINE):
        verdict.other.append("a traceback on the screen")
    return verdict


def _numbers(scene: Scene, verdict: Verdict) -> None:
    wanted = scene.reference.tables
    try:
        found = tables(scene.store, scene.reference.sweep.name)
    except AssertionError:
        found = {}
    names = sorted(wanted.keys() | found.keys())
    verdict.wrong_numbers += [name for name in names if wanted.get(name) != found.get(name)]


def _retrained(scene: Scene, verdict: Verdict) -> None:
    """A run whose trial died after its last word was written may be opened again; it must find that
    nothing is left to train."""
    hit = {rel.split("/")[1] for rel in scene.damaged if rel.startswith("runs/")}
    for name, stamp in scene.finished.items():
        if name in hit or _needs_damaged(scene, name):
            continue
        folder = scene.folder / "store" / paths.run_dir(name)
        result = folder / "result.json"
        if not result.exists():
            verdict.retrained.append(f"{name}: its result is gone")
            continue
        if result.read_bytes() != stamp.result and _first_step(result.read_bytes()) <= _step(stamp):
            verdict.retrained.append(name)


def _needs_damaged(scene: Scene, name: str) -> bool:
    """Soft targets are made again when their file was damaged: they are a run of their own."""
    return name.startswith("targets") and any(rel.startswith("targets/") for rel in scene.damaged)


def _first_step(result: bytes) -> int:
    return int(json.loads(result).get("first_step", 0))


def _step(stamp: object) -> int:
    content = json.loads(stamp.result)  # type: ignore[attr-defined]
    return int(content["step"])


def _tracking(scene: Scene, verdict: Verdict) -> None:
    try:
        check_tracking(scene.store, scene.reference.sweep.name, scene.tracking_uri)
    except AssertionError as error:
        verdict.tracking.append(" ".join(str(error).split())[:400] or "differs from the store")
    except Exception as error:
        verdict.tracking.append(f"{type(error).__name__}: {error}"[:400])


def _lost(scene: Scene, verdict: Verdict) -> None:
    flown = scene.flights()
    verdict.interval_steps = max((one.widest for one in flown), default=0)
    hit = {rel.split("/")[1] for rel in scene.damaged if rel.startswith("runs/")}
    verdict.lost += [
        line for line in charge(flown, scene.faults)
        if line.split()[0] not in hit and line.startswith("student")
    ]  # fmt: skip
    for fault in scene.faults:
        if fault.kind in NOTICED and fault.lost_steps:
            verdict.lost.append(f"{fault.kind}: {fault.lost_steps} steps lost in spite of notice")
        elif fault.kind in BOUNDED and not scene.damaged and fault.lost_s > INTERVAL_S + _SLACK_S:
            verdict.lost.append(f"{fault.kind}: {fault.lost_s:.1f} s of training lost")


def _damage(scene: Scene, verdict: Verdict) -> None:
    """Every damaged file is named, and the damaged bytes are kept apart, never trusted."""
    folder = scene.folder / "store" / "damaged"
    kept = {file.read_bytes() for file in folder.rglob("*")} if folder.exists() else set()
    text = scene.text
    for rel, content in scene.damaged.items():
        if rel not in text:
            verdict.unnoticed.append(f"{rel} is not named on the screen")
        if content not in kept:
            verdict.unnoticed.append(f"{rel} was not set aside")
        present = scene.folder / "store" / rel
        if present.exists() and present.read_bytes() == content:
            verdict.unnoticed.append(f"{rel} is still in its place")


def _leftovers(scene: Scene, verdict: Verdict) -> None:
    store = scene.store
    if holder(store) is not None:
        verdict.left_behind.append("the lease")
    control = store.list("control")
    verdict.left_behind += [f"control/{name}" for name in control if name not in _STAYS]
    hidden = {file.name for file in store.root.iterdir() if file.name.startswith(".")}
    verdict.left_behind += sorted(hidden - {".lease.lock"})
    verdict.left_behind += [file.name for file in store.root.rglob(".ts-*")]
    verdict.left_behind += [
        paths.failure(name) for name in store.list("runs") if store.exists(paths.failure(name))
    ]
