"""Our numbers beside the paper's: which cell, which difference, which verdict, what is printed."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dashboards_store import Settings, grid, top1, write_plan, write_run

from dashboards.comparisons import compare_mean
from dashboards.grids import Grid, Head, grids
from dashboards.layout import REPORT_ITEMS, Reference, TableItem
from dashboards.long_form import csv_text, long_columns, long_form, parquet_bytes
from dashboards.notes import notes
from dashboards.results import load_plan, load_results
from dashboards.table_text import latex, markdown
from dashboards.tables import Table, build_table

POINTS = grid(strategies="BC")
TABLE: dict[str, Any] = {
    "table": "t",
    "rows": ["step", "strategy"],
    "columns": ["teacher.accuracy"],
    "steps": [50, 300],
    "ratio": {"field": "strategy", "of": "C", "to": "B"},
}


def mean(strategy: str, teacher: float, step: int) -> float:
    scores = [
        top1({"strategy": strategy, "teacher.accuracy": teacher, "seed": s}, step) for s in range(5)
    ]
    return float(np.mean(scores))


def row(value: float | None, step: int = 50, strategy: str = "B", **more: Any) -> dict[str, Any]:
    at = {"step": step, "strategy": strategy, "teacher.accuracy": 30}
    return {"at": at, "value": value} | more


def gain(value: float, step: int = 50, teacher: float = 30) -> dict[str, Any]:
    return {"at": {"step": step, "teacher.accuracy": teacher}, "kind": "gain", "value": value}


def table_of(
    store: Path,
    references: list[dict[str, Any]] | None = None,
    points: list[Settings] = POINTS,
    written: list[Settings] | None = None,
    item: dict[str, Any] = TABLE,
    **plan: Any,
) -> Table:
    for point in points if written is None else written:
        write_run(store, point)
    item = item | {"references": references or []}
    write_plan(store, points, [item], **plan)
    (parsed,) = REPORT_ITEMS.validate_python([item])
    assert isinstance(parsed, TableItem)
    return build_table(load_results(str(store), load_plan(str(store), "demo")), parsed)


def second(grid: Grid, keys: tuple[str, ...], column: str) -> str:
    """The small print of one cell."""
    lines = {tuple(line[: grid.num_keys]): i for i, line in enumerate(grid.body)}
    return grid.seconds[lines[keys]][grid.header.index(column)]


def test_every_number_of_the_paper_finds_its_cell_and_only_that(tmp_path: Path) -> None:
    references = [
        row(mean(strategy, 30.0, step), step, strategy, std=0.4)
        for step in (50, 300)
        for strategy in "BC"
    ]
    table = table_of(tmp_path, [*references, gain(1.1), gain(1.2, 300), gain(1.3, 300, 60)])
    assert len(table.compared) == 7
    assert table.ratios is not None
    verdicts = [one.verdict for one in table.ratios.comparisons if one]
    assert "—" not in verdicts[:2]  # both of its cells are printed with their ±
    assert verdicts[2] == "—"
    for cell, comparison in zip(table.cells, table.comparisons, strict=True):
        step, strategy, teacher = cell.coordinates
        assert (comparison is not None) == (teacher == 30.0)
        if comparison:
            assert comparison.reference.at["step"] == step
            assert comparison.reference.at["strategy"] == strategy
            assert comparison.difference == pytest.approx(0, abs=1e-9)
            assert comparison.verdict == "inside"


def test_a_value_fixed_by_where_or_by_the_sweep_belongs_to_a_cell_too(tmp_path: Path) -> None:
    fixed = row(40.0) | {"at": row(40.0)["at"] | {"ipc": 10, "dataset": "digits"}}
    points = grid(strategies="BC", ipc=(10, "full"))
    item = TABLE | {"where": {"ipc": 10}}
    assert len(table_of(tmp_path, [fixed], points, item=item).compared) == 1
    other = row(40.0) | {"at": row(40.0)["at"] | {"ipc": "full"}}
    assert not table_of(tmp_path, [other], points, item=item).compared


def test_a_reference_of_another_metric_stays_away(tmp_path: Path) -> None:
    item = {
        "table": "t",
        "where": {"strategy": "B"},
        "metrics": {"standard": "top1_g", "ours": "top1_h"},
        "rows": ["metric"],
        "columns": ["teacher.accuracy"],
    }
    at = {"metric": "standard", "teacher.accuracy": 30}
    table = table_of(tmp_path, [{"at": at, "value": 1.0}], item=item)
    named = [c.metric for c, one in zip(table.cells, table.comparisons, strict=True) if one]
    assert named == ["standard"]


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "inside"), (-3.0, "above"), (3.0, "below")])
def test_the_verdict_is_that_of_welchs_interval(tmp_path: Path, shift: float, verdict: str) -> None:
    table = table_of(tmp_path, [row(mean("B", 30.0, 50) + shift, std=0.3)])
    (comparison,) = table.compared
    assert comparison.verdict == verdict
    assert comparison.low <= comparison.difference <= comparison.high
    assert (comparison.low > 0, comparison.high < 0) == (verdict == "above", verdict == "below")


def test_no_verdict_without_five_seeds_or_without_the_papers_std(tmp_path: Path) -> None:
    short = [p for p in POINTS if p["seed"] != 4 or p["strategy"] == "C"]
    references = [row(50.0, std=0.4), row(50.0, strategy="C"), gain(1.0)]
    table = table_of(tmp_path, references, written=short)
    assert [one.verdict for one in table.compared] == ["—", "—", "—"]
    assert all(np.isfinite(one.difference) for one in table.compared)
    assert "compared" not in " ".join(notes(table))


def test_the_small_print_names_paper_difference_and_verdict() -> None:
    both = Reference(at={}, value=91.17, std=0.5, review_value=89.67)
    text = compare_mean(both, 91.48, 0.4, 5, is_tested=True).text("top1_h")
    assert text == "paper 91.17 ± 0.5 (review copy 89.67) · +0.31 · inside"
    finer = Reference(at={}, value=35.42, std=0.5, review_value=35.42, review_std=0.48)
    assert finer.value is not None
    assert compare_mean(finer, 0, 0, 0, is_tested=True).text("top1_h") == (
        "paper 35.42 ± 0.5 (review copy ± 0.48)"
    )
    partial = Reference(at={}, review_value=44.3, status="partial")
    assert compare_mean(partial, 44.0, 0.4, 5, is_tested=True).text("top1_h") == (
        "review copy 44.30 (partly legible) · −0.30 · —"
    )


def test_the_paper_has_a_line_of_its_own_in_text_and_small_print_in_a_grid(tmp_path: Path) -> None:
    table = table_of(tmp_path, [row(mean("B", 30.0, 50) - 0.25, std=0.3, note="odd.")])
    (grid,) = grids(table)
    small = second(grid, ("50", "B"), "30%")
    assert small.startswith("paper ")
    assert small.endswith("· +0.25 · inside")
    lines = markdown(table).splitlines()
    below = lines[next(i for i, line in enumerate(lines) if line.startswith("| 50 | B")) + 1]
    assert below == f"|  | paper | {small.removeprefix('paper ')} |  |"
    assert r"{\scriptsize paper}" in latex(table)
    assert "50, B, 30%: odd." in markdown(table)
    assert "1 compared, 1 inside" in markdown(table)
    assert "one teacher; the paper's n = 5, its ± taken as sample std" in markdown(table)


def test_the_long_form_has_the_papers_numbers(tmp_path: Path) -> None:
    table = table_of(tmp_path, [row(40.0, std=0.3, review_value=41.0), gain(1.1)])
    names = long_columns(table)
    rows = list(csv.DictReader(io.StringIO(csv_text(long_form(table), names))))
    (cell,) = [r for r in rows if r["kind"] == "cell" and r["paper"]]
    assert (cell["paper"], cell["paper_std"], cell["paper_review"]) == ("40", "0.3", "41")
    difference = float(cell["mean"]) - 40
    assert float(cell["difference"]) == pytest.approx(difference)
    assert float(cell["welch_low"]) < difference < float(cell["welch_high"])
    ratios = [r for r in rows if r["kind"] == "ratio"]
    assert [r["paper"] for r in ratios] == ["1.1", "", "", ""]
    assert {ratios[0]["verdict"], ratios[0]["welch_low"]} == {"—", ""}  # C's cell is not printed


def test_without_references_no_word_of_the_paper(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    assert "paper" not in markdown(table) + latex(table)
    assert "paper" not in long_columns(table)


def test_spreads_stand_beside_the_papers(tmp_path: Path) -> None:
    """Those of cells that have both: one reference here is without a ±."""
    references = [row(25.0, std=0.4), row(50.0, step=300, std=0.9), row(25.0, strategy="C")]
    table = table_of(tmp_path, references)
    ours = [
        table.summary.std[index]
        for index, cell in enumerate(table.cells)
        if cell.coordinates in ((50.0, "B", 30.0), (300.0, "B", 30.0))
    ]
    (said,) = (text for text in notes(table) if text.startswith("Median standard deviation"))
    assert said == (
        f"Median standard deviation of 2 cells that have both: ours {np.median(ours):.2f}, "
        "the paper's 0.65."
    )


@pytest.mark.parametrize(
    ("bold", "expected"),
    [
        ("row_max", {("B", "60%"), ("C", "60%")}),
        ("column_max", {("C", "30%"), ("C", "60%")}),
        ("gain", {("Gain (C / B)", "30%"), ("Gain (C / B)", "60%")}),
    ],
)
def test_bold_follows_its_rule(tmp_path: Path, bold: str, expected: set[tuple[str, str]]) -> None:
    (grid,) = grids(table_of(tmp_path, item=TABLE | {"bold": bold}))
    for step in ("50", "300"):
        found = {
            (line[1], grid.header[column])
            for line, marks in zip(grid.body, grid.bold, strict=True)
            for column, is_bold in enumerate(marks)
            if is_bold and line[0] == step
        }
        assert found == expected


def test_a_gain_that_prints_as_one_is_not_bold_and_a_lone_cell_is_no_largest(
    tmp_path: Path,
) -> None:
    item = TABLE | {"bold": "gain", "ratio": {"field": "strategy", "of": "B", "to": "C"}}
    (grid,) = grids(table_of(tmp_path, item=item))
    assert not any(any(marks) for marks in grid.bold)
    only = [p for p in POINTS if (p["strategy"], p["teacher.accuracy"]) == ("B", 30.0)]
    (grid,) = grids(table_of(tmp_path / "2", written=only, item=TABLE | {"bold": "row_max"}))
    assert not any(any(marks) for marks in grid.bold)


def test_spanning_heads_stand_above_their_columns(tmp_path: Path) -> None:
    item = {
        "table": "t",
        "rows": ["step"],
        "columns": ["strategy", "teacher.accuracy"],
        "steps": [50, 300],
        "ratio": {"field": "strategy", "of": "C", "to": "A"},
        "heads": {"teacher.accuracy": "Teacher Top-1 Accuracy (%)", "step": "Steps"},
    }
    table = table_of(tmp_path, points=grid(strategies="AC"), item=item)
    (grid_,) = grids(table)
    assert grid_.head_lines == (
        (Head(""), Head("A"), Head("C", 2)),
        (Head(""), Head("Teacher Top-1 Accuracy (%)", 3)),
        (Head("Steps"), Head("NoTeach"), Head("30%"), Head("60%")),
    )
    assert all(sum(head.span for head in line) == 4 for line in grid_.head_lines)
    assert grid_.header == ["Steps", "A, NoTeach", "C, 30%", "C, 60%"]
    text = latex(table)
    assert r"\multicolumn{3}{c}{Teacher Top-1 Accuracy (\%)}" in text
    assert r"\cmidrule(lr){3-4}" in text


def test_a_gain_over_columns_is_a_line_below_each_row_as_in_table_8(tmp_path: Path) -> None:
    item = {
        "table": "t",
        "rows": ["step"],
        "columns": ["strategy", "teacher.accuracy"],
        "steps": [50, 300],
        "ratio": {"field": "strategy", "of": "C", "to": "A"},
        "paired": {"field": "strategy", "of": "C", "to": "A"},
    }
    table = table_of(tmp_path, [gain(1.0, teacher=60)], grid(strategies="AC"), item=item)
    main, paired = grids(table)
    assert [line[0] for line in main.body] == ["50", "Gain (C / A)", "300", "Gain (C / A)"]
    assert main.body[1][1] == ""
    assert all(main.body[1][2:])
    assert second(main, ("50",), "C, 60%") == ""
    assert main.seconds[1][3].startswith("paper 1.00")
    assert paired.header == ["Step", "C − A, 30%", "C − A, 60%"]


def test_columns_stand_in_the_order_of_where(tmp_path: Path) -> None:
    item = {
        "table": "t",
        "where": {"teacher.accuracy": [60, 30, None]},
        "rows": ["strategy"],
        "columns": ["teacher.accuracy"],
    }
    (grid_,) = grids(table_of(tmp_path, points=grid(), item=item))
    assert grid_.header[1:] == ["60%", "30%", "NoTeach"]


PILOT = {"name": "pilot", "notes": ["seeds: 0 to 4"], "steps": {"50": 10, "300": 20}}


def in_the_pilot(point: Settings) -> Settings | None:
    return {"teacher.accuracy": 20.0} if point["teacher.accuracy"] == 30.0 else None


def test_a_pilot_reads_the_steps_its_runs_have_and_prints_both(tmp_path: Path) -> None:
    references = [row(25.0, std=0.4), gain(1.1)]
    table = table_of(tmp_path, references, scale=PILOT, actual=in_the_pilot)
    (grid_,) = grids(table)
    assert grid_.header[2:] == ["30% (here 20%)", "60% (not here)"]
    assert [line[0] for line in grid_.body][::3] == ["50 (here 10)", "300 (here 20)"]
    assert grid_.body[0][2].startswith(f"{mean('B', 30.0, 10):.2f} ±")
    assert all(line[3] == "" for line in grid_.body)
    assert table.num_planned == 4
    assert table.title.endswith("(pilot)")


def test_a_pilot_shows_the_papers_numbers_without_a_test(tmp_path: Path) -> None:
    table = table_of(tmp_path, [row(25.0, std=0.4), gain(1.1)], scale=PILOT, actual=in_the_pilot)
    (grid_,) = grids(table)
    assert second(grid_, ("50 (here 10)", "B"), "30% (here 20%)") == "paper 25.00 ± 0.4"
    assert {(one.verdict, np.isnan(one.low)) for one in table.compared} == {(None, True)}
    records = [r for r in long_form(table) if r.get("paper")]
    assert {r["difference"] for r in records} == {None}
    assert records[0]["here"] == '{"step":[10.0],"teacher.accuracy":[20.0]}'
    text = " ".join(notes(table))
    assert "seeds: 0 to 4" in text
    assert "nothing is tested" in text
    assert "Welch" not in text


def test_overridden_settings_show_the_papers_numbers_without_a_test(tmp_path: Path) -> None:
    table = table_of(tmp_path, [row(25.0, std=0.4), gain(1.1)], overrides=["training.lr=0.1"])
    (grid_,) = grids(table)
    assert second(grid_, ("50", "B"), "30%") == "paper 25.00 ± 0.4"
    assert {(one.verdict, np.isnan(one.low)) for one in table.compared} == {(None, True)}
    text = " ".join(notes(table))
    assert "training.lr=0.1" in text
    assert "nothing is tested" in text
    assert "Welch" not in text


def test_equal_results_give_equal_bytes(tmp_path: Path) -> None:
    references = [row(25.0, std=0.4, note="odd"), gain(1.1)]
    rng = np.random.default_rng(0)
    texts = []
    for name in "ab":
        store = tmp_path / name
        for point in POINTS if name == "a" else POINTS[::-1]:
            write_run(store, point, order=rng)
        table = table_of(store, references, written=[])
        records, names = long_form(table), long_columns(table)
        texts.append(
            (markdown(table), latex(table), csv_text(records, names), parquet_bytes(records, names))
        )
    assert texts[0] == texts[1]
