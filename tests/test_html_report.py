"""The page: one file that needs no other, says what is there, and where every number comes from."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
import sqlite3
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tracking_helpers
from dashboards_store import (
    grid,
    read_json,
    run_name,
    write_json,
    write_plan,
    write_run,
    write_snapshot,
)

from dashboards.errors import ReportError
from dashboards.report import ReportPaths, write_report
from dashboards.tracking_ids import tracking_ids
from orchestrator.tracking import Tracker

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
TABLE: dict[str, Any] = {
    "table": "strategies",
    "title": "Strategies",
    "rows": ["strategy"],
    "columns": ["teacher.accuracy"],
    "heads": {"teacher.accuracy": "Teacher Top-1 Accuracy (%)"},
}
FIGURE: dict[str, Any] = {
    "figure": "curves",
    "title": "Curves",
    "hue": "strategy",
    "panel": "teacher.accuracy",
}
CLAIM: dict[str, Any] = {
    "claim": "c_wins",
    "title": "C wins",
    "source": "Section 1",
    "statement": "C is better than B.",
    "tests": [
        {
            "kind": "greater",
            "sweep": "one",
            "of": {"strategy": "C"},
            "to": {"strategy": "B"},
            "each": ["teacher.accuracy"],
        }
    ],
}
MISSING = CLAIM | {
    "claim": "elsewhere",
    "title": "Elsewhere",
    "tests": [CLAIM["tests"][0] | {"sweep": "three"}],
}


def write_sweep(store: Path, name: str, report: list[dict[str, Any]], **options: Any) -> list[Any]:
    points = grid(teachers=options.get("teachers", (30.0, 60.0)))
    write_plan(store, points, report, sweep=name, overrides=options.get("overrides"))
    for point in points:
        write_run(store, point)
    return points


def write_group(store: Path, include: list[str], report: list[dict[str, Any]], **more: Any) -> None:
    plan = {"sweep": "all", "title": "All of it", "description": "d", "semantics": 1}
    plan |= {"include": include, "points": [], "fields": [], "settings": {}, "report": report}
    write_json(store / "sweeps" / "all" / "plan.json", plan | {"scale": None} | more)


def group(store: Path) -> ReportPaths:
    """A group of three: the first complete, the second sharing its runs, the third not planned."""
    write_sweep(store, "one", [TABLE, FIGURE])
    write_sweep(store, "two", [TABLE | {"title": "The same again"}], teachers=(60.0, 90.0))
    for preset in (30.0, 60.0, 90.0):
        write_snapshot(store, preset)
    write_group(store, ["one", "two", "three"], [CLAIM, MISSING])
    return write_report(store, "all")


class Outline(HTMLParser):
    """Tags with their attributes, ids, text; fails on tags that are not closed in order."""

    VOID = frozenset({"meta", "link", "img", "br", "input", "hr"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def values(self, attribute: str) -> list[str]:
        return [str(attrs[attribute]) for _, attrs in self.tags if attribute in attrs]

    @property
    def plain(self) -> str:
        return " ".join(" ".join(self.text).split())


def outline(paths: ReportPaths) -> Outline:
    return Outline(Path(paths.index).read_text())


def test_the_page_is_one_file_and_asks_for_nothing(tmp_path: Path) -> None:
    paths = group(tmp_path)
    page = Path(paths.index).read_text()
    found = outline(paths)
    assert "http:" not in page
    assert "https:" not in page
    assert not re.search(r"@import|url\(|srcset|<iframe|<object|<base", page)
    for address in found.values("src") + found.values("href"):
        assert address.startswith(("data:", "#")), address[:80]
    for tag, attributes in found.tags:
        assert tag != "script" or "src" not in attributes
        assert tag != "link" or attributes["href"] == "data:,"


def test_it_reads_the_same_when_it_lies_alone(tmp_path: Path) -> None:
    paths = group(tmp_path)
    alone = tmp_path / "mailed" / "page.html"
    alone.parent.mkdir()
    shutil.copy(paths.index, alone)
    found = Outline(alone.read_text())
    (image,) = found.values("src")
    kind, _, content = image.removeprefix("data:").partition(";base64,")
    start = base64.b64decode(content)[:100]
    assert b"<?xml" in start if kind == "image/svg+xml" else start.startswith(b"\x89PNG")
    csv = next(a["href"] for _, a in found.tags if a.get("download") == "strategies.csv")
    text = base64.b64decode(str(csv).split("base64,")[1]).decode()
    assert text == (Path(paths.root) / "tables/one/strategies.csv").read_text()


def test_every_link_inside_the_page_leads_somewhere_and_ids_are_unique(tmp_path: Path) -> None:
    found = outline(group(tmp_path))
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    inner = [address[1:] for address in found.values("href") if address.startswith("#")]
    assert inner
    assert set(inner) <= set(ids)


def test_tables_are_tables_for_a_screen_reader_too(tmp_path: Path) -> None:
    found = outline(group(tmp_path))
    for tag, attributes in found.tags:
        if tag == "th":
            assert attributes.get("scope") in ("col", "colgroup", "row", "rowgroup")
        if tag == "img":
            assert attributes["alt"]
        if attributes.get("class") == "scroll":
            assert (attributes["role"], attributes["tabindex"]) == ("region", "0")
            assert attributes["aria-label"]
    assert ("html", {"lang": "en"}) in found.tags
    assert "width=device-width" in str(found.tags)


def test_coverage_counts_cells_runs_and_sweeps_once(tmp_path: Path) -> None:
    paths = group(tmp_path)
    text = outline(paths).plain
    cells = 5 + 5  # A, B and C under two teachers each, in both sweeps
    curves = 5
    assert f"{cells + curves} of {cells + curves} cells filled" in text
    runs = {run_name(p) for p in grid()} | {run_name(p) for p in grid(teachers=(60.0, 90.0))}
    assert f"{len(runs)} of {len(runs)} runs complete" in text
    (tmp_path / "runs" / run_name(grid()[0]) / "result.json").unlink()
    (tmp_path / "runs" / run_name(grid()[-1]) / "metrics.parquet").unlink()
    text = outline(write_report(tmp_path, "all")).plain
    assert f"{len(runs) - 2} of {len(runs)} runs complete" in text
    assert run_name(grid()[0]) in text


def test_a_sweep_that_was_never_planned_is_named_and_the_rest_is_there(tmp_path: Path) -> None:
    paths = group(tmp_path)
    text = outline(paths).plain
    assert "three never planned in this store" in text
    assert paths.problems == ["three was never planned in this store"]
    assert "The same again" in text
    assert "sweep three was never planned in this store" in text  # the claim about it
    assert "three" in Path(paths.markdown).read_text()


def test_claims_come_with_verdict_numbers_and_what_would_refute_them(tmp_path: Path) -> None:
    paths = group(tmp_path)
    text = outline(paths).plain
    assert "C wins supported C is better than B. Section 1 2 of 2 contrasts hold." in text
    assert "Refuted by: The mean difference is significantly below 0." in text
    assert "4 of 4 cells" in text
    assert "1 claim: supported" in text
    assert "1 claim: not enough data" in text
    assert paths.tables[0][0] == "Claims"
    lines = (Path(paths.root) / "tables/claims.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 + 1


def test_a_contrast_between_two_teachers_says_so_in_every_form(tmp_path: Path) -> None:
    for point in grid():
        teacher = {None: None, 30.0: "a" * 64, 60.0: "b" * 64}[point["teacher.accuracy"]]
        write_run(tmp_path, point, digest=teacher)
    between = {
        "kind": "greater", "where": {"strategy": "B"},
        "of": {"teacher.accuracy": 60}, "to": {"teacher.accuracy": 30},
    }  # fmt: skip
    write_plan(tmp_path, grid(), [CLAIM | {"tests": [between]}])
    paths = write_report(str(tmp_path), "demo")
    for text in (outline(paths).plain, Path(paths.markdown).read_text(), paths.tables[0][1]):
        assert text.count("“one teacher a side”: the sides") == 1
        assert text.count("one teacher a side") == 2
    (record,) = csv.DictReader((Path(paths.root) / "tables/claims.csv").open())
    assert (record["one_teacher_a_side"], record["problem"]) == ("yes", "")


def test_every_number_is_traced_to_its_runs(tmp_path: Path) -> None:
    paths = group(tmp_path)
    text = outline(paths).plain
    for point in grid():
        assert run_name(point) in text
    cells = json.loads(Path(paths.provenance).read_text())["cells"]
    (cell,) = [
        c
        for c in cells
        if (c["sweep"], c["item"], c["cell"]) == ("one", "strategies", "Strategy C, teacher 30%")
    ]
    assert [run["seed"] for run in cell["runs"]] == [0, 1, 2, 3, 4]
    assert (cell["step"], cell["metric"]) == (300, "top1_h")
    table = (Path(paths.root) / "tables/one/strategies.csv").read_text()
    mean = sum(run["value"] for run in cell["runs"]) / 5
    assert f"{mean:.10g}"[:8] in table
    assert {c["item"] for c in cells} == {"strategies", "curves", "claim c_wins"}


def database(store: Path, rows: list[tuple[str, str, str]]) -> None:
    """The part of MLflow's database that is asked. rows: (run id, experiment, run name)."""
    with sqlite3.connect(store / "mlflow.db") as connection:
        connection.executescript(
            "CREATE TABLE experiments (experiment_id INTEGER, name TEXT);"
            "CREATE TABLE runs (run_uuid TEXT, experiment_id INTEGER, lifecycle_stage TEXT,"
            " start_time INTEGER);"
            "CREATE TABLE tags (key TEXT, value TEXT, run_uuid TEXT);"
        )
        names = sorted({experiment for _, experiment, _ in rows})
        connection.executemany("INSERT INTO experiments VALUES (?, ?)", enumerate(names))
        for start, (run_id, experiment, name) in enumerate(rows):
            kind, key = name.split("-")
            values = (run_id, names.index(experiment), "active", start)
            connection.execute("INSERT INTO runs VALUES (?, ?, ?, ?)", values)
            tags = [("run_key", key + "0" * 48, run_id), ("targetsweep.kind", kind, run_id)]
            connection.executemany("INSERT INTO tags VALUES (?, ?, ?)", tags)


def test_mlflow_runs_are_named_on_the_page_and_in_no_table(tmp_path: Path) -> None:
    first = run_name(grid()[0])
    database(tmp_path, [("a" * 32, "one", first), ("b" * 32, "two", first)])
    paths = group(tmp_path)
    page = Path(paths.index).read_text()
    assert "a" * 32 in page
    assert "a" * 32 in Path(paths.provenance).read_text()
    for path in (Path(paths.root) / "tables").rglob("*.*"):
        assert b"a" * 32 not in path.read_bytes()


def test_a_tracking_servers_ids_come_from_the_record_and_the_database_goes_first(
    tmp_path: Path,
) -> None:
    write_sweep(tmp_path, "one", [])
    one, two = (f"student-{digit * 16}" for digit in "12")
    record = {"http://server": {"parent": "p", "ids": {one: "r1", two: "r2"}}}
    write_json(tmp_path / "sweeps/one/tracking.json", record)
    assert tracking_ids(str(tmp_path), ["one"]) == {"one": {one: "r1", two: "r2"}}
    # two copies of one run: the older one is kept, as tracking keeps it
    database(tmp_path, [("d1", "one", one), ("d2", "one", one)])
    assert tracking_ids(str(tmp_path), ["one"])["one"] == {one: "d1", two: "r2"}
    (tmp_path / "mlflow.db").write_bytes(b"no database")
    assert tracking_ids(str(tmp_path), ["one"])["one"][one] == "r1"


def test_ids_are_those_of_mlflow_with_its_database_and_without(tmp_path: Path) -> None:
    store = tracking_helpers.new_store(tmp_path / "store")
    unit = tracking_helpers.write_run(store, 1, steps=[1, 300], done=True)
    tracking_helpers.write_plan(store, [1])
    tracker = Tracker(store, f"sqlite:///{store.root}/mlflow.db")
    tracker.sync()
    wanted = {"demo": {unit: tracking_helpers.Seen(tracker.uri).one(unit).info.run_id}}
    assert tracking_ids(str(store.root), ["demo"]) == wanted
    (store.root / "mlflow.db").unlink()
    assert tracking_ids(str(store.root), ["demo"]) == wanted


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    points = [p | {"augmentation": HOSTILE} for p in grid(strategies="BC", seeds=range(3))]
    table = TABLE | {"title": HOSTILE, "rows": ["strategy", "augmentation"]}
    figure = FIGURE | {"title": HOSTILE}
    claim = CLAIM | {"title": HOSTILE, "statement": HOSTILE, "source": HOSTILE}
    test = CLAIM["tests"][0] | {"sweep": None, "says": HOSTILE, "refuted": HOSTILE}
    write_plan(tmp_path, points, [table, figure, claim | {"tests": [test]}], sweep="one")
    for point in points:
        write_run(tmp_path, point)
    paths = write_report(tmp_path, "one")
    page = Path(paths.index).read_text()
    assert "alert(1)" in page
    assert "<script>alert" not in page
    found = Outline(page)
    assert not [tag for tag, attributes in found.tags if "onerror" in attributes]
    assert [tag for tag, _ in found.tags].count("script") == 1


def test_a_groups_tables_are_equal_byte_for_byte(tmp_path: Path) -> None:
    def tables(paths: ReportPaths) -> Mapping[str, bytes]:
        root = Path(paths.root) / "tables"
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.*")}

    first = tables(group(tmp_path / "a"))
    assert tables(group(tmp_path / "b")) == first
    assert {"claims.csv", "claims.md", "one/strategies.csv", "two/strategies.csv"} <= set(first)


def test_files_of_a_sweep_that_left_the_group_go(tmp_path: Path) -> None:
    root = Path(group(tmp_path).root)
    assert (root / "tables/two/strategies.csv").is_file()
    write_group(tmp_path, ["one"], [CLAIM])
    write_report(tmp_path, "all")
    assert not (root / "tables/two/strategies.csv").exists()
    assert (root / "tables/one/strategies.csv").is_file()


def test_a_plan_that_cannot_be_read_costs_only_its_sweep(tmp_path: Path) -> None:
    group(tmp_path)
    (tmp_path / "sweeps/two/plan.json").write_text("{")
    paths = write_report(tmp_path, "all")
    assert any("sweeps/two/plan.json" in problem for problem in paths.problems)
    assert "C wins" in outline(paths).plain
    (tmp_path / "sweeps/all/plan.json").write_text("{")
    with pytest.raises(ReportError, match="is not a plan"):
        write_report(tmp_path, "all")


def test_a_pilots_claims_say_pilot_and_find_its_sweeps(tmp_path: Path) -> None:
    write_sweep(tmp_path, "one-pilot", [TABLE])
    path = tmp_path / "sweeps/one-pilot/plan.json"
    scale = {"name": "pilot", "notes": ["Small."], "steps": {}}
    write_json(path, read_json(path) | {"scale": scale})
    write_group(tmp_path, ["one-pilot"], [CLAIM], scale=scale)
    paths = write_report(tmp_path, "all")
    text = outline(paths).plain
    assert "C wins no verdict (pilot)" in text
    assert "the numbers say nothing about the paper's" in text
    assert "Small." in text
    assert "**No verdict (pilot).** 2 of 2 contrasts hold." in Path(paths.markdown).read_text()


def test_claims_of_overridden_settings_say_so_and_the_page_says_which(tmp_path: Path) -> None:
    write_sweep(tmp_path, "one", [TABLE, FIGURE], overrides=["training.lr=0.1"])
    write_group(tmp_path, ["one"], [CLAIM])
    paths = write_report(tmp_path, "all")
    text = outline(paths).plain
    assert "C wins no verdict (other settings)" in text
    assert "1 claim: no verdict (other settings)" in text
    assert "one: training.lr=0.1" in text
    assert text.count("changed by --set: training.lr=0.1") == 2
    assert "**No verdict (other settings).**" in Path(paths.markdown).read_text()
