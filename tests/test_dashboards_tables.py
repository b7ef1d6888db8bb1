"""Tables against numbers computed from the made-up scores themselves."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from dashboards_store import (
    Settings,
    digest_of,
    grid,
    read_json,
    run_name,
    top1,
    write_json,
    write_plan,
    write_run,
)
from scipy import stats

from dashboards.errors import ReportError
from dashboards.grids import grids
from dashboards.layout import REPORT_ITEMS, TableItem
from dashboards.long_form import csv_text, long_columns, long_form, parquet_bytes
from dashboards.results import Results, load_plan, load_results
from dashboards.table_text import latex, markdown
from dashboards.tables import Table, build_table

TABLE_3: dict[str, Any] = {
    "table": "table_3",
    "title": "B & C at 100% | all",
    "rows": ["step", "strategy"],
    "columns": ["teacher.accuracy"],
    "steps": [50, 300],
    "ratio": {"field": "strategy", "of": "C", "to": "B"},
    "paired": {"field": "strategy", "of": "C", "to": "B"},
}
POINTS = grid()


def results_of(store: Path, points: list[Settings], items: list[dict[str, Any]]) -> Results:
    write_plan(store, points, items)
    return load_results(str(store), load_plan(str(store), "demo"))


def table_of(
    store: Path, item: dict[str, Any], points: list[Settings] = POINTS, written: Any = None
) -> Table:
    for point in points if written is None else written:
        write_run(store, point)
    results = results_of(store, points, [item])
    (parsed,) = REPORT_ITEMS.validate_python([item])
    assert isinstance(parsed, TableItem)
    return build_table(results, parsed)


def body(table: Table, block: int = 0) -> dict[tuple[str, ...], dict[str, str]]:
    """Texts by row and column heading."""
    g = grids(table)[block]
    heads = g.header[g.num_keys :]
    return {
        tuple(line[: g.num_keys]): dict(zip(heads, line[g.num_keys :], strict=True))
        for line in g.body
    }


def expected(strategy: str, teacher: float | None, step: int, seeds: Any = range(5)) -> list[float]:
    make = [{"strategy": strategy, "teacher.accuracy": teacher, "seed": s} for s in seeds]
    return [top1(settings, step) for settings in make]


def test_cells_hold_mean_and_std_at_the_step_in_the_papers_layout(tmp_path: Path) -> None:
    text = body(table_of(tmp_path, TABLE_3))
    for step in (50, 300):
        for strategy in "BC":
            for teacher in (30.0, 60.0):
                values = expected(strategy, teacher, step)
                want = f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
                assert text[str(step), strategy][f"{teacher:g}%"] == want


def test_strategy_a_stands_in_a_column_without_a_teacher(tmp_path: Path) -> None:
    text = body(table_of(tmp_path, TABLE_3))
    row = text["50", "A"]
    assert list(row) == ["NoTeach", "30%", "60%"]
    assert row["NoTeach"].startswith(f"{np.mean(expected('A', None, 50)):.2f} ±")
    assert row["30%"] == row["60%"] == ""


def test_gain_follows_the_rows_it_compares_and_is_the_ratio_of_means(tmp_path: Path) -> None:
    text = body(table_of(tmp_path, TABLE_3))
    rows = [key for key in text if key[0] == "50"]
    assert [key[1] for key in rows] == ["A", "B", "C", "Gain (C / B)"]
    gain = np.mean(expected("C", 60.0, 50)) / np.mean(expected("B", 60.0, 50))
    assert text["50", "Gain (C / B)"]["60%"] == f"{gain:.2f}"
    assert text["50", "Gain (C / B)"]["NoTeach"] == ""


def test_paired_block_is_by_seed(tmp_path: Path) -> None:
    table = table_of(tmp_path, TABLE_3)
    assert table.differences is not None
    for index, pair in enumerate(table.differences.pairs):
        step, _, teacher = pair.at
        of, to = (expected(s, float(teacher or 0), int(step or 0)) for s in "CB")
        test = stats.ttest_rel(of, to)
        assert table.differences.summary.mean[index] == pytest.approx(np.mean(np.subtract(of, to)))
        assert table.differences.summary.p_value[index] == pytest.approx(test.pvalue)
    assert re.fullmatch(r"[+−]\d+\.\d\d \[[+−]\d.*\]", body(table, 1)["50", "C − B"]["30%"])


def test_a_strategy_without_teacher_is_compared_with_every_teacher(tmp_path: Path) -> None:
    item = TABLE_3 | {"paired": {"field": "strategy", "of": "C", "to": "A"}}
    table = table_of(tmp_path, item)
    assert table.differences is not None
    means = {
        pair.at: table.differences.summary.mean[i] for i, pair in enumerate(table.differences.pairs)
    }
    for teacher in (30.0, 60.0):
        of, to = expected("C", teacher, 50), expected("A", None, 50)
        assert means[50.0, "C − A", teacher] == pytest.approx(np.mean(np.subtract(of, to)))


def test_missing_seeds_show_as_n_and_an_empty_cell_as_empty(tmp_path: Path) -> None:
    written = [
        p for p in POINTS if (p["strategy"], p["seed"]) != ("C", 4) and p["teacher.accuracy"] != 30
    ]
    table = table_of(tmp_path, TABLE_3, written=written)
    text = body(table)
    values = expected("C", 60.0, 50, range(4))
    assert text["50", "C"]["60%"] == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} (n=4)"
    assert text["50", "C"]["30%"] == ""
    assert body(table, 1)["50", "C − B"]["60%"].endswith("(n=4)")
    assert "n is given where seeds are missing" in markdown(table)


def test_one_seed_has_no_standard_deviation(tmp_path: Path) -> None:
    points = grid(seeds=[3])
    text = body(table_of(tmp_path, TABLE_3, points))
    assert text["50", "B"]["30%"] == f"{expected('B', 30.0, 50, [3])[0]:.2f}"


def test_two_metrics_of_one_run(tmp_path: Path) -> None:
    item = {
        "table": "table_1",
        "where": {"strategy": "B"},
        "metrics": {"standard": "top1_g", "ours": "top1_h"},
        "rows": ["metric"],
        "columns": ["teacher.accuracy"],
        "ratio": {"field": "metric", "of": "ours", "to": "standard"},
    }
    text = body(table_of(tmp_path, item))
    assert [key[0] for key in text] == ["standard", "ours", "Gain (ours / standard)"]
    assert text["Gain (ours / standard)",]["30%"] == "1.11"
    assert text["ours",]["60%"].startswith(f"{np.mean(expected('B', 60.0, 300)):.2f}")


@pytest.mark.parametrize(
    ("strategies", "teachers", "said"),
    [
        ("A", (), "5 seeds (students)."),
        ("B", (30.0,), "5 seeds (students; one teacher)."),
        ("BC", (30.0, 60.0), "5 seeds (students; one teacher snapshot a cell)."),
    ],
)
def test_what_a_spread_is_over(
    tmp_path: Path, strategies: str, teachers: tuple[float, ...], said: str
) -> None:
    points = grid(strategies, teachers) if teachers else grid(strategies)
    item = {"table": "t", "rows": ["strategy"], "columns": ["teacher.accuracy"]}
    assert said in markdown(table_of(tmp_path, item, points=points))


def test_a_cell_over_two_teacher_digests_is_flagged(tmp_path: Path) -> None:
    table = table_of(tmp_path, TABLE_3)
    assert "†" not in markdown(table)
    write_run(tmp_path, POINTS[7], digest=digest_of("other"))  # B, teacher 30, seed 2
    table = table_of(tmp_path, TABLE_3, written=[])
    text = body(table)
    assert text["50", "B"]["30%"].endswith("†")
    assert "†" not in text["50", "B"]["60%"] + text["50", "C"]["30%"]
    assert text["50", "Gain (C / B)"]["30%"].endswith("†")
    assert body(table, 1)["50", "C − B"]["30%"].endswith("†")
    assert "More than one teacher snapshot" in markdown(table)
    flagged = {(r["strategy"], r["teacher_digests"]) for r in long_form(table) if r["step"] == 50}
    assert ("B", 2) in flagged


def test_strategies_on_different_snapshots_are_flagged_where_they_are_compared(
    tmp_path: Path,
) -> None:
    for point in POINTS:
        write_run(tmp_path, point, digest=digest_of("new") if point["strategy"] == "C" else None)
    table = table_of(tmp_path, TABLE_3, written=[])
    assert "†" not in body(table)["50", "C"]["30%"]
    assert body(table)["50", "Gain (C / B)"]["30%"].endswith("†")


def test_a_cell_that_would_mix_settings_is_refused_and_the_field_named(tmp_path: Path) -> None:
    points = grid(ipc=(10, "full"))
    with pytest.raises(ReportError, match="differ in ipc"):
        table_of(tmp_path, TABLE_3, points)


def test_points_that_one_run_answers_count_once(tmp_path: Path) -> None:
    points = [p | {"training.steps": n} for n in (50, 300) for p in grid("B", [30.0])]
    write_plan(tmp_path, points, [])
    path = tmp_path / "sweeps/demo/plan.json"
    plan = read_json(path)
    for point in plan["points"]:
        own = {k: v for k, v in point["settings"].items() if k != "training.steps"}
        point |= {"run": run_name(own), "horizon": point["settings"]["training.steps"]}
        write_run(tmp_path, own)
    write_json(path, plan)
    (item,) = REPORT_ITEMS.validate_python(
        [{"table": "t", "rows": ["step"], "columns": ["strategy"], "steps": [20]}]
    )
    assert isinstance(item, TableItem)
    table = build_table(load_results(str(tmp_path), load_plan(str(tmp_path), "demo")), item)
    values = expected("B", 30.0, 20)
    want = f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    assert body(table) == {("20",): {"B": want}}


def test_values_stand_in_the_order_of_where_numbers_ascending(tmp_path: Path) -> None:
    points = grid(
        strategies="B", teachers=[30.0], augmentation=("std", "none"), ipc=("full", 50, 10)
    )
    item = {
        "table": "t",
        "where": {"augmentation": ["none", "std"]},
        "rows": ["ipc"],
        "columns": ["augmentation"],
    }
    (grid_,) = grids(table_of(tmp_path, item, points))
    assert grid_.header == ["IPC", "NoAug", "StdAug"]
    assert [line[0] for line in grid_.body] == ["10", "50", "full"]


def test_a_mapping_is_a_value_like_any_other(tmp_path: Path) -> None:
    points = grid(strategies="B", teachers=[30.0], augmentation=("std", {"flip_p": 0.5}))
    text = body(table_of(tmp_path, {"table": "t", "rows": ["augmentation"]}, points))
    assert [key[0] for key in text] == ["StdAug", '{"flip_p":0.5}']


def test_long_form_says_what_the_layout_says(tmp_path: Path) -> None:
    table = table_of(tmp_path, TABLE_3)
    records, columns = long_form(table), long_columns(table)
    rows = list(csv.DictReader(io.StringIO(csv_text(records, columns))))
    stored = pq.read_table(io.BytesIO(parquet_bytes(records, columns))).to_pylist()
    assert [row["kind"] for row in stored] == [row["kind"] for row in rows]
    cell = next(r for r in stored if (r["kind"], r["strategy"], r["step"]) == ("cell", "C", 300))
    values = expected("C", 30.0, 300)
    assert cell["mean"] == pytest.approx(np.mean(values))
    assert (cell["n"], cell["n_planned"], cell["teacher_digests"]) == (5, 5, 1)
    assert cell["teacher.accuracy"] == 30.0
    ratio = next(r for r in rows if r["kind"] == "ratio")
    assert (ratio["contrast"], ratio["strategy"], ratio["std"]) == ("Gain (C / B)", "", "")


def test_latex_is_balanced_and_escaped(tmp_path: Path) -> None:
    text = latex(table_of(tmp_path, TABLE_3))
    assert r"B \& C at 100\% | all" in text
    bare = re.sub(r"\\[\\{}&%$#_]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    opened = re.findall(r"\\(begin|end)\{(\w+)\}", text)
    assert [kind for kind, _ in opened].count("begin") * 2 == len(opened)
    for tabular in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S):
        lines = re.findall(r"(.*) \\\\$", tabular[1], re.M)
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(tabular[0])}
        assert all(rule in tabular[1] for rule in (r"\toprule", r"\midrule", r"\bottomrule"))


def test_markdown_lines_have_equally_many_cells(tmp_path: Path) -> None:
    for block in markdown(table_of(tmp_path, TABLE_3)).split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) <= 1


def test_run_names_are_unique_in_the_helper() -> None:
    assert len({run_name(point) for point in POINTS}) == len(POINTS)
