"""Every shipped sweep of the paper: it loads, plans, and asks what its tables and figures show.

The cells of a table are counted here from plan.json alone, by a few lines of their own, and not by
the code that makes the report.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.plan import Plan, make_plan
from orchestrator.plandocument import plan_document
from orchestrator.scalefile import load_scale
from orchestrator.scaling import scale_sweep
from orchestrator.spec import Sweep, load_sweeps
from tests.shipped_sweeps import assert_editors_accept, assert_sound, counts, header, told
from tests.test_reference import COUNTS
from trainers.data.catalogue import OFFICIAL
from trainers.spec import StudentSpec

FOLDER = Path(__file__).parents[1] / "sweeps" / "paper"
GROUPS = ("claims", "full")
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem not in GROUPS)

EXPECTED = {
    *(f"table_{number}" for number in range(1, 10)),
    *("figure_4", "figure_5a", "figure_6a", "figure_6b", "figure_7a", "figure_7b", "figure_8"),
    *("figure_11", "figure_12", "figure_14", "figure_15", "figure_16", "figure_17", "figure_18"),
    "review_figure_1",
    *(f"check_{of}" for of in ("decoupling", "flattened", "learning_rate")),
    *("check_teacher_spread", "check_teacher_strength"),
}

# Reference values by sweep: means, gains.
REFERENCED = {**COUNTS, "figure_6b": (29, 0)}


@cache
def sweep_of(name: str) -> Sweep:
    (sweep,) = load_sweeps([FOLDER / f"{name}.yaml"])
    return sweep


@cache
def plan_of(name: str) -> Plan:
    return make_plan([sweep_of(name)], OFFICIAL)


@cache
def document_of(name: str) -> dict[str, Any]:
    return plan_document(sweep_of(name), plan_of(name))


def items(name: str, kind: str) -> list[dict[str, Any]]:
    return [item for item in document_of(name)["report"] if kind in item]


# --- cells, counted from plan.json ----------------------------------------------------------------


def key(value: Any) -> Any:
    return float(value) if isinstance(value, int) else value


def accepted(item: dict[str, Any], settings: dict[str, Any]) -> bool:
    return all(
        key(settings.get(field)) in map(key, wanted if isinstance(wanted, list) else [wanted])
        for field, wanted in item["where"].items()
    )


def cells_of(name: str, item: dict[str, Any]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Points by the coordinates of the cell they fall into."""
    document = document_of(name)
    if "table" in item:
        fields = [*item["rows"], *item["columns"]]
        metrics = list(item["metrics"]) or [item["metric"]]
    else:
        roles = ("panel", "style", "hue", "y", "x")
        fields = [item[role] for role in roles if item[role] not in (None, "step")]
        fields = list(dict.fromkeys(fields)) + ["step"] * ("step" in map(item.get, roles))
        metrics = [item["metric"]]
    cells = defaultdict(list)
    for point in document["points"]:
        settings = document["settings"] | point["settings"]
        if not accepted(item, settings):
            continue
        for metric, step in itertools.product(metrics, item["steps"] or [point["horizon"]]):
            found = settings | {"metric": metric, "step": step}
            cells[tuple((field, key(found.get(field))) for field in fields)].append(found)
    return cells


def belongs(reference: dict[str, Any], points: list[dict[str, Any]]) -> bool:
    """Whether each coordinate of a reference is that of the cell."""
    at = reference["at"]
    return all({key(point.get(field)) for point in points} == {key(at[field])} for field in at)


def sides_of(
    reference: dict[str, Any], item: dict[str, Any], cells: dict[Any, list[dict[str, Any]]]
) -> list[int]:
    """How many cells there are for the numerator and the denominator of a Gain."""
    counts = []
    for side in ("of", "to"):
        at = {**reference["at"], item["ratio"]["field"]: item["ratio"][side]}
        if item["ratio"]["field"] == "strategy" and item["ratio"][side] == "A":
            at["teacher.accuracy"] = None
        counts.append(sum(belongs({"at": at}, points) for points in cells.values()))
    return counts


# --- the files ------------------------------------------------------------------------------------


def test_every_experiment_has_a_file():
    assert set(NAMES) == EXPECTED


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_under_its_own_name_and_every_setting_is_read(name):
    assert_sound(sweep_of(name), name)


@pytest.mark.parametrize("name", [*NAMES, *GROUPS])
def test_editors_accept_it_as_the_loader_does(name):
    assert_editors_accept(FOLDER / f"{name}.yaml")


def test_names_of_tables_and_figures_are_unique_over_all_sweeps():
    names = Counter(item.name for name in NAMES for item in sweep_of(name).report)
    assert max(names.values()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_lab_note_says_what_the_plan_says(name):
    note = header(FOLDER / f"{name}.yaml")
    assert {"What", "Paper", "Assumed", "Runs", "Cost", "Command", "Expect"} <= note.keys()
    assert told(note["Runs"]) == counts(plan_of(name))
    assert note["Command"] == f"targetsweep run sweeps/paper/{name}.yaml"
    assert f"targetsweep plan sweeps/paper/{name}.yaml --device NAME" in note["Cost"]


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_finds_five_seeds_of_runs_long_enough(name):
    for item in [*items(name, "table"), *items(name, "figure")]:
        cells = cells_of(name, item)
        assert cells, item
        for at, points in cells.items():
            assert sorted(point["seed"] for point in points) == [0, 1, 2, 3, 4], (item, at)


@pytest.mark.parametrize("name", NAMES)
def test_runs_are_as_long_as_the_steps_that_are_shown(name):
    document = document_of(name)
    for item in [*items(name, "table"), *items(name, "figure")]:
        last = max(item["steps"], default=0)
        for point in document["points"]:
            if accepted(item, document["settings"] | point["settings"]):
                assert point["horizon"] >= last


def test_horizons_reach_what_appendix_b_says():
    longest = {
        name: max(point["horizon"] for point in document_of(name)["points"]) for name in NAMES
    }
    fixed = ("6b", "7a", "7b", "8", "11", "12", "17", "18")
    assert {longest[f"figure_{number}"] for number in fixed} == {10_000}
    assert longest["table_3"] == 58_500
    assert (longest["figure_5a"], longest["figure_14"]) == (20_000, 40_000)
    assert (longest["figure_6a"], longest["figure_16"]) == (7800, 15_600)
    assert longest["table_7"] == 250_000


# --- reference values -----------------------------------------------------------------------------


def referenced(name: str) -> tuple[int, int]:
    """Means and Gains of the paper that have exactly one cell in the sweep's tables (or, where it
    has none, its heat maps). An item may read a file that another item shares with it."""
    found: Counter[str] = Counter()
    held: dict[str, dict[str, Any]] = {}
    kind = "table" if any(item["reference"] for item in items(name, "table")) else "figure"
    for item in items(name, kind):
        cells = cells_of(name, item)
        for reference in item["references"]:
            text = str((reference["at"], reference["kind"]))
            held[text] = reference
            if reference["kind"] == "gain":
                sides = sides_of(reference, item, cells)
                assert sides in ([1, 1], [0, 0]), (reference, sides)
                found[text] += sides == [1, 1]
            else:
                found[text] += sum(belongs(reference, points) for points in cells.values())
    assert set(found.values()) <= {1}, [text for text in held if found[text] != 1]
    kinds = Counter(reference["kind"] for reference in held.values())
    return kinds["mean"], kinds["gain"]


@pytest.mark.parametrize("name", NAMES)
def test_every_reference_value_has_exactly_one_cell(name):
    assert referenced(name) == REFERENCED.get(name, (0, 0))


def test_the_totals():
    counts = [referenced(name) for name in NAMES if name != "figure_6b"]
    assert (sum(means for means, _ in counts), sum(gains for _, gains in counts)) == (512, 145)


@pytest.mark.parametrize("name", [name for name in REFERENCED if name != "figure_6b"])
def test_every_cell_of_a_table_with_references_has_one(name):
    for item in items(name, "table"):
        if not item["reference"]:
            continue
        means = [one for one in item["references"] if one["kind"] == "mean"]
        for at, points in cells_of(name, item).items():
            if sum(belongs(one, points) for one in means) == 1:
                continue
            pytest.fail(f"{item['table']}: the paper has no value for {at}")


def test_drawn_points_stand_on_evaluated_steps():
    """Figures 4, 9 and 3 draw a table's values into curves."""
    for name in ("table_3", "table_7"):
        steps = {
            reference["at"]["step"]
            for item in items(name, "figure")
            for reference in item["references"]
        }
        every = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
        sets = [every.get("set", {}), *(grid.get("set", {}) for grid in every["grids"])]
        (interval,) = {
            one["training"]["evaluate_every"]
            for one in sets
            if "evaluate_every" in one.get("training", {})
        }
        assert steps
        assert all(step % interval == 0 for step in steps)


# --- sharing --------------------------------------------------------------------------------------


def students(name: str, **where: Any) -> set[str]:
    document = document_of(name)
    return {
        point["run"]
        for point in document["points"]
        if accepted({"where": where}, document["settings"] | point["settings"])
    }


@pytest.mark.parametrize(
    ("part", "where", "whole"),
    [
        ("table_1", {}, "table_3"),
        ("table_2", {}, "table_3"),
        ("table_4", {"teacher.augmentation": "std"}, "table_3"),
        ("table_5", {"training.batch_size": 128, "training.lr": 1e-3, "strategy": "A"},
         "figure_5a"),
        ("table_5", {"training.batch_size": 128, "training.lr": 1e-3, "strategy": "B"},
         "table_3"),
        ("figure_5a", {"strategy": "B"}, "table_3"),
        ("figure_6a", {}, "table_4"),
        ("figure_6b", {"augmentation": "std"}, "table_4"),
        ("figure_7a", {"ipc": 5000, "strategy": ["B", "C"]}, "table_3"),
        ("figure_7a", {"ipc": 5000, "strategy": "A"}, "figure_5a"),
        ("figure_7b", {"strategy": ["B", "C"], "teacher.accuracy": [20, 50, 80]}, "figure_11"),
        ("figure_7a", {"strategy": ["B", "C"]}, "figure_11"),
        ("figure_12", {"teacher.accuracy": 90}, "figure_8"),
        ("figure_14", {"strategy": "B"}, "table_6"),
        ("figure_15", {}, "table_6"),
        ("figure_16", {}, "table_9"),
        ("table_8", {"teacher.accuracy": [None, 12, 28, 50]}, "table_7"),
        ("check_decoupling", {"loss": "decoupled", "probe": "joint"}, "table_3"),
        ("check_teacher_strength", {"strategy": ["B", "C"]}, "table_3"),
        ("check_teacher_spread", {"teacher.seed": 0}, "table_3"),
        ("check_learning_rate", {"training.lr": [1e-2, 1e-3, 1e-4], "strategy": ["A", "B"]},
         "table_5"),
    ],
)  # fmt: skip
def test_equal_settings_are_one_run(part, where, whole):
    assert students(part, **where)
    assert students(part, **where) <= students(whole)


def test_sharing_saves_runs_over_all_sweeps():
    plan = make_plan([sweep_of(name) for name in NAMES], OFFICIAL)
    apart = sum(len(plan_of(name).of_kind("student")) for name in NAMES)
    together = len(plan.of_kind("student"))
    assert together < apart
    # a teacher is made once, whatever asks for it
    assert len(plan.of_kind("teacher")) < sum(len(plan_of(n).of_kind("teacher")) for n in NAMES)
    note = header(FOLDER / "full.yaml")
    said = told(note["Runs"])
    assert said["student"] == together
    assert said["student step"] == plan.student_steps
    assert said["teacher"] == len(plan.of_kind("teacher"))
    for number in (together, plan.student_steps, len(plan.of_kind("teacher"))):
        assert f"{number:,} " in note["Runs"]
    steps = sum(plan_of(name).student_steps for name in NAMES)
    assert f"{apart:,} students, {steps:,} steps" in note["Shared"]


# --- groups and scales ----------------------------------------------------------------------------


def test_full_stands_for_every_sweep():
    loaded = load_sweeps([FOLDER / "full.yaml"])
    group = next(sweep for sweep in loaded if sweep.name == "full")
    assert set(group.include) == EXPECTED
    assert {sweep.name for sweep in loaded} == EXPECTED | set(GROUPS)


@pytest.mark.parametrize("scale", ["pilot", "walk", "digits"])
def test_a_scale_keeps_every_layout(scale):
    sweeps = load_sweeps(
        [FOLDER / f"{name}.yaml" for name in NAMES],
        scale=load_scale(FOLDER / "scales" / f"{scale}.yaml"),
    )
    assert {sweep.name for sweep in sweeps} == {f"{name}-{scale}" for name in NAMES}
    assert {"What", "Command", "Expect"} <= header(FOLDER / "scales" / f"{scale}.yaml").keys()
    for sweep, name in zip(sweeps, NAMES, strict=True):
        assert sweep.report == sweep_of(name).report
        scaled = scale_sweep(sweep, OFFICIAL)
        plan = make_plan([scaled], OFFICIAL)
        document = plan_document(scaled, plan)
        steps = document["scale"]["steps"]
        assert len(set(steps.values())) == len(steps)
        full = plan_of(name).student_steps
        assert plan.student_steps == full if scale == "digits" else plan.student_steps < full / 4


def test_only_the_weakest_teacher_of_cifar100_needs_a_least_accuracy():
    """Chance, 1%, is in its window [1, 3]; CIFAR-10's 10% teacher is the random initialisation
    (Appendix B), and Tiny-ImageNet's 0.5% is outside."""
    asked = {
        (spec.dataset.name, spec.teacher.accuracy, spec.teacher.least)
        for name in NAMES
        for spec in (unit.spec for unit in plan_of(name).units)
        if isinstance(spec, StudentSpec) and spec.teacher is not None
    }
    assert {one for one in asked if one[2] is not None} == {("cifar100", 2, 1.5)}
    assert {("cifar10", 10, None), ("tinyimagenet", 2, None), ("imagenet", 12, None)} <= asked


def test_every_point_says_when_it_is_evaluated():
    """Table 3 every 390 steps; Figure 4's copies of its runs end earlier."""
    document = document_of("table_3")
    by_horizon = {
        point["horizon"]: document["schedules"][point["schedule"]] for point in document["points"]
    }
    assert sorted(by_horizon) == [39_000, 58_500]
    early = [10, 20, 50, 100, 150, 200, 300, 500, 700, 1000, 1200, 1500]
    for horizon, steps in by_horizon.items():
        assert steps == sorted({*early, *range(390, horizon + 1, 390), *range(1950, horizon, 1950)})
    for name in NAMES:
        document = document_of(name)
        assert all("schedule" in point for point in document["points"])
