"""What is asked of every shipped sweep, of whichever study."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import jsonschema
import yaml

from dashboards.claim_cells import Measured, TestCells
from dashboards.claim_layout import ClaimItem
from dashboards.claims import _rows
from dashboards.layout import METRICS
from dashboards.results import Plan as Planned
from dashboards.results import Results, RunRecord
from dashboards.store import Store, read_evaluations
from orchestrator.checks import check_unread
from orchestrator.plan import Plan, make_plan
from orchestrator.plandocument import plan_document
from orchestrator.spec import Sweep
from orchestrator.sweepschema import json_schema
from trainers.data.catalogue import OFFICIAL

_UNITS = "teacher|snapshot|soft-target file|score file|student step|student|probe"


def header(path: Path) -> dict[str, str]:
    """The lab note above a sweep: text by label."""
    note: dict[str, str] = {}
    label = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"# (.{10})(\S.*)", line)
        if match is None:
            continue
        label = match[1].strip() or label
        note[label] = f"{note[label]} {match[2]}" if label in note else match[2]
    return note


def told(text: str) -> dict[str, int]:
    """How many of each the line `Runs` of a lab note counts."""
    found = re.findall(rf"([\d,]+) ({_UNITS})s?\b", text)
    return {what: int(number.replace(",", "")) for number, what in found}


def counts(plan: Plan) -> dict[str, int]:
    """The same of a plan."""
    facts = plan.to_json()
    runs = facts["runs"]
    found = {
        "teacher": runs["teacher"],
        "snapshot": facts["snapshots"],
        "soft-target file": runs["targets"],
        "score file": runs["scores"],
        "student": runs["student"],
        "probe": runs["probe"],
        "student step": facts["steps"]["planned"],
    }
    return {what: number for what, number in found.items() if number}


def assert_sound(sweep: Sweep, name: str) -> None:
    """It is called so, says what it is, and no setting of it is read by nobody."""
    assert sweep.name == name
    assert sweep.title
    assert sweep.description
    assert sweep.report
    assert check_unread(sweep.grids) == []


def assert_editors_accept(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), json_schema())


def unmeasured(sweeps: Sequence[Sweep]) -> dict[str, Results]:
    """The plans of sweeps, groups left out, with no run done; by sweep."""
    plan = make_plan(sweeps, OFFICIAL)
    return {
        sweep.name: no_results(Planned.model_validate(plan_document(sweep, plan)))
        for sweep in sweeps
        if not sweep.include
    }


def no_results(plan: Planned) -> Results:
    records = {n: RunRecord(name=n, state="absent", result={}) for n in plan.run_names}
    nothing = read_evaluations(Store.open("."), [], METRICS, [])
    return Results(plan=plan, evaluations=nothing, runs=records, snapshots=(), problems=())


def assert_planned(claims: Iterable[ClaimItem], sweeps: dict[str, Results]) -> None:
    """Every cell of every claim has its five seeds."""
    for item in claims:
        for test in item.tests:
            results = sweeps[test.sweep or ""]
            cells = TestCells(test, results, Measured(results.evaluations, ()))
            combinations = list(cells.combinations())
            assert combinations, item.name
            for at in combinations:
                for cell in itertools.chain.from_iterable(_rows(test, cells, at)):
                    assert cell.planned == {0, 1, 2, 3, 4}, (item.name, cell.label)
