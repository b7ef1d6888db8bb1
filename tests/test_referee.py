"""Students beside their teachers, from numbers that are known beforehand."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from dashboards_store import (
    TEACHER,
    grid,
    read_json,
    write_json,
    write_plan,
    write_run,
    write_snapshot,
)

from dashboards.groups import load
from dashboards.referee import teacher_rows, teacher_table
from dashboards.report import write_report

TABLE: list[dict[str, Any]] = [
    {"table": "table", "rows": ["strategy"], "columns": ["teacher.accuracy"]}
]


def known(settings: Mapping[str, Any], step: int) -> float:
    """h at the end: under a 30% teacher B 32, 33, 34 and C two above; under 60% B 57, 58, 59 and C
    one below, but for seed 2, where it is one above."""
    if step < 300 or settings["strategy"] == "A":
        return 10.0
    seed, weak = int(settings["seed"]), settings["teacher.accuracy"] == 30.0
    value = (32.0 if weak else 57.0) + seed
    if settings["strategy"] == "B":
        return value
    return value + (2.0 if weak or seed == 2 else -1.0) - (0.0 if weak or seed != 2 else 1.0)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    points = [
        point | {"target_view": "plain" if point["strategy"] == "C" else None}
        for point in grid(seeds=range(3))
    ]
    write_plan(tmp_path, points, TABLE)
    for point in points:
        write_run(tmp_path, point, score=known)
    for preset in (30.0, 60.0):
        write_snapshot(tmp_path, preset)  # measured: a quarter of a point above
    return tmp_path


def test_rows(store: Path) -> None:
    weak, strong = teacher_rows(load(str(store), "demo").results)
    assert (weak.preset, weak.accuracy, weak.teachers, weak.runs) == (30.0, 30.25, 1, 6)
    assert weak.gaps["h_B"] == pytest.approx(33 - 30.25)
    assert weak.gaps["h_C"] == pytest.approx(35 - 30.25)
    assert weak.differences == (2.0, 2.0, 2.0)
    assert strong.gaps["h_B"] == pytest.approx(58 - 60.25)
    assert strong.differences == (-1.0, -1.0, 1.0)
    assert weak.spreads["B"] == strong.spreads["B"] == pytest.approx(1.0)
    assert strong.cells[-4:-2] == ("−0.33", "1 / 2")


def test_unfinished_students_and_unknown_teachers_do_not_count(tmp_path: Path) -> None:
    points = grid(strategies=("B", "C"), seeds=range(2))
    write_plan(tmp_path, points, TABLE)
    for point in points:
        write_run(tmp_path, point, complete=point["seed"] == 0, score=known)
    write_snapshot(tmp_path, 30.0)  # that of 60% is not in this store
    (row,) = teacher_rows(load(str(tmp_path), "demo").results)
    assert (row.preset, row.runs, row.differences) == (30.0, 2, (2.0,))
    assert row.cells[-2:] == ("", "")  # one seed has no spread


def test_several_teachers_of_one_accuracy(tmp_path: Path) -> None:
    """A row may rest on several; spreads are within a teacher, never between them."""
    points = grid(strategies=("B",), teachers=(30.0,), seeds=range(2), **{"teacher.seed": (0, 1)})
    write_plan(tmp_path, points, TABLE[:0])
    digests = {0: "a" * 64, 1: "b" * 64}

    def shifted(settings: Mapping[str, Any], step: int) -> float:
        return known(settings, step) + 10.0 * int(settings["teacher.seed"])

    for point in points:
        write_run(tmp_path, point, digest=digests[point["teacher.seed"]], score=shifted)
    write_snapshot(tmp_path, 30.0, digests[0])
    write_snapshot(tmp_path, 31.0, digests[1])
    (row,) = teacher_rows(load(str(tmp_path), "demo").results)
    assert (row.teachers, row.accuracy) == (2, 30.75)
    assert row.spreads["B"] == pytest.approx(0.5**0.5)
    assert row.cells[1] == "30.75 (2 teachers)"


def test_a_teacher_of_another_sweep_with_the_same_weights_is_not_asked(tmp_path: Path) -> None:
    """An untrained net has one accuracy a data set, and one digest."""
    points = grid(strategies=("B",), teachers=(30.0,), seeds=(0,))
    write_plan(tmp_path, points, TABLE[:0])
    path = tmp_path / "sweeps/demo/plan.json"
    plan = read_json(path)
    plan["points"][0]["snapshot"] = f"{TEACHER}/acc-30"
    write_json(path, plan)
    write_run(tmp_path, points[0], score=known)
    write_snapshot(tmp_path, 30.0)
    shutil.copytree(tmp_path / "runs" / TEACHER, tmp_path / "runs/teacher-zz")
    other = tmp_path / "runs/teacher-zz/snapshots/acc-30.json"
    write_json(other, read_json(other) | {"accuracy": 33.0})
    results = load(str(tmp_path), "demo").results
    assert [snapshot.run for snapshot in results.snapshots] == [TEACHER]
    assert teacher_rows(results)[0].accuracy == 30.25


def test_columns_for_what_varies(tmp_path: Path) -> None:
    points = grid(strategies=("B", "C"), teachers=(30.0,), seeds=(0,), ipc=("full", 100, 10))
    write_plan(tmp_path, points, TABLE[:0])
    for point in points:
        write_run(tmp_path, point, score=known)
    write_snapshot(tmp_path, 30.0)
    results = load(str(tmp_path), "demo").results
    shown = teacher_table(results)
    assert shown is not None
    assert (shown.heads[:2], shown.num_keys) == (("IPC", "Teacher"), 2)
    assert [row.at for row in teacher_rows(results)] == [("10",), ("100",), ("full",)]


def test_no_column_for_what_no_row_has(tmp_path: Path) -> None:
    """A sweep of B alone says nothing of C, and a single seed has no spread."""
    points = grid(strategies=("B",), teachers=(30.0,), seeds=(0,))
    write_plan(tmp_path, points, TABLE[:0])
    write_run(tmp_path, points[0], score=known)
    write_snapshot(tmp_path, 30.0)
    shown = teacher_table(load(str(tmp_path), "demo").results)
    assert shown is not None
    assert shown.heads == ("Teacher", "its Top-1", "Runs", "g − teacher, B", "h − teacher, B")
    assert [len(row) for row in shown.rows] == [5]


def test_students_of_conventional_distillation_have_no_projection_head(tmp_path: Path) -> None:
    points = grid(strategies=("B",), teachers=(30.0,), seeds=(0,), loss=("kd",))
    write_plan(tmp_path, points, TABLE[:0])
    write_run(tmp_path, points[0], score=known)
    write_snapshot(tmp_path, 30.0)
    shown = teacher_table(load(str(tmp_path), "demo").results)
    assert shown is not None
    assert shown.heads[-1] == "h − teacher, B"
    assert "g − teacher, B" not in shown.heads


def test_a_column_for_revision_has_a_row_without(tmp_path: Path) -> None:
    points = grid(
        strategies=("B",), teachers=(30.0,), seeds=(0,), **{"revision.eta": (0.8, None, 0.2)}
    )
    write_plan(tmp_path, points, TABLE[:0])
    for point in points:
        write_run(tmp_path, point, score=known)
    write_snapshot(tmp_path, 30.0)
    rows = teacher_rows(load(str(tmp_path), "demo").results)
    assert [row.at for row in rows] == [("no LR",), ("0.2",), ("0.8",)]


def test_it_stands_in_the_report(store: Path) -> None:
    report = write_report(store, "demo")
    line = "| 60% | 60.25 | 6 |"
    assert line in report.teachers
    assert line in Path(report.markdown).read_text()
    page = Path(report.index).read_text()
    assert 'id="sweep--demo--teachers"' in page
    assert re.search(r"<td>−0\.33</td>\s*<td>1 / 2</td>", page)


def test_a_sweep_of_strategy_a_has_none(tmp_path: Path) -> None:
    points = grid(strategies=("A",), seeds=range(2))
    write_plan(tmp_path, points, TABLE[:0])
    for point in points:
        write_run(tmp_path, point)
    report = write_report(tmp_path, "demo")
    assert report.teachers == ""
    assert "beside their teachers" not in Path(report.index).read_text()
