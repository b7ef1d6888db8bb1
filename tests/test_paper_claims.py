"""sweeps/paper/claims.yaml: complete, quoted as printed, and every cell of it is planned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from dashboards_store import Settings

from dashboards.claim_layout import ClaimItem
from dashboards.results import Results
from orchestrator.errors import SpecError
from orchestrator.spec import Sweep, load_sweeps
from tests.shipped_sweeps import assert_planned, unmeasured

PAPER = Path(__file__).parents[1] / "sweeps" / "paper"
SEEDS = Path(__file__).parents[2] / "shared" / "seeds"
GREATER = {"kind": "greater", "of": {"strategy": "C"}, "to": {"strategy": "B"}}


@pytest.fixture(scope="module")
def shipped() -> tuple[Sweep, dict[str, Results]]:
    """claims.yaml, and the plans of the sweeps it includes, with no run done."""
    sweeps = load_sweeps([PAPER / "claims.yaml"])
    (group,) = [sweep for sweep in sweeps if sweep.include]
    return group, unmeasured(sweeps)


def test_every_cell_of_every_claim_is_planned(shipped: tuple[Sweep, dict[str, Results]]) -> None:
    group, sweeps = shipped
    claims = [item for item in group.report if isinstance(item, ClaimItem)]
    assert len(claims) >= 70
    assert_planned(claims, sweeps)


def test_every_numbered_claim_and_finding_is_there(
    shipped: tuple[Sweep, dict[str, Results]],
) -> None:
    names = {item.name for item in shipped[0].report}
    assert {f"finding_{letter}" for letter in "abcdef"} <= names
    numbered = ("1_1", "1_2", "2", "3_1", "3_2", "4_1", "4_2", "5_1", "5_2")
    assert {f"claim_{number}" for number in numbered} <= names
    sources = " ".join(item.source for item in shipped[0].report if isinstance(item, ClaimItem))
    for letter in "abcdef":
        assert re.search(rf"(Review|review) copy.*\({letter}\)|finding \({letter}\)", sources)
    for number in range(1, 7):
        assert re.search(rf"[Rr]eview copy[^;]*Claim {number}|Claim {number}", sources)


def test_every_statement_stands_in_the_paper_as_quoted() -> None:
    if not SEEDS.is_dir():
        pytest.skip("the paper's text is not here")
    texts = {path.name[:3]: path.read_text() for path in SEEDS.glob("*.txt")}
    review = re.sub(r"(?<![\d.,])\d{3}(?!\d)", " ", texts["003"])  # line numbers
    corpora = {
        "arXiv": letters(texts["001"]),
        "Review": letters(review),
        "Summary": letters(texts["000"] + texts["003"]),
        "A reviewer": letters(texts["002"]),
    }
    (group,) = [sweep for sweep in load_sweeps([PAPER / "claims.yaml"]) if sweep.include]
    for item in group.report:
        assert isinstance(item, ClaimItem)
        (corpus,) = [text for start, text in corpora.items() if item.source.startswith(start)]
        assert letters(item.statement) in corpus, item.name


def letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def test_the_whole_paper_has_the_claims_of_the_group_it_includes() -> None:
    groups = {sweep.name: sweep for sweep in load_sweeps([PAPER / "full.yaml"]) if sweep.include}
    assert set(groups) == {"claims", "full"}
    assert groups["full"].report == groups["claims"].report


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        ({"where": {"teacher.acuracy": 30}}, "no point has a field"),
        ({"where": {"teacher.accuracy": 35}}, "no point has teacher.accuracy 35"),
        ({"steps": [900]}, "step 900 is after the last step, 100"),
        ({"to": {"strategy": "D"}}, "no point has strategy 'D'"),
    ],
)
def test_a_claim_about_what_the_sweep_has_not_is_refused_with_its_line(
    tmp_path: Path, test: Settings, reason: str
) -> None:
    item = {"claim": "one", "source": "s", "statement": "t", "tests": [GREATER | test]}
    sweep = {
        "name": "small",
        "set": {"dataset": "cifar10", "training": {"steps": 100}},
        "grids": [{"axes": {"strategy": ["B", "C"], "teacher.accuracy": [30, 60]}}],
        "report": [item],
    }
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(sweep))
    with pytest.raises(SpecError) as caught:
        load_sweeps([file])
    assert reason in str(caught.value)
    assert "report[0].tests[0]" in str(caught.value)
