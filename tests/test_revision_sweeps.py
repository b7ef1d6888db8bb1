"""Every shipped sweep of the second study: it loads, plans, and asks what its tables, figures and
claims show; its claims are quoted as the summary prints them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dashboards.claim_layout import ClaimItem
from orchestrator.plan import make_plan
from orchestrator.scalefile import load_scale
from orchestrator.scaling import scale_sweep
from orchestrator.spec import load_sweeps
from tests.shipped_sweeps import (
    assert_editors_accept,
    assert_planned,
    assert_sound,
    counts,
    header,
    told,
    unmeasured,
)
from trainers.data.catalogue import OFFICIAL

FOLDER = Path(__file__).parents[1] / "sweeps" / "revision"
PAPER = FOLDER.parent / "paper"
SEEDS = Path(__file__).parents[2] / "shared" / "seeds"
GROUPS = ("claims", "full")
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem not in GROUPS)


@pytest.fixture(scope="module")
def sweeps():
    """By file name."""
    return {name: load_sweeps([FOLDER / f"{name}.yaml"])[0] for name in NAMES}


@pytest.fixture(scope="module")
def plans(sweeps):
    return {name: make_plan([sweep], OFFICIAL) for name, sweep in sweeps.items()}


def test_the_issue_has_its_sweeps():
    assert set(NAMES) == {
        "methods", "eta", "fraction", "selection_methods", "label_noise", "weak_teachers",
        "crossing",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_and_every_setting_is_read(name, sweeps):
    assert_sound(sweeps[name], f"revision_{name}")


@pytest.mark.parametrize("name", [*NAMES, *GROUPS])
def test_editors_accept_it_as_the_loader_does(name):
    assert_editors_accept(FOLDER / f"{name}.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_the_lab_note_says_what_the_plan_says(name, plans):
    note = header(FOLDER / f"{name}.yaml")
    assert {"What", "Study", "Assumed", "Runs", "Cost", "Command", "Expect"} <= note.keys()
    assert told(note["Runs"]) == counts(plans[name])
    assert note["Command"] == f"targetsweep run sweeps/revision/{name}.yaml"
    assert f"targetsweep plan sweeps/revision/{name}.yaml --device NAME" in note["Cost"]


def test_the_whole_is_less_than_its_parts(plans):
    group = load_sweeps([FOLDER / "full.yaml"])
    whole = make_plan(group, OFFICIAL)
    note = header(FOLDER / "full.yaml")
    assert told(note["Runs"]) == counts(whole)
    assert {sweep.name for sweep in group} == {
        *(f"revision_{name}" for name in NAMES), "revision_claims", "revision",
    }  # fmt: skip
    points = sum(plan.num_points for plan in plans.values())
    steps = sum(point.horizon for plan in plans.values() for own in plan.points.values()
                for point in own)  # fmt: skip
    assert f"{points} students, {steps:,} steps" in note["Shared"]
    assert len(whole.of_kind("student")) < points


def test_the_unrevised_runs_of_the_crossing_are_the_first_studys(plans):
    (table,) = load_sweeps([PAPER / "table_3.yaml"])
    first = {unit.name for unit in make_plan([table], OFFICIAL).units}
    crossing = plans["crossing"]
    plain = {unit.name for unit in crossing.of_kind("student") if unit.spec.revision is None}
    assert len(plain) == 90
    assert plain <= first
    assert {unit.name for unit in crossing.of_kind("teacher")} <= first
    assert {unit.name for unit in crossing.of_kind("targets")} <= first


def test_who_scores_trains_as_the_first_studys_strategy_a(plans):
    """On the same data, in the same way: a store that holds those runs keeps weights of one."""
    (figure,) = load_sweeps([PAPER / "figure_5a.yaml"])
    of_first = {unit.name for unit in make_plan([figure], OFFICIAL).of_kind("student")}
    scorers = {
        unit.name for unit in plans["weak_teachers"].of_kind("student")
        if unit.request.keep_weights_at
    }  # fmt: skip
    assert scorers
    assert scorers <= of_first


# -- claims ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def claims():
    sweeps = load_sweeps([FOLDER / "claims.yaml"])
    (group,) = [sweep for sweep in sweeps if sweep.include]
    return sweeps, [item for item in group.report if isinstance(item, ClaimItem)]


def test_every_cell_of_every_claim_is_planned(claims):
    sweeps, items = claims
    assert_planned(items, unmeasured(sweeps))


def test_claims_of_the_study_are_quoted(claims):
    if not SEEDS.is_dir():
        pytest.skip("the summaries are not here")
    (file,) = SEEDS.glob("004_*")
    text = " ".join(file.read_text(encoding="utf-8").split())
    _, items = claims
    of_study = [item for item in items if not item.source.startswith("ours, where")]
    assert len(of_study) >= 9
    for item in of_study:
        assert item.statement.lower().rstrip(".") in text.lower(), item.name


# -- pilots ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_pilot_keeps_the_layout_and_its_pairs_apart(name):
    scale = load_scale(FOLDER / "scales" / "pilot.yaml")
    (sweep,) = load_sweeps([FOLDER / f"{name}.yaml"], scale=scale)
    scaled = scale_sweep(sweep, OFFICIAL)
    plan = make_plan([scaled], OFFICIAL)
    assert scaled.name == f"revision_{name}-pilot"
    assert {unit.spec.dataset.image_size for unit in plan.units if unit.kind != "teacher"} == {16}
    students = plan.of_kind("student")
    assert max(unit.request.horizon for unit in students) == 300
    scores = plan.of_kind("scores")
    assert {unit.spec.scoring.student.step for unit in scores if unit.spec.scoring.student} <= {30}
    if name == "methods":
        widths = {unit.spec.backbone.width for unit in students}
        assert widths == {4, 8, 12}
        assert {unit.spec.backbone.width for unit in plan.of_kind("teacher")} == {8, 12, 16}
