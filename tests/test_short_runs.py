"""Benchmarks of sweeps: their arithmetic, and that all ways of one train the same runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.identity import run_key
from orchestrator.plan import make_plan
from orchestrator.spec import load_sweeps
from tests.sweep_files import write
from trainers.data.catalogue import OFFICIAL

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def test_the_sweep_and_the_bare_loop_train_the_same_runs(tmp_path: Path) -> None:
    import short_runs

    text = short_runs.sweep_text(width=8, steps=40, runs=3)
    plan = make_plan(load_sweeps([write(tmp_path, text)], OFFICIAL), OFFICIAL)
    assert {unit.key for unit in plan.units} == {
        run_key(short_runs.spec_of(seed, width=8)) for seed in range(3)
    }
    assert {unit.request.horizon for unit in plan.units} == {40}


def test_gaps_are_those_between_two_runs_of_a_slot() -> None:
    from sweep_efficiency import gaps_of

    spans = [(0.0, 10.0), (0.5, 9.0), (9.2, 19.0), (10.5, 20.0), (19.25, 30.0)]
    assert gaps_of(spans, 2) == pytest.approx([0.2, 0.5, 0.25])
    assert gaps_of(spans[:2], 2) == []


def test_efficiency_is_training_by_slots_and_wall() -> None:
    from sweep_efficiency import judge

    found = {"spans": [(0.0, 9.0), (1.0, 10.0), (10.0, 20.0)], "whole_s": 25.0}
    row = judge(found, {"quiet": 8.0, "busy": 9.0}, slots=2)
    assert row["efficiency_busy"] == pytest.approx(27 / 40, abs=1e-3)
    assert row["overhead_s"] == 13.0
    assert row["gap_max_s"] == 1.0


def test_stages_of_a_cold_start_add_up_to_its_first_step() -> None:
    from cold_start import STAGES, judge

    stamps = [{"name": name, "at": 100.0 + i, "pid": 1} for i, name in enumerate(STAGES, 1)]
    stamps.append({"name": "step", "at": 109.5, "pid": 2})
    row = judge(100.0, stamps, slots=2)
    assert sum(row[name] for name in STAGES) == pytest.approx(row["first_step_s"])
    assert row["all_slots_s"] == 9.5
