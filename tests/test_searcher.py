"""Tune's side: what it says of trials, and what it does not say of those that died."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.search import Searcher

from orchestrator.rayprocesses import survive_memory_monitor
from orchestrator.searcher import Coroner, UnitSearcher
from orchestrator.trial import TrialConfig


class Conducted:
    """Two units, and all that is said of them."""

    def __init__(self) -> None:
        self.left = ["a", "b"]
        self.heard: list[Any] = []

    @property
    def finished(self) -> bool:
        return not self.left

    def next_trial(self) -> TrialConfig | None:
        return {"unit": self.left.pop(0)}

    def on_report(self, report: dict[str, Any]) -> None:
        self.heard.append(report["event"])

    def on_end(self, unit: str, *, lost: bool, said: str = "") -> None:
        self.heard.append((unit, lost, said))


@pytest.fixture
def conducted() -> Conducted:
    return Conducted()


@pytest.fixture
def searcher(conducted: Conducted) -> UnitSearcher:
    return UnitSearcher(conducted)


def test_units_become_trials_until_nothing_is_left(
    searcher: UnitSearcher, conducted: Conducted
) -> None:
    assert [searcher.suggest(name) for name in ("1", "2", "3")] == [
        {"unit": "a"}, {"unit": "b"}, Searcher.FINISHED,
    ]  # fmt: skip
    searcher.on_trial_result("1", {"event": "started"})
    searcher.on_trial_complete("1", {"event": "finished"})
    assert conducted.heard == ["started", "finished", ("a", False, "")]


def test_the_coroner_says_why_a_trial_died(
    searcher: UnitSearcher, conducted: Conducted, tmp_path: Path
) -> None:
    searcher.suggest("1")
    searcher.suggest("2")
    (tmp_path / "error.txt").write_text("the node was running low on memory\n")
    coroner = Coroner(searcher)
    coroner.on_trial_error(None, trial("1", tmp_path / "error.txt"))
    searcher.on_trial_complete("1", error=True)
    coroner.on_trial_error(None, trial("2", None))
    searcher.on_trial_complete("2", error=True)
    assert conducted.heard == [
        ("a", True, "the node was running low on memory\n"),
        ("b", True, ""),
    ]


def trial(name: str, error_file: Path | None) -> Any:
    return SimpleNamespace(trial_id=name, error_file=error_file)


def test_a_death_by_the_memory_monitor_is_the_death_of_an_actor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tune itself would end the whole experiment (RuntimeError: Caught unexpected exception)."""
    from ray.air.execution._internal.actor_manager import RayActorManager

    monkeypatch.setattr(RayActorManager, "_actor_task_failed", RayActorManager._actor_task_failed)
    heard: list[Exception] = []

    def hear(tracked_actor: Any, error: Exception) -> None:
        heard.append(error)

    actor = SimpleNamespace(actor_id=1, _on_error=hear)
    task = SimpleNamespace(_tracked_actor=actor, _on_error=None)
    manager = SimpleNamespace(_failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: None)
    survive_memory_monitor()
    survive_memory_monitor()
    RayActorManager._actor_task_failed(
        manager, task, OutOfMemoryError("the node was running low on memory")
    )
    (error,) = heard
    assert isinstance(error, RayActorError)
    assert "low on memory" in str(error)
