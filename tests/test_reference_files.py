"""CSV files with the paper's numbers, as people and programs get them wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_files import problems_of, sweep_of

from dashboards.layout import FigureItem, TableItem
from orchestrator.errors import Problem

AXES = """\
grids:
  - axes:
      strategy: [B, C]
      teacher.accuracy: [30, 60]
      seed: [0, 1]
"""
BASE = """\
name: small
set:
  dataset: cifar10
  training: {steps: 400}
"""
REPORT = """\
report:
  - table: t
    rows: [step, strategy]
    columns: [teacher.accuracy]
    steps: [100, 400]
    ratio: {field: strategy, of: C, to: B}
    reference: numbers.csv
"""
HEADER = "step,strategy,teacher.accuracy,kind,value,std,review_value,review_std,status,note\n"


def table_of(folder: Path, text: str | bytes, report: str = REPORT) -> TableItem | FigureItem:
    write(folder, text)
    item = sweep_of(folder, AXES + report, BASE).report[-1]
    assert isinstance(item, TableItem | FigureItem)
    return item


def write(folder: Path, text: str | bytes) -> None:
    content = text if isinstance(text, bytes) else text.encode()
    (folder / "numbers.csv").write_bytes(content)


def refused(folder: Path, text: str | bytes, report: str = REPORT) -> list[Problem]:
    write(folder, text)
    return problems_of(folder, AXES + report, BASE)


def test_rows_become_references_with_checked_coordinates(tmp_path: Path) -> None:
    item = table_of(
        tmp_path,
        HEADER
        + "100,B,30,mean,35.96,0.4,,,printed,\n"
        + '400,C,60.0,,,,44.3,,partial,"read, off a drawing"\n'
        + "100,,30,gain,1.08,,,,,\n",
    )
    first, second, third = item.references
    assert first.at == {"step": 100, "strategy": "B", "teacher.accuracy": 30.0}
    assert (first.kind, first.value, first.std, first.status) == ("mean", 35.96, 0.4, "printed")
    assert (second.value, second.review_value, second.status) == (None, 44.3, "partial")
    assert second.note == "read, off a drawing"
    assert third.at == {"step": 100, "teacher.accuracy": 30.0}


def test_short_names_marks_and_blank_lines_are_read(tmp_path: Path) -> None:
    report = REPORT.replace("rows: [step, strategy]", "rows: [step, strategy, lr]")
    text = "\ufeffstep,strategy,teacher.accuracy,lr,value\r\n100,B,30,1e-3,40\r\n\r\n"
    (reference,) = table_of(tmp_path, text.encode(), report).references
    assert reference.at["training.lr"] == 0.001


@pytest.mark.parametrize(
    ("row", "key", "part", "like"),
    [
        ("100,B,30,mean,35.9x,0.4,,,,", "value", "'35.9x', expected a number", None),
        ("100,B,30,mean,nan,0.4,,,,", "value", "expected a number", None),
        ("100,B,30,mean,1e99,,,,,", "value", "expected a number", None),
        ("100,B,30,mean,40,-0.4,,,,", "std", "greater than or equal to 0", None),
        ("100,B,30,mean,,0.4,41,,,", "(row)", "has a std without a value", None),
        ("100,B,30,mean,,,,,,", "(row)", "neither a value nor a review_value", None),
        ("100,B,30,median,40,,,,,", "kind", "'mean' or 'gain'", None),
        ("100,B,30,mean,40,,,,blurred,", "status", "'printed' or 'partial'", None),
        ("0,B,30,mean,40,,,,,", "step", "whole number of at least 1", None),
        ("1e2,B,30,mean,40,,,,,", "step", "whole number of at least 1", None),
        ("100,D,30,mean,40,,,,,", "strategy", "is 'D', expected A, B or C", None),
        ("100,B,300,mean,40,,,,,", "teacher.accuracy", "at most 100", None),
        ("100,B,{,mean,40,,,,,", "teacher.accuracy", "not a YAML value", None),
        ("100,C,30,gain,1.1,,,,,", "strategy", "leave it empty", None),
        ("100,B,30,mean,40", "(row)", "has 5 cells", None),
        ("100,B,30,mean,40,,,,,,,", "(row)", "has 12 cells", None),
    ],
)
def test_a_bad_row_is_named_with_its_line(
    tmp_path: Path, row: str, key: str, part: str, like: str | None
) -> None:
    (problem,) = refused(tmp_path, f"{HEADER}100,C,30,mean,40,,,,,\n{row}\n")
    assert problem.file == str(tmp_path / "numbers.csv")
    assert (problem.key, problem.line, problem.nearest) == (key, 3, like)
    assert part in problem.message


def test_all_bad_rows_are_named_at_once(tmp_path: Path) -> None:
    problems = refused(tmp_path, HEADER + "x,B,30,mean,40,,,,,\n100,B,30,mean,y,,,,,\n")
    assert [problem.line for problem in problems] == [2, 3]


@pytest.mark.parametrize(
    ("header", "key", "part", "like"),
    [
        ("step,stratgy,value", "stratgy", "unknown column", "strategy"),
        ("step,valeu,value", "valeu", "unknown column", "value"),
        ("step,,value", "(column)", "unknown column", None),
        ("step,seed,value", "seed", "cannot tell cells apart", None),
        ("step,lr,training.lr,value", "training.lr", "two columns", None),
        ("step,strategy", "(file)", "has no column `value`", None),
    ],
)
def test_a_bad_header_is_named(
    tmp_path: Path, header: str, key: str, part: str, like: str | None
) -> None:
    (problem,) = refused(tmp_path, f"{header}\n")
    assert (problem.key, problem.line, problem.nearest) == (key, 1, like)
    assert part in problem.message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"step,value\n\xff\xfe", "is not UTF-8"),
        (b'step,value\n"100,40\n', "is not CSV"),
        (b'step,value\n100,"4"0\n', "is not CSV"),
    ],
)
def test_a_file_that_is_no_csv_is_refused(tmp_path: Path, content: bytes, part: str) -> None:
    (problem,) = refused(tmp_path, content)
    assert part in problem.message


def test_a_missing_file_is_named_where_the_item_names_it(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, AXES + REPORT, BASE)
    assert problem.key == "report[0].reference"
    assert "there is no file" in problem.message
    assert "relative to the sweep file" in problem.remedy


def test_a_folder_instead_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "numbers.csv").mkdir()
    (problem,) = problems_of(tmp_path, AXES + REPORT, BASE)
    assert "cannot be read" in problem.message


def test_references_are_the_planners_to_write(tmp_path: Path) -> None:
    report = REPORT.replace("reference: numbers.csv", "references: [{at: {step: 100}, value: 1}]")
    (problem,) = problems_of(tmp_path, AXES + report, BASE)
    assert problem.key == "report[0].references"


@pytest.mark.parametrize(
    ("rows", "line", "part"),
    [
        ("100,B,30,mean,40,,,,,\n100,B,90,mean,40,,,,,", 3, "fits no cell of t"),
        ("200,B,30,mean,40,,,,,", 2, "fits no cell of t"),
        ("100,B,,mean,40,,,,,", 2, "fits no cell of t"),
        ("400,,90,gain,1.1,,,,,", 2, "fits no cell of t"),
        ("100,B,30,mean,40,,,,,\n100,B,30.0,mean,41,,,,,", 3, "cell of line 2"),
        ("100,,30,gain,1.1,,,,,\n100,,30,gain,1.2,,,,,", 3, "cell of line 2"),
    ],
)
def test_each_number_has_one_cell_and_each_cell_one_number(
    tmp_path: Path, rows: str, line: int, part: str
) -> None:
    (problem,) = refused(tmp_path, f"{HEADER}{rows}\n")
    assert problem.line == line
    assert part in problem.message


def test_a_number_for_several_cells_is_refused(tmp_path: Path) -> None:
    problems = refused(tmp_path, "strategy,teacher.accuracy,value\nB,30,40\n")
    assert "fits 2 cells" in problems[0].message


def test_two_tables_may_share_a_file_by_their_where(tmp_path: Path) -> None:
    one = REPORT.replace("table: t\n", "table: one\n    where: {teacher.accuracy: 30}\n")
    other = REPORT.replace("table: t\n", "table: two\n    where: {teacher.accuracy: 60}\n")
    report = one + other.removeprefix("report:\n")
    rows = "100,B,30,mean,40,,,,,\n100,B,60,mean,41,,,,,\n"
    assert len(table_of(tmp_path, HEADER + rows, report).references) == 2
    (problem,) = refused(tmp_path, HEADER + rows + "100,B,90,mean,41,,,,,\n", report)
    assert "fits no cell of one, two" in problem.message


def test_a_figure_takes_a_tables_means_and_leaves_its_gains(tmp_path: Path) -> None:
    report = REPORT + (
        "  - figure: f\n    where: {strategy: C}\n    hue: strategy\n    panel: teacher.accuracy\n"
        "    reference: numbers.csv\n"
    )
    rows = "100,B,30,mean,40,,,,,\n100,C,30,mean,41,,,,,\n100,,30,gain,1.1,,,,,\n"
    item = table_of(tmp_path, HEADER + rows, report)
    assert isinstance(item, FigureItem)
    assert [reference.kind for reference in item.references] == ["mean", "mean"]


def test_a_figures_own_file_is_checked_too(tmp_path: Path) -> None:
    report = (
        "report:\n  - figure: f\n    x: teacher.accuracy\n    hue: strategy\n    steps: [100]\n"
        "    reference: numbers.csv\n"
    )
    rows = "100,B,30,mean,40,,,,,\n"
    assert len(table_of(tmp_path, HEADER + rows, report).references) == 1
    (problem,) = refused(tmp_path, HEADER + rows + "100,B,90,mean,40,,,,,\n", report)
    assert "fits no cell of f" in problem.message
