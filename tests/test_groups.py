"""Groups: sweep files that stand for others, each counted once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator import cli, paths
from orchestrator.errors import Problem, SpecError
from orchestrator.plan import make_plan
from orchestrator.plandocument import plan_document
from orchestrator.publishing import track_results
from orchestrator.scaling import scale_sweep
from orchestrator.spec import load_sweeps
from orchestrator.store import Store
from orchestrator.tracking import SyncReport
from tests.driving import GRID, TINY, digits_store, drive_here, tiny_plan
from tests.sweep_files import BASE, write
from trainers.data.catalogue import OFFICIAL

ONE = BASE.replace("small", "one") + "grids: [{axes: {seed: [0, 1]}}]\n"
TWO = BASE.replace("small", "two") + "grids: [{axes: {seed: [1, 2], ipc: [10, full]}}]\n"
ALL = "name: all\ntitle: Both\ninclude: [one.yaml, two.yaml]\n"
CLAIM = """\
report:
  - claim: seeds
    source: nowhere
    statement: More images give more.
    tests:
      - {kind: greater, sweep: two, of: {ipc: full}, to: {ipc: 10}, steps: [123]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, ONE, "one.yaml")
    write(tmp_path, TWO, "two.yaml")
    write(tmp_path, ALL, "all.yaml")
    return tmp_path


def problems(folder: Path, text: str) -> list[Problem]:
    with pytest.raises(SpecError) as caught:
        load_sweeps([write(folder, text, "bad.yaml")])
    return caught.value.problems


def test_a_group_gives_its_members_and_then_itself(folder: Path) -> None:
    sweeps = load_sweeps([folder / "all.yaml"])
    assert [sweep.name for sweep in sweeps] == ["one", "two", "all"]
    assert [sweep.include for sweep in sweeps] == [(), (), ("one", "two")]
    assert sweeps[2].points == ()
    assert sweeps[2].title == "Both"


def test_every_sweep_counts_once_however_often_it_is_reached(folder: Path) -> None:
    write(folder, "name: outer\ninclude: [all.yaml, sub/inner.yaml, one.yaml]\n", "outer.yaml")
    (folder / "sub").mkdir()
    write(folder / "sub", "name: inner\ninclude: [../two.yaml]\n", "inner.yaml")
    files = [*sorted(folder.glob("*.yaml")), folder / "one.yaml"]
    sweeps = {sweep.name: sweep for sweep in load_sweeps(files)}
    assert len(load_sweeps(files)) == len(sweeps) == 5
    assert sweeps["outer"].include == ("one", "two")
    assert sweeps["inner"].include == ("two",)
    alone = make_plan(load_sweeps([folder / "one.yaml", folder / "two.yaml"]), OFFICIAL)
    plan = make_plan(list(sweeps.values()), OFFICIAL)
    assert sorted(plan.points) == sorted(alone.points)
    assert plan.to_json() == {**alone.to_json(), "units": plan.to_json()["units"]}
    assert {unit.name for unit in plan.units} == {unit.name for unit in alone.units}
    assert plan.num_shared == 2  # the teacher, and seed 1 on all images


def test_the_document_of_a_group(folder: Path) -> None:
    sweeps = load_sweeps([write(folder, ALL + CLAIM, "all.yaml")])
    document = plan_document(sweeps[2], make_plan(sweeps, OFFICIAL))
    claims = document.pop("report")
    assert document == {
        "sweep": "all", "title": "Both", "description": "", "semantics": 1, "scale": None,
        "include": ["one", "two"], "points": [], "fields": [], "settings": {},
    }  # fmt: skip
    assert [claim["claim"] for claim in claims] == ["seeds"]


def test_what_a_group_claims_is_evaluated(folder: Path) -> None:
    plan = make_plan(load_sweeps([write(folder, ALL + CLAIM, "all.yaml")]), OFFICIAL)
    asked = {unit.label: unit.request.evaluate_at for unit in plan.of_kind("student")}
    assert asked["B t60 std full seed2"] == (123, 400)
    assert asked["B t60 std full seed0"] == (400,)  # of the sweep that nothing is claimed about


def test_a_pilot_of_a_group_claims_about_its_pilots(folder: Path) -> None:
    scale = "scale: {name: pilot, max_steps: 40}\n"
    loaded = load_sweeps([write(folder, ALL + scale + CLAIM, "all.yaml")])
    sweeps = [scale_sweep(sweep, OFFICIAL) for sweep in loaded]
    assert sweeps[2].include == ("one-pilot", "two-pilot")
    plan = make_plan(sweeps, OFFICIAL)
    group, two = (plan_document(sweep, plan) for sweep in (sweeps[2], sweeps[1]))
    assert group["sweep"] == "all-pilot"
    assert group["scale"] == {"name": "pilot", "notes": [], "steps": {}}
    assert group["report"][0]["tests"][0]["sweep"] == "two-pilot"
    # 123 is no step of the sweep itself: it goes in proportion, and moves no other step.
    assert two["scale"]["steps"] == {"123": 12, "400": 40}
    asked = {unit.label: unit.request.evaluate_at for unit in plan.of_kind("student")}
    assert asked["B t60 std full seed2"] == (12, 40)


@pytest.mark.parametrize(
    ("text", "key", "line", "message", "remedy"),
    [
        ("name: bad\ninclude: [one.yaml,\n  tow.yaml]\n", "include[1]", 3, "no file",
         "nearest file: two.yaml"),
        ("name: bad\ninclude: [one.yaml, tow.yaml]\n" + CLAIM, "include[1]", 2, "no file",
         "nearest file: two.yaml"),  # and nothing about the claims that need it
        ("name: bad\ninclude: [one.yaml, ./one.yaml]\n", "include[1]", 2, "include[0] names too",
         "keep one"),
        ("name: bad\ninclude: [bad.yaml]\n", "include[0]", 2, "bad.yaml includes bad.yaml",
         "leave"),
        ("name: bad\nset: {}\ninclude: [one.yaml]\n", "set", 2, "does not belong", "sweep files"),
        ("name: bad\ninclude: [one.yaml]\ngrids: []\n", "grids", 3, "does not belong", "include"),
        ("name: bad\ninclude: []\n", "include", 2, "at least 1", ""),
        ("name: bad\ninclude: one.yaml\n", "include", 2, "valid list", ""),
        ("name: bad\ninclude: [one.yaml]\ntitel: x\n", "titel", 3, "unknown key", "title"),
        ("include: [one.yaml]\n", "(file)", None, "has no key 'name'", "name"),
        ("name: bad\ninclude: [one.yaml]\nreport: [{table: t, rows: [seed]}]\n", "report[0]", 3,
         "", ""),
        ("name: bad\ninclude: [one.yaml]\nreport: [{table: t, rows: [ipc]}]\n", "report[0]", 3,
         "claims alone", "into the sweep"),
        ("name: bad\ninclude: [one.yaml]\nscale: 3\n", "scale", 3, "expected a file", "give"),
        ("name: bad\ninclude: [one.yaml]\nscale: no.yaml\n", "scale", 3, "there is no file", ""),
        ("name: bad\ninclude: [one.yaml]\n" + CLAIM.replace("two", "tow"),
         "report[0].tests[0].sweep", 8, "includes no sweep 'tow'", "one"),
        ("name: bad\ninclude: [two.yaml]\n" + CLAIM.replace("kind: greater", "kind: grater"),
         "report[0].tests[0]", 8, "'grater'", "greater"),
        ("name: bad\ninclude: [one.yaml]\n" + CLAIM.replace("sweep: two, ", ""),
         "report[0].tests[0]", 8, "names no sweep", "add"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_group(
    folder: Path, text: str, key: str, line: int | None, message: str, remedy: str
) -> None:
    (problem,) = problems(folder, text)
    assert problem.file.endswith("bad.yaml")
    assert (problem.key, problem.line) == (key, line)
    assert message in problem.message
    assert remedy in f"{problem.remedy} {problem.nearest}"


def test_a_longer_cycle(folder: Path) -> None:
    write(folder, "name: b\ninclude: [one.yaml, bad.yaml]\n", "b.yaml")
    (problem,) = problems(folder, "name: bad\ninclude: [b.yaml]\n")
    assert problem.file.endswith("/b.yaml")
    assert "bad.yaml includes b.yaml includes bad.yaml" in problem.message


def test_problems_of_members_come_with_their_files(folder: Path) -> None:
    write(folder, ONE + "straegy: A\n", "one.yaml")
    found = problems(folder, "name: bad\ninclude: [one.yaml, all.yaml]\n")
    assert [(Path(problem.file).name, problem.key) for problem in found] == [
        ("one.yaml", "straegy")
    ]


# -- on a store ------------------------------------------------------------------------------------


@pytest.fixture
def planned(tmp_path: Path) -> Store:
    """A store with one sweep that is done, one that is not, and a group of both."""
    store = digits_store(tmp_path / "store")
    one = TINY.replace("tiny", "one").replace("  teacher: {max_steps: 300}\n", "")
    one += "grids: [{axes: {strategy: [A], seed: [0]}}]\n"
    drive_here(tiny_plan(tmp_path, text=one), store)
    write(tmp_path, one, "one.yaml")
    write(tmp_path, TINY.replace("tiny", "two") + GRID.replace("[0]", "[0, 1]"), "two.yaml")
    sweeps = load_sweeps([write(tmp_path, ALL, "all.yaml")])
    plan = make_plan(sweeps, OFFICIAL)
    for sweep in sweeps:
        store.write_json(paths.plan_json(sweep.name), plan_document(sweep, plan))
    return store


def test_the_status_of_a_group_is_that_of_its_members(planned: Store) -> None:
    shown = CliRunner().invoke(cli.app, ["status", "--store", str(planned.root)]).output
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines()[-3:]}
    assert rows["one"][:2] == ["1", "1"]
    assert rows["all"] == rows["two"]  # the one of them is among the others
    assert rows["all"][:2] == ["11", "1"]


def test_the_report_of_a_group(planned: Store) -> None:
    ended = CliRunner().invoke(cli.app, ["report", "all", "--store", str(planned.root)])
    assert ended.exit_code == 0, ended.output
    assert planned.exists("sweeps/all/report/index.html")
    assert not planned.exists("sweeps/one/report/index.html")


def test_a_group_is_no_experiment(planned: Store) -> None:
    class Seen:
        def __init__(self) -> None:
            self.names: list[str] = []

        def sync(self, sweeps: list[str], force: bool) -> Any:
            self.names = list(sweeps)
            return SyncReport(projected=0, unchanged=(), repaired=())

        def aggregates(self, sweep: str, found: Any, *, force: bool) -> None:
            assert sweep != "all"

    seen: Any = Seen()
    track_results(seen, planned, ["one", "all", "two"])
    assert seen.names == ["one", "two"]
    planned.write_bytes(paths.plan_json("two"), b"garbage")  # costs the others nothing
    found = track_results(seen, planned, ["one", "all", "two"])
    assert seen.names == ["one"]
    assert [error.rel for error in found.damaged] == [paths.plan_json("two")]


# -- plan, sweep by sweep --------------------------------------------------------------------------


def test_a_row_a_sweep(folder: Path) -> None:
    arguments = ["plan", str(folder / "all.yaml"), "--store", str(folder / "store")]
    shown = CliRunner().invoke(cli.app, arguments).output
    lines = [line.split() for line in shown.splitlines()]
    rows = {line[0]: line[1:] for line in lines if line}
    #                     cells points runs shared steps snapshots hours most shared with
    assert rows["one"] == ["1", "2", "3", "2", "800", "1", "?", "two", "(2)"]
    assert rows["two"] == ["2", "4", "5", "2", "1,600", "1", "?", "one", "(2)"]
    assert rows["sum"] == ["3", "6", "8", "2,400", "2", "?"]
    assert rows["after"] == ["sharing", "3", "6", "6", "2", "2,000", "1", "?"]


def test_the_same_for_scripts(folder: Path) -> None:
    arguments = ["plan", str(folder / "all.yaml"), "--json", "--store", str(folder / "store")]
    found = json.loads(CliRunner().invoke(cli.app, arguments).output)
    assert [row["sweep"] for row in found["sweeps"]] == ["one", "two"]
    assert found["sweeps"][1] == {
        "sweep": "two", "cells": 2, "points": 4, "points_without_run": 0, "runs": 5, "shared": 2,
        "shared_with": {"one": 2}, "steps": 1600, "snapshots": 1, "gpu_hours": 0.0,
        "runs_of_unknown_pace": 5,
    }  # fmt: skip
    assert found["total"]["steps"] == found["steps"]["planned"] == 2000
    assert found["total"]["before_sharing"]["steps"] == 2400


def test_one_sweep_has_no_rows(folder: Path) -> None:
    arguments = ["plan", str(folder / "one.yaml"), "--store", str(folder / "store")]
    assert "after sharing" not in CliRunner().invoke(cli.app, arguments).output
