"""Who contributed what to a report, and a report of some of them alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dashboards_store import (
    digest_of,
    grid,
    read_json,
    run_name,
    write_json,
    write_plan,
    write_run,
    write_snapshot,
)
from typer.testing import CliRunner

from dashboards.contributions import arithmetic, contributions
from dashboards.errors import ReportError
from dashboards.groups import load
from dashboards.report import write_report
from dashboards.restriction import NothingLeftError, Restriction, restricted
from orchestrator import cli

ITEMS: list[dict[str, Any]] = [
    {"table": "table", "rows": ["strategy"], "columns": ["teacher.accuracy"]},
    {"figure": "figure", "hue": "strategy", "style": "teacher.accuracy"},
]
POINTS = grid(strategies=("B", "C"))
H200 = {"hardware": "NVIDIA H200", "precision": "bf16", "torch": "2.15", "workers": 1}
H200_FP32 = H200 | {"precision": "fp32"}
XEON = {"hardware": "Intel(R) Xeon(R)", "precision": "fp32", "torch": "2.15", "workers": 1}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Seeds 0 to 2 on a GPU, the last of them in fp32; 3 and 4 on a CPU."""
    place = tmp_path / "store"
    write_plan(place, POINTS, ITEMS)
    for point in POINTS:
        write_run(place, point)
        made = (H200, H200, H200_FP32, XEON, XEON)[point["seed"]]
        path = place / "runs" / run_name(point) / "result.json"
        write_json(path, read_json(path) | {"environment": made})
    for preset in (30.0, 60.0):
        write_snapshot(place, preset)
    return place


def counts(store: Path, out: Path, **asked: str) -> set[str]:
    """The n of every cell of the restricted table's CSV file."""
    report = write_report(store, "demo", out, Restriction(**asked))
    lines = (Path(report.root) / "tables/table.csv").read_text().splitlines()
    column = lines[0].split(",").index("n")
    return {line.split(",")[column] for line in lines[1:]}


@pytest.mark.parametrize(
    ("asked", "n"),
    [
        ({"hardware": "NVIDIA H200"}, "3"),
        ({"hardware": "nvidia h*"}, "3"),
        ({"hardware": "*xeon*"}, "2"),
        ({"precision": "fp32"}, "3"),
        ({"hardware": "NVIDIA*", "precision": "fp32"}, "1"),
        ({}, "5"),
    ],
)
def test_tables_count_what_is_left(store: Path, tmp_path: Path, asked: Any, n: str) -> None:
    assert counts(store, tmp_path / "out", **asked) == {n}


def test_the_restriction_stands_wherever_its_numbers_do(store: Path, tmp_path: Path) -> None:
    whole = write_report(store, "demo")
    before = Path(whole.index).read_bytes()
    asked = Restriction(hardware="NVIDIA H200", precision="bf16")
    report = write_report(store, "demo", tmp_path / "out", asked)
    said = "estricted to runs of hardware NVIDIA H200, precision bf16"
    root = Path(report.root)
    for file in ("report.md", "index.html", "tables/table.md", "tables/table.tex"):
        assert said in (root / file).read_text(), file
    assert (root / "index.html").read_text().count(said) == 3  # the page, its table, its figure
    assert "12 runs of others" in (root / "report.md").read_text()
    about = json.loads((root / "provenance.json").read_text())
    assert about["restriction"] == asked.text
    assert about["runs"] == {"complete": 8, "left out": 12}
    assert Path(whole.index).read_bytes() == before
    assert b"estricted to" not in before
    with pytest.raises(ReportError, match="does not replace"):
        write_report(store, "demo", restriction=asked)


def test_a_run_of_two_machines_is_of_neither(store: Path, tmp_path: Path) -> None:
    moved = store / "runs" / run_name(POINTS[0])  # its seed 0 ended on a GPU
    bundles = [{"bundle": "b", "environment": XEON}, {"bundle": "c", "environment": H200}]
    write_json(moved / "imported.json", {"bundles": bundles})
    assert counts(store, tmp_path / "gpu", hardware="NVIDIA*") == {"2", "3"}
    assert counts(store, tmp_path / "cpu", hardware="Intel*") == {"2"}
    assert counts(store, tmp_path / "all", hardware="*") == {"5"}
    (gpu,) = [c for c in contributions(load(str(store), "demo").results.runs.values()) if c.moved]
    assert gpu.cells == ("NVIDIA H200", "1", "bf16", "2.15", "8 (1 begun elsewhere)", "0.01")


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ({"precision": "bf16", "compiled": True, "threads": None}, "bf16, compiled"),
        ({"precision": "fp32", "compiled": False, "threads": 4}, "fp32, 4 threads"),
        (
            {"precision": "fp32", "compiled": True, "convolutions": "products"},
            "fp32, compiled with products",
        ),
        ({"precision": "fp32", "instructions": "AVX2", "threads": 2}, "fp32, AVX2, 2 threads"),
        ({"precision": "fp32", "compiled": False, "threads": 1}, "fp32"),
        ({"precision": "fp32"}, "fp32"),  # of before the others were recorded
        ({}, ""),
    ],
)
def test_contributions_tell_what_decides_last_bits(told: dict[str, object], shown: str) -> None:
    assert arithmetic(told) == shown


def test_runs_that_were_compiled_are_a_contribution_of_their_own(store: Path) -> None:
    before = contributions(load(str(store), "demo").results.runs.values())
    path = store / "runs" / run_name(POINTS[0]) / "result.json"
    result = json.loads(path.read_text())
    write_json(path, result | {"environment": result["environment"] | {"compiled": True}})
    found = contributions(load(str(store), "demo").results.runs.values())
    compiled = [one for one in found if "compiled" in one.precision]
    assert [one.runs for one in compiled] == [1]
    assert sum(one.runs for one in found) == sum(one.runs for one in before)


def test_what_nobody_has_is_one_error_with_the_nearest(store: Path) -> None:
    loaded = load(str(store), "demo")
    with pytest.raises(NothingLeftError, match="hardware 'NVIDIA H20'") as caught:
        restricted(loaded, Restriction(hardware="NVIDIA H20"))
    assert caught.value.remedy.startswith("nearest: NVIDIA H200; there are: Intel(R) Xeon(R), ")
    with pytest.raises(NothingLeftError, match="precision 'fp16'"):
        restricted(loaded, Restriction(precision="fp16"))
    with pytest.raises(NothingLeftError) as caught:
        restricted(loaded, Restriction(hardware="Intel*", precision="bf16"))
    assert "each of them fits other runs" in caught.value.remedy


def test_contributions_stand_on_the_page_and_in_markdown(store: Path) -> None:
    report = write_report(store, "demo")
    text = Path(report.markdown).read_text()
    assert "| Hardware | Workers | Precision | torch | Runs | Hours |" in text
    assert "| Intel(R) Xeon(R) | 1 | fp32 | 2.15 | 8 | 0.01 |" in text
    assert "| NVIDIA H200 | 1 | bf16 | 2.15 | 8 | 0.01 |" in text
    assert "| NVIDIA H200 | 1 | fp32 | 2.15 | 4 | 0.00 |" in text
    assert "| not recorded |  |  |  | 1 | 0.00 |" in text  # the teacher of these made-up stores
    page = Path(report.index).read_text()
    assert "Contributions: on what the runs behind this page were made." in page
    assert page.count('<td class="key">NVIDIA H200</td>') == 2


def test_copies_of_a_snapshot_are_listed_with_their_original(store: Path) -> None:
    """Half the students learnt from the original, half from the copy that lies here."""
    original, copy = digest_of(30.0), digest_of("copy")
    path = next((store / "runs").glob("teacher-*")) / "snapshots/acc-30.json"
    also = {original: 30.25}
    record = read_json(path) | {"digest": copy, "accuracy": 30.2, "of": original, "also": also}
    write_json(path, record)
    for point in POINTS:
        if point["teacher.accuracy"] == 30.0 and point["seed"] < 3:
            result = store / "runs" / run_name(point) / "result.json"
            write_json(result, read_json(result) | {"teacher_digest": copy})
    report = write_report(store, "demo")
    lines = (Path(report.root) / "tables/teachers.csv").read_text().splitlines()
    found = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    told = {r["digest"]: (r["accuracy"], r["runs"], r["copy_of"]) for r in found}
    assert told[copy] == ("30.2", "6", original)
    assert told[original] == ("30.25", "4", "")
    assert "More than one teacher snapshot" in dict(report.tables)["table"]
    assert f"<code>{original[:16]}</code>" in Path(report.index).read_text()


def report_command(store: Path, *arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["report", *arguments, "--store", str(store)])


def test_the_command(store: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    ended = report_command(store, "demo", "--hardware", "NVIDIA*", "--out", out)
    assert ended.exit_code == 0, ended.output
    assert f"report: {out}/index.html" in ended.output
    assert not (store / "sweeps/demo/report").exists()
    for arguments, said in [
        (("demo", "--hardware", "NVIDIA*"), "give --out"),
        (("demo", "--hardware", "TPU", "--out", out), "there are: Intel(R) Xeon(R), NVIDIA H200"),
        (("--precision", "fp8", "--out", out), "there are: bf16, fp32"),
    ]:
        ended = report_command(store, *arguments)
        assert getattr(ended.exception, "exit_status", None) == 2
        assert said in str(ended.exception)


def test_of_all_sweeps_those_that_have_some_are_reported(store: Path, tmp_path: Path) -> None:
    points = grid(strategies=("A",), dataset=["cifar10"])
    write_plan(store, points, ITEMS, sweep="other")
    for point in points:
        write_run(store, point)
    ended = report_command(store, "--precision", "fp32", "--out", str(tmp_path / "out"))
    assert ended.exit_code == 0, ended.output
    assert (tmp_path / "out/demo/index.html").exists()
    assert not (tmp_path / "out/other").exists()
    assert "no run of other was made with precision 'fp32'" in ended.output
