"""`targetsweep results`: one page of all bundles, made from them alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestrator.bundleexport import export_bundle
from orchestrator.errors import UserError
from orchestrator.resultspage import results_page
from orchestrator.storecommands import ConflictsError
from tests.bundle_stores import (
    bent,
    part_of,
    reference,
    reference_bundle,
    rewrite_line,
    with_cell,
)
from tests.commands import targetsweep

ROOT = Path(__file__).parents[1]
BUNDLES = ROOT / "benchmarks" / "results" / "paper"


def row(page: str, start: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_of_this_repository_is_that_of_its_bundles() -> None:
    bundles = [str(path) for path in BUNDLES.iterdir() if path.is_dir() or path.suffix == ".zip"]
    made = results_page(bundles)
    assert made == (ROOT / "docs" / "results.md").read_text(encoding="utf-8"), "run `make results`"


def test_two_bundles_make_one_table_with_their_seeds_together(tmp_path: Path) -> None:
    halves = [part_of(reference(), tmp_path / str(seed), f"seed={seed}") for seed in (0, 1)]
    one, two = results_page(halves[:1]), results_page(halves)
    assert "(n=1)" not in two
    whole = results_page([reference_bundle()])
    table = whole.partition("## Full scale")[2]
    assert two.partition("## Full scale")[2] == table
    assert one.partition("## Full scale")[2] != table
    assert two == results_page(halves[::-1])
    assert two.count("| `bundle` |") == 2  # a line a contribution
    assert row(whole, "| `bundle` |")[6] == "8"  # a teacher, soft targets, six students


def test_a_note_says_how_the_runs_were_made(tmp_path: Path) -> None:
    noted = str(tmp_path / "noted")
    export_bundle(reference(), noted, note="`targetsweep run tiny.yaml`,\nat night")
    page = results_page([noted, reference_bundle()])
    table = page.partition("## Contributions")[2].partition("## ")[0]
    assert table.endswith("\n\n- `noted`: `targetsweep run tiny.yaml`, at night\n\n")


def test_a_sweep_that_does_not_fit_in_is_named(tmp_path: Path) -> None:
    """Two reports of one name are no one table: the second bundle's is said to be missing."""
    other = str(shutil.copytree(reference_bundle(), tmp_path / "other"))
    rewrite_line(other, "plans.jsonl", lambda plan: plan.update(title="Another sweep"))
    page = results_page([reference_bundle(), other])
    assert "- `other`: sweep tiny is planned otherwise" in page


def test_the_order_of_bundles_does_not_matter_even_of_one_name(tmp_path: Path) -> None:
    one = str(shutil.copytree(reference_bundle(), tmp_path / "p" / "bundle"))
    other = part_of(reference(), tmp_path / "q", "seed=0")
    assert results_page([one, other]) == results_page([other, one])


def test_pilots_and_full_scale_stand_apart() -> None:
    page = results_page([str(BUNDLES / "cifar10-pilot-epyc"), reference_bundle()])
    full, pilots = page.partition("## Full scale")[2].split("## Pilots")
    assert "### `tiny`: " in full
    assert "-pilot`" not in full
    assert "### `table_3-pilot`: " in pilots
    assert "`tiny`" not in pilots


def test_a_tampered_bundle_is_refused_and_nothing_written(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(reference_bundle(), bad)
    data = bytearray((bad / "metrics-student.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (bad / "metrics-student.parquet").write_bytes(data)
    with pytest.raises(UserError, match="bad"):
        results_page([reference_bundle(), str(bad)])
    out = tmp_path / "page.md"
    said = targetsweep("results", str(bad), "--out", str(out), status=2)
    assert "metrics-student.parquet" in said.text
    assert not out.exists()


def test_two_machines_that_disagree_are_no_page(tmp_path: Path) -> None:
    def bend(record):  # type: ignore[no-untyped-def]
        return with_cell(record, "top1_h", 1.25) if record.kind == "student" else record

    other = bent(reference_bundle(), tmp_path / "other", bend)
    with pytest.raises(ConflictsError, match="top1_h"):
        results_page([reference_bundle(), other])
