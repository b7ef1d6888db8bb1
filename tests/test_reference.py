"""The paper's numbers: complete, consistent with their Gains, and equal to both copies' texts."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "sweeps" / "paper" / "reference"
SEEDS = ROOT.parent / "shared" / "seeds"
README = (FOLDER / "README.md").read_text(encoding="utf-8")

# file: measured values, Gains
COUNTS = {
    "table_1": (18, 9),
    "table_2": (108, 0),
    "table_3": (54, 27),
    "table_4": (48, 0),
    "table_5": (30, 0),
    "table_6": (78, 39),
    "table_7": (48, 24),
    "table_8": (50, 40),
    "table_9": (66, 0),
    "figure_4": (12, 6),
}

# Gains that are not the ratio of the printed means rounded to two decimals.
NOT_ROUNDED = {
    "table_1 teacher.accuracy=20 kind=gain",
    "table_3 step=7800 teacher.accuracy=50 kind=gain",
    "table_3 step=39000 teacher.accuracy=30 kind=gain",
    "table_6 dataset=cifar100 step=39000 teacher.accuracy=40 kind=gain",
    "table_6 dataset=tinyimagenet step=3900 teacher.accuracy=50 kind=gain",
    "table_6 dataset=tinyimagenet step=15600 teacher.accuracy=10 kind=gain",
    "table_7 backbone.name=resnet50 step=1000 teacher.accuracy=50 kind=gain",
    "table_8 step=500 teacher.accuracy=12 kind=gain",
    "table_8 step=1500 teacher.accuracy=62 kind=gain",
}


def _script() -> ModuleType:
    """`check.py` lies among data files, in no package."""
    spec = importlib.util.spec_from_file_location("reference_check", FOLDER / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


check = _script()


def _lines(pattern: str) -> list[str]:
    if not SEEDS.is_dir():
        pytest.skip("the paper's texts are not here")
    (file,) = SEEDS.glob(pattern)
    return file.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", COUNTS)
def test_every_printed_number_is_there(name):
    rows = check.read_reference(name)
    kinds = [row["kind"] for row in rows]
    assert (kinds.count("mean"), kinds.count("gain")) == COUNTS[name]
    assert {row["status"] for row in rows} == {"printed"}
    places = [check.place(name, row) for row in rows]
    assert len(set(places)) == len(places)


def test_the_totals():
    assert sum(means for means, _ in COUNTS.values()) == 512
    assert sum(gains for _, gains in COUNTS.values()) == 145
    assert {path.stem for path in FOLDER.glob("*.csv")} == {*COUNTS, "figure_6b"}


def test_values_are_written_as_printed():
    for name in COUNTS:
        for row in check.read_reference(name):
            assert re.fullmatch(r"\d+\.\d\d", row["value"])
            assert re.fullmatch(r"(\d+\.\d)?", row["std"])
            assert row["kind"] == "mean" or not row["std"]


def test_the_heat_map_is_partial():
    rows = check.read_reference("figure_6b")
    assert len(rows) == 29
    for row in rows:
        assert (row["status"], row["value"]) == ("partial", "")
        assert 40 < float(row["review_value"]) < 60


def test_gains_are_ratios_of_the_printed_means_within_what_the_paper_rounds():
    gains = list(check.gains())
    assert len(gains) == 145
    off = {where for where, printed, ratio in gains if abs(ratio - float(printed)) > 0.005}
    assert off == NOT_ROUNDED
    assert all(abs(ratio - float(printed)) <= 0.01 for _, printed, ratio in gains)


def test_the_readme_lists_those_that_are_not_rounded():
    table = README.split("## Gains")[1].split("\n## ")[0]
    told = re.findall(r"\| (\d+\.\d\d) \| (\d+\.\d{4}) \|", table)
    found = [
        (printed, f"{ratio:.4f}")
        for _, printed, ratio in check.gains()
        if abs(ratio - float(printed)) > 0.005
    ]
    assert told == found


def test_the_readme_counts_what_the_files_hold():
    told = dict(re.findall(r"^\| `(\w+)\.csv` \| (\d+ \| \d*) ?\|", README, re.MULTILINE))
    assert told == {
        **{name: f"{means} | {gains or ''}" for name, (means, gains) in COUNTS.items()},
        "figure_6b": "29 | ",
    }


def test_the_known_difference_between_the_copies():
    differing = [
        check.place(name, row)
        for name in COUNTS
        for row in check.read_reference(name)
        if row["review_value"] not in ("", row["value"])
    ]
    at = "table_3 step=39000{} teacher.accuracy=90 kind={}"
    assert differing == [at.format(" strategy=C", "mean"), at.format("", "gain")]


def test_equal_to_the_arxiv_copy():
    found = check.check_arxiv(_lines("001_*.txt"))
    assert found.faults == []
    assert found.compared == 512 + 145


def test_equal_to_the_review_copy_but_for_what_the_files_say():
    found = check.check_review(_lines("003_*.txt"))
    assert found.faults == []
    assert found.compared == 632
    assert len(found.differences) == 2
    # cells that the extraction from the pages damaged: they agree in their digits
    assert len(found.damaged) == 13 + 4


def test_a_wrong_value_is_a_fault(tmp_path, monkeypatch):
    """The check can fail: one digit of one file is changed."""
    lines = _lines("001_*.txt")
    for path in FOLDER.glob("*.csv"):
        (tmp_path / path.name).write_text(path.read_text().replace("43.19", "43.91"))
    monkeypatch.setattr(check, "FOLDER", tmp_path)
    faults = check.check_arxiv(lines).faults
    assert len(faults) == 1
    assert "table_3 step=7800 strategy=B teacher.accuracy=40" in faults[0]
