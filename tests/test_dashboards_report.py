"""The report as a whole: files, their equality under everything that must not matter, links."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dashboards_store import (
    STEPS,
    digest_of,
    grid,
    run_name,
    top1,
    write_plan,
    write_run,
    write_snapshot,
)

from dashboards.errors import ReportError
from dashboards.report import ReportText, report_text, write_report

ITEMS: list[dict[str, Any]] = [
    {
        "table": "table_3",
        "title": "<b>Strategies</b>",
        "rows": ["step", "strategy"],
        "columns": ["teacher.accuracy"],
        "steps": [50, 300],
        "ratio": {"field": "strategy", "of": "C", "to": "B"},
        "paired": {"field": "strategy", "of": "C", "to": "B"},
    },
    {"figure": "figure_4", "hue": "strategy", "style": "teacher.accuracy", "smooth": "lowess"},
]
POINTS = grid()


def build(store: Path, seed: int | None = None, longer: bool = False) -> Path:
    """A store; seed: shuffles the order of everything written. longer: runs beyond the horizon."""
    rng = None if seed is None else np.random.default_rng(seed)
    order = range(len(POINTS)) if rng is None else rng.permutation(len(POINTS))
    write_plan(store, POINTS, ITEMS)
    for index in order:
        write_run(store, POINTS[index], steps=(*STEPS, 400) if longer else STEPS, order=rng)
    for preset in (60.0, 30.0):
        write_snapshot(store, preset)
    return store


def tables(root: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(root, "tables").iterdir())}


def test_every_file_is_there(tmp_path: Path) -> None:
    paths = write_report(build(tmp_path), "demo")
    root = Path(paths.root)
    assert root == tmp_path / "sweeps/demo/report"
    assert set(tables(paths.root)) == {"runs.csv", "teachers.csv"} | {
        f"table_3.{kind}" for kind in ("md", "csv", "tex", "parquet")
    }
    assert [title for title, _ in paths.tables] == ["<b>Strategies</b>"]
    assert Path(paths.figures[0]).is_file()
    assert paths.problems == []
    assert not [p for p in root.rglob("*") if p.suffix == ".tmp"]


def test_tables_are_equal_byte_for_byte_whatever_the_order_and_the_place(tmp_path: Path) -> None:
    first = tables(write_report(build(tmp_path / "a"), "demo").root)
    for seed in (1, 2):
        assert tables(write_report(build(tmp_path / f"b{seed}", seed), "demo").root) == first
    shutil.copytree(tmp_path / "a", tmp_path / "laptop/copy")
    assert tables(write_report(tmp_path / "laptop/copy", "demo").root) == first
    # another sweep extended the runs: this one's tables do not change
    assert tables(write_report(build(tmp_path / "c", longer=True), "demo").root) == first


def test_tables_hold_neither_paths_nor_hosts_nor_times(tmp_path: Path) -> None:
    paths = write_report(build(tmp_path), "demo")
    for name, content in tables(paths.root).items():
        for forbidden in (str(tmp_path).encode(), b"secret-host", b"1760000000", b"images_per_s"):
            assert forbidden not in content, name
    about = json.loads(Path(paths.provenance).read_text())
    (student, teacher) = about["environments"]
    assert student["environment"]["hostname"] == "secret-host"
    assert (student["runs"], student["wall_time_s"]) == (len(POINTS), 3.5 * len(POINTS))
    assert teacher["kind"] == "teacher"
    assert about["evaluations"]["first"].startswith("2025-")


def test_raw_runs_are_the_scores_at_the_horizon(tmp_path: Path) -> None:
    paths = write_report(build(tmp_path), "demo")
    rows = list(csv.DictReader((Path(paths.root) / "tables/runs.csv").open()))
    assert [row["run"] for row in rows] == [run_name(point) for point in POINTS]
    for row, point in zip(rows, POINTS, strict=True):
        assert float(row["top1_h"]) == pytest.approx(top1(point, 300))
        teacher = point["teacher.accuracy"]
        assert row["teacher_digest"] == ("" if teacher is None else digest_of(teacher))


def test_teachers_are_listed_with_who_used_them(tmp_path: Path) -> None:
    build(tmp_path)
    write_run(tmp_path, POINTS[5], digest=digest_of("gone"))
    paths = write_report(tmp_path, "demo")
    rows = list(csv.DictReader((Path(paths.root) / "tables/teachers.csv").open()))
    assert [(row["preset"], row["runs"]) for row in rows] == [("30", "9"), ("60", "10"), ("", "1")]
    assert rows[-1]["digest"] == digest_of("gone")


def test_an_unfinished_sweep_is_reported_with_what_is_missing(tmp_path: Path) -> None:
    write_plan(tmp_path, POINTS, ITEMS)
    write_run(tmp_path, POINTS[0])
    paths = write_report(tmp_path, "demo")
    page = Path(paths.index).read_text()
    assert "1 of 25 runs complete" in page
    assert "24 of 25 runs are not complete" in page
    assert run_name(POINTS[-1]) in page
    assert "(n=1)" in paths.tables[0][1]


def test_runs_that_ended_earlier_than_asked_are_counted_apart(tmp_path: Path) -> None:
    write_plan(tmp_path, POINTS, ITEMS)
    write_run(tmp_path, POINTS[0])
    for point in POINTS[1:3]:
        write_run(tmp_path, point, steps=STEPS[:-1])
    page = Path(write_report(tmp_path, "demo").index).read_text()
    assert "1 of 25 runs complete, 2 more to an earlier step than is asked." in page


def test_a_pilot_says_what_its_runs_have_instead_of_what_all_share(tmp_path: Path) -> None:
    settings = {"dataset": "digits", "training.batch_size": 128, "teacher.screen": 1000}
    here = {"training.batch_size": 16, "teacher.screen": None}
    pilot = {"name": "pilot", "notes": [], "steps": {}}
    write_plan(tmp_path, POINTS, ITEMS, settings=settings, scale=pilot, actual=lambda _: here)
    write_run(tmp_path, POINTS[0])
    page = Path(write_report(tmp_path, "demo").index).read_text()
    assert "Batch size 128 (here 16); Teacher screen 1,000 (here whole test set)." in page


def test_what_the_sweep_says_is_escaped(tmp_path: Path) -> None:
    page = Path(write_report(build(tmp_path), "demo").index).read_text()
    assert "&lt;b&gt;Strategies&lt;/b&gt;" in page
    assert "Teachers &amp; &lt;students&gt;." in page
    assert "<b>Strategies" not in page


def test_a_faulty_item_costs_only_itself(tmp_path: Path) -> None:
    build(tmp_path)
    faulty = {"table": "faulty", "rows": ["strategy"]}
    write_plan(tmp_path, POINTS, [faulty, *ITEMS])
    paths = write_report(tmp_path, "demo")
    assert len(paths.tables) == 1
    assert "teacher.accuracy" in paths.problems[0]
    assert "Not shown" in Path(paths.markdown).read_text()


def test_what_a_report_says_is_known_without_writing_it(tmp_path: Path) -> None:
    build(tmp_path)
    write_plan(tmp_path, POINTS, [{"table": "faulty", "rows": ["strategy"]}, *ITEMS])
    before = set(tmp_path.rglob("*"))
    said = report_text(tmp_path, "demo")
    assert set(tmp_path.rglob("*")) == before
    written = write_report(tmp_path, "demo")
    assert written.figures
    assert said == ReportText(**{f.name: getattr(written, f.name) for f in fields(ReportText)})


def test_files_of_an_item_that_is_gone_go_and_others_stay(tmp_path: Path) -> None:
    build(tmp_path)
    out = tmp_path / "mine"
    write_report(tmp_path, "demo", out)
    (out / "tables/notes.txt").write_text("mine")
    write_plan(tmp_path, POINTS, ITEMS[1:])
    write_report(tmp_path, "demo", out)
    left = {path.name for path in (out / "tables").iterdir()}
    assert left == {"runs.csv", "teachers.csv", "notes.txt"}


def test_a_store_is_read_and_written_by_uri(tmp_path: Path) -> None:
    build(tmp_path)
    paths = write_report(f"file://{tmp_path}", "demo")
    assert paths.root == f"file://{tmp_path}/sweeps/demo/report"
    assert (tmp_path / "sweeps/demo/report/index.html").is_file()


def test_no_such_sweep(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="holds no sweep"):
        write_report(tmp_path, "demo")


def test_layout_alone_imports_neither_pandas_nor_seaborn() -> None:
    code = "import sys, dashboards.layout; sys.exit(bool({'pandas', 'seaborn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
