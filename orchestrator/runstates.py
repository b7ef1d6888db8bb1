"""How far the runs of plans are, as `status` counts them: by what the store holds, without the
specifications that a new plan would make."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from orchestrator import paths
from orchestrator.behind import scorer, snapshot_behind
from orchestrator.errors import DamagedFileError, StoreError
from orchestrator.inventory import READERS
from orchestrator.store import Store
from orchestrator.units import provider, snapshot_token

__all__ = ["RunStates"]


class RunStates:
    """Of the plans of one store at one moment. A run of several sweeps is read once, and as many
    runs at a time as a remote store answers.

    damaged: the results that are not what was once written; they count as absent.
    """

    def __init__(self, store: Store) -> None:
        self.damaged: list[DamagedFileError] = []
        self._store = store
        self._there = set(store.list(paths.runs_dir()))
        self._runs: dict[str, _Run] = {}

    def of(self, plan: Mapping[str, Any]) -> dict[str, str]:
        """The students and probes of a plan, and the teachers and students behind them: each done,
        begun, shorter (complete, but not as far as is asked), failed, blocked (by one that failed
        to give what it waits for) or to do; soft targets and scores that failed are among them."""
        horizons: dict[str, int] = {}
        tokens: dict[str, str] = {}
        probed: dict[str, str] = {}
        for run, horizon, snapshot, weights in _asked(plan):
            horizons[run] = max(horizon, horizons.get(run, 0))
            if snapshot:
                tokens[run] = snapshot
            if weights:
                probed[run] = weights
        asked = _presets(tokens.values())
        self._read(dict.fromkeys(asked, 0) | horizons)
        lost: set[str] = set()
        states: dict[str, str] = {}
        for teacher, presets in asked.items():
            states[teacher], missing = self._runs[teacher].teacher_state(presets)
            lost |= {snapshot_token(teacher, float(preset)) for preset in missing}
        spoilt = self._spoilt(plan, states)
        for run, horizon in horizons.items():
            if run in spoilt:
                is_lost = True
            elif run in probed:
                is_lost = states[provider(probed[run])] in ("failed", "blocked")
            else:
                is_lost = tokens.get(run) in lost
            state = self._runs[run].state(horizon)
            states[run] = "blocked" if is_lost and state not in ("done", "failed") else state
        return states

    def _read(self, horizons: Mapping[str, int]) -> None:
        """Those that no plan before has asked for. What decides a state is read here already."""
        new = {
            name: _Run(self._store, name, self.damaged, is_there=name in self._there)
            for name in horizons
            if name not in self._runs
        }
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(lambda name: new[name].state(horizons[name]), new))
        self._runs |= new

    @cached_property
    def _failed_artefacts(self) -> dict[str, str | None]:
        """Soft targets and scores that failed, and of the former the snapshot they are of."""
        return {
            name: snapshot_behind(self._store, name) if name.startswith("targets-") else None
            for name in sorted(self._there)
            if name.startswith(("targets-", "scores-")) and self._store.exists(paths.failure(name))
        }

    def _spoilt(self, plan: Mapping[str, Any], states: dict[str, str]) -> set[str]:
        """Runs whose soft targets or scores, or the student behind those, failed; what failed is
        added to `states`."""
        failed = set(self._failed_artefacts)
        targets = {token: name for name, token in self._failed_artefacts.items() if token}
        scorers = {
            name: scorer(self._store, name)
            for name in {p.get("scores") for p in plan["points"]}
            if name
        }
        failed |= {
            name for name in scorers.values() if name and self._store.exists(paths.failure(name))
        }
        spoilt: set[str] = set()
        for point in plan["points"]:
            settings = {**plan.get("settings", {}), **point.get("settings", {})}
            scores = point.get("scores")
            behind = {scores, scorers.get(scores)}
            if settings.get("strategy") == "C":
                behind.add(targets.get(point.get("snapshot") or ""))
            if point["run"] is not None and (lost := behind & failed):
                spoilt.add(point["run"])
                states |= dict.fromkeys(lost, "failed")
        return spoilt


class _Run:
    """What the store holds of a run, each file read when it is first asked for. damaged: gets its
    result if that is none. is_there: whether the run has a folder at all."""

    def __init__(
        self, store: Store, name: str, damaged: list[DamagedFileError], *, is_there: bool
    ) -> None:
        self._store = store
        self._name = name
        self._damaged = damaged
        self._is_there = is_there

    def state(self, horizon: int) -> str:
        """Of a run that nothing blocks."""
        result = self.result
        if result.get("status") == "complete" and result.get("horizon", 0) >= horizon:
            return "done"
        if self.has_failed:
            return "failed"
        if self.has_begun:
            return "begun"
        return "shorter" if result.get("status") == "complete" else "to do"

    def teacher_state(self, presets: Collection[str]) -> tuple[str, set[str]]:
        """Its state, and the presets that will not come unless it is tried again."""
        if set(presets) <= set(self.result.get("presets", {})):
            return "done", set()  # also where its snapshots were deleted since
        absent = {preset for preset in presets if f"acc-{preset}" not in self.snapshots}
        given_up = {paths.preset_name(preset) for preset in self.result.get("missing", [])}
        if absent & given_up or self.has_failed:
            return "failed", absent & given_up or absent
        return ("begun" if self.has_begun else "to do"), set()

    @cached_property
    def result(self) -> dict[str, Any]:
        try:
            return (self._is_there and self._store.read_json(paths.result(self._name))) or {}
        except DamagedFileError as error:
            self._damaged.append(error)
        except StoreError:
            pass
        return {}

    @cached_property
    def has_failed(self) -> bool:
        return self._is_there and self._store.exists(paths.failure(self._name))

    @cached_property
    def has_begun(self) -> bool:
        return self._is_there and bool(self._store.list(paths.checkpoint_dir(self._name)))

    @cached_property
    def snapshots(self) -> frozenset[str]:
        files = self._store.list(paths.snapshots_dir(self._name)) if self._is_there else []
        return frozenset(file.removesuffix(".json") for file in files)


def _asked(plan: Mapping[str, Any]) -> Iterator[tuple[str, int, str | None, str | None]]:
    """(run, horizon, snapshot token, token of a student's weights) of the students, then of the
    probes of the plan's points; students behind probes come with the probes' step."""
    probes = []
    for point in plan["points"]:
        if point["run"] is None:
            continue  # nothing a scaled sweep could train
        weights = point.get("weights")
        horizon = point.get("actual", {}).get("horizon", point["horizon"])
        if weights:
            student, _, step = weights.partition("/step-")
            yield student, int(step), point.get("snapshot"), None
            probes.append((point["run"], horizon, None, weights))
        else:
            yield point["run"], horizon, point.get("snapshot"), None
    yield from probes


def _presets(tokens: Iterable[str]) -> dict[str, set[str]]:
    """What is asked of each teacher, by preset name."""
    asked: dict[str, set[str]] = {}
    for token in tokens:
        asked.setdefault(provider(token), set()).add(token.partition("/acc-")[2])
    return asked
