"""What the store holds of a plan's units. Reads little: most runs of most calls are complete.

Nothing that it says rests on a damaged file: whatever it reads carries a checksum, and what does
not fit counts as not there and is named. A file that cannot be read just now is neither damaged nor
absent: StoreError, before anything is trained again for want of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from orchestrator import paths
from orchestrator.errors import DamagedFileError
from orchestrator.metricsfile import read_metrics
from orchestrator.store import Store
from orchestrator.units import Held, HeldSnapshot, Unit, provider
from trainers.spec import TargetsSpec

__all__ = ["READERS", "read_inventory"]

READERS = 16
"""A remote store answers a request in tens of milliseconds, whatever its size."""


def read_inventory(
    store: Store, units: Iterable[Unit], damaged: list[DamagedFileError] | None = None
) -> dict[str, Held]:
    """What is there of each unit, by name; units of which nothing is there are left out. damaged:
    gets every file that is not what was once written. Raises StoreError where one is there and
    cannot be read."""
    units = list(units)
    there = set(store.list(paths.runs_dir()))
    runs = [unit for unit in units if unit.kind != "targets" and unit.name in there]
    read = _Reader(store, [] if damaged is None else damaged)
    with ThreadPoolExecutor(READERS) as pool:
        held = dict(zip((unit.name for unit in runs), pool.map(read, runs), strict=True))
    files = set(store.list(paths.targets_dir()))
    for unit in units:
        if isinstance(unit.spec, TargetsSpec) and _has_targets(unit.spec, unit, held, files):
            held[unit.name] = Held(complete=True)
    return held


def _has_targets(spec: TargetsSpec, unit: Unit, held: Mapping[str, Held], files: set[str]) -> bool:
    """Targets are named by the snapshot they came from, its digest and its teacher."""
    teacher = held.get(provider(unit.needs[0]))
    snapshot = teacher.presets.get(spec.teacher.accuracy) if teacher else None
    if snapshot is None:
        return False
    path = paths.targets_file(spec, snapshot.digest)
    return path.rpartition("/")[2] in files


class _Reader:
    """damaged: where damaged files are put, by several threads."""

    def __init__(self, store: Store, damaged: list[DamagedFileError]) -> None:
        self.store = store
        self.damaged = damaged

    def __call__(self, unit: Unit) -> Held:
        result = self._json(paths.result(unit.name))
        evaluated: frozenset[int] = frozenset()
        sound = result is not None and _is_sound(result, unit)
        if sound and result is not None and unit.kind == "scores":
            sound = self._has_scores(unit)
        elif sound and result is not None:
            evaluated = self._evaluated(unit.name)
            sound = self._has_rows(unit, result, evaluated)
        facts = result if sound and result is not None else {}
        checkpoints = self._checkpoint_names(unit.name)
        failure = None if sound else self._json(paths.failure(unit.name))
        if unit.kind == "teacher":
            return self._teacher(unit, facts, checkpoints, failure)
        return Held(
            complete=sound,
            horizon=facts.get("horizon", 0),
            evaluated=evaluated if sound else frozenset(),
            checkpoints=_steps(checkpoints),
            kept=self._kept(unit),
            teacher_digest=facts.get("teacher_digest"),
            failure=failure,
        )

    def _has_scores(self, unit: Unit) -> bool:
        there = set(self.store.list(paths.snapshots_dir(unit.name)))
        names = (paths.scores_json(unit.name), paths.scores_weights(unit.name))
        if any(name.rpartition("/")[2] not in there for name in names):
            return False
        return (self._json(names[0]) or {}).get("scores") == unit.key

    def _kept(self, unit: Unit) -> frozenset[int]:
        """Of the steps that probes ask for, those whose weights are there."""
        asked = unit.request.keep_weights_at
        there = set(self.store.list(paths.snapshots_dir(unit.name))) if asked else set()
        found = set()
        for step in asked:
            names = (paths.kept_json(unit.name, step), paths.kept_weights(unit.name, step))
            if all(name.rpartition("/")[2] in there for name in names):
                record = self._json(names[0]) or {}
                if record.get("student") == unit.key and "digest" in record:
                    found.add(step)
        return frozenset(found)

    def _teacher(
        self,
        unit: Unit,
        facts: Mapping[str, Any],
        checkpoints: list[str],
        failure: Mapping[str, Any] | None,
    ) -> Held:
        presets = self._snapshots(unit)
        # request.json is the driver's: what the teacher was last asked, and so under which rule.
        request = (self._json(paths.request_json(unit.name)) or {}) if presets else {}
        return Held(
            complete=bool(facts),
            horizon=facts.get("horizon", 0),
            checkpoints=_steps(checkpoints, presets),
            presets=presets,
            weightless=self._weightless(unit, presets),
            searched_to=facts.get("searched_to", 0),
            missing=tuple(facts.get("missing", ())),
            validate_every=request.get("validate_every", unit.request.validate_every),
            screen=request.get("screen", unit.request.screen),
            failure=failure,
        )

    def _weightless(self, unit: Unit, presets: Iterable[float]) -> frozenset[float]:
        """Snapshots that nobody can learn from: their weights were deleted, or lie elsewhere."""
        there = set(self.store.list(paths.snapshots_dir(unit.name))) if presets else set()
        weights = {preset: paths.snapshot_weights(unit.name, preset) for preset in presets}
        return frozenset(p for p, rel in weights.items() if rel.rpartition("/")[2] not in there)

    def _json(self, rel: str) -> dict[str, Any] | None:
        try:
            return self.store.read_json(rel)
        except DamagedFileError as error:
            self.damaged.append(error)
            return None

    def _checkpoint_names(self, name: str) -> list[str]:
        names = self.store.list(paths.checkpoint_dir(name))
        return [name.removesuffix(".ckpt") for name in names if name.endswith(".ckpt")]

    def _evaluated(self, name: str) -> frozenset[int]:
        try:
            table = read_metrics(self.store, name, ["step"])
        except DamagedFileError as error:
            self.damaged.append(error)
            return frozenset()
        return frozenset() if table is None else frozenset(table["step"].to_pylist())

    def _has_rows(self, unit: Unit, result: Mapping[str, Any], steps: frozenset[int]) -> bool:
        """Whether the rows go as far as the result says. One without its rows is no result, and
        would be taken for one again while they are made anew: it goes with them."""
        if unit.kind == "teacher":  # its last rows may lie before the end of its search
            last = max((one["step"] for one in result.get("presets", {}).values()), default=0)
        else:
            last = result.get("step", result["horizon"])
        if max(steps, default=-1) >= last:
            return True
        error = DamagedFileError(paths.result(unit.name), "its rows are damaged or gone")
        self.damaged.append(error)
        return False

    def _snapshots(self, unit: Unit) -> dict[float, HeldSnapshot]:
        found = {}
        for name in self.store.list(paths.snapshots_dir(unit.name)):
            record = (
                self._json(f"{paths.snapshots_dir(unit.name)}/{name}") if _is_json(name) else None
            )
            if record is None or record.get("teacher") != unit.key:
                continue
            try:
                found[float(record["preset"])] = HeldSnapshot(
                    step=int(record["step"]),
                    accuracy=float(record["accuracy"]),
                    alpha=float(record["alpha"]),
                    digest=str(record["digest"]),
                )
            except (KeyError, TypeError, ValueError):
                continue
        return found


def _is_json(name: str) -> bool:
    return name.endswith(".json")


def _is_sound(result: Mapping[str, Any], unit: Unit) -> bool:
    return (
        result.get("key") == unit.key
        and result.get("status") == "complete"
        and isinstance(result.get("horizon"), int)
    )


def _steps(
    names: Iterable[str], presets: Mapping[float, HeldSnapshot] | None = None
) -> tuple[int, ...]:
    """Steps of `step-00000300` and, by way of their snapshots, of `acc-30`."""
    steps = {int(name[5:]) for name in names if name[:5] == "step-" and name[5:].isdigit()}
    for preset, snapshot in (presets or {}).items():
        if f"acc-{paths.preset_name(preset)}" in names:
            steps.add(snapshot.step)
    return tuple(sorted(steps))
