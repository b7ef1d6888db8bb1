"""Our Gains beside the paper's: Welch's interval of the logarithm, the rounding, no verdict."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dashboards.comparisons import GainSide, compare_gain
from dashboards.layout import Reference

REFERENCES = Path(__file__).parents[1] / "sweeps" / "paper" / "reference"
GAIN = Reference(at={}, kind="gain", value=1.16)


def side(
    mean: float, std: float = 0.5, n: int = 5, printed: dict[str, float] | None = None
) -> GainSide:
    """Ours, and what the paper prints of the same cell; without more, our numbers."""
    numbers = printed or {"value": mean, "std": std}
    return GainSide(mean, std, n, Reference(at={}, **numbers))


def test_a_gain_without_spread_agrees_within_the_papers_rounding() -> None:
    verdicts = {
        ratio: compare_gain(GAIN, side(50 * ratio, 0), side(50, 0), is_tested=True).verdict
        for ratio in (1.1549, 1.1551, 1.16, 1.1649, 1.1651)
    }
    assert list(verdicts.values()) == ["below", "inside", "inside", "inside", "above"]


def test_a_gain_has_welchs_interval_of_logarithms() -> None:
    """By hand: four variances of 0.5 squared / (5 mean squared), equal n."""
    found = compare_gain(GAIN, side(60), side(50), is_tested=True)
    parts = np.array([0.5**2 / (5 * m**2) for m in (60, 60, 50, 50)])
    half = stats.t.ppf(0.975, parts.sum() ** 2 / (parts**2 / 4).sum()) * np.sqrt(parts.sum())
    assert found.difference == pytest.approx(0.04)
    assert found.low == pytest.approx(1.2 * np.exp(-half) - 1.165)
    assert found.high == pytest.approx(1.2 * np.exp(half) - 1.155)
    assert found.verdict == "above"
    assert compare_gain(GAIN, side(60, 3.0), side(50), is_tested=True).verdict == "inside"


@pytest.mark.parametrize(
    "of",
    [
        side(58, n=4),
        side(58, printed={"value": 58.0}),
        side(58)._replace(printed=None),
        side(58)._replace(std=np.nan),
    ],
)
def test_a_gain_of_which_a_spread_is_missing_has_a_difference_and_no_verdict(of: GainSide) -> None:
    for sides in ((of, side(50)), (side(58), of._replace(mean=50))):
        found = compare_gain(GAIN, *sides, is_tested=True)
        assert found.difference == pytest.approx(0, abs=1e-9)
        assert (found.verdict, np.isnan(found.low)) == ("—", True)


def test_a_perfect_replication_is_inside_in_19_of_20_gains() -> None:
    """Table 6's 39 Gains, drawn again from its own printed means and ±, a paper and a replication
    of five seeds each, printed as the paper prints. Agreement to ±0.01 found 60% inside."""
    with (REFERENCES / "table_6.csv").open(encoding="utf-8") as lines:
        rows = [r for r in csv.DictReader(lines) if r["kind"] == "mean"]
    cells = {(r["dataset"], r["step"], r["teacher.accuracy"], r["strategy"]): r for r in rows}
    rng = np.random.default_rng(0)
    verdicts, old = [], []
    for setting in dict.fromkeys(at[:3] for at in cells):
        for _ in range(12):
            sides, theirs = [], []
            for strategy in "CB":
                at = cells[*setting, strategy]
                paper, ours = rng.normal(float(at["value"]), float(at["std"]), (2, 5))
                theirs.append(paper.mean())
                printed = {"value": round(paper.mean(), 2), "std": round(paper.std(ddof=1), 1)}
                sides.append(side(ours.mean(), ours.std(ddof=1), printed=printed))
            printed_gain = Reference(at={}, kind="gain", value=round(theirs[0] / theirs[1], 2))
            found = compare_gain(printed_gain, *sides, is_tested=True)
            verdicts.append(found.verdict)
            rounded = round(sides[0].mean / sides[1].mean, 2)
            old.append(abs(rounded - (printed_gain.value or 0)) <= 0.01 + 1e-9)
    assert len(verdicts) == 39 * 12
    assert 0.9 < np.mean([verdict == "inside" for verdict in verdicts]) < 0.99
    assert 0.5 < np.mean(old) < 0.7
