"""The statistics behind verdicts, against scipy and few-line references."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from dashboards import claim_statistics as statistics


def test_the_paired_test_is_scipys() -> None:
    rng = np.random.default_rng(1)
    of, to = rng.normal(51, 1, 5), rng.normal(50, 1, 5)
    estimate = statistics.difference(dict(enumerate(of)), dict(enumerate(to)), is_paired=True)
    reference = stats.ttest_rel(of, to)
    interval = reference.confidence_interval(0.95)
    found = statistics.above(estimate, 0.0)
    assert found.n == 5
    assert (found.ci_low, found.ci_high) == pytest.approx((interval.low, interval.high))
    assert min(found.p_for, found.p_against) == pytest.approx(reference.pvalue)
    assert found.effect == pytest.approx((of - to).mean() / (of - to).std(ddof=1))


def test_sides_without_common_seeds_are_compared_by_welch() -> None:
    rng = np.random.default_rng(2)
    of, to = rng.normal(53, 1, 4), rng.normal(50, 3, 6)
    estimate = statistics.difference(
        dict(enumerate(of)), dict(enumerate(to, start=10)), is_paired=True
    )
    reference = stats.ttest_ind(of, to, equal_var=False)
    found = statistics.above(estimate, 0.0)
    interval = reference.confidence_interval(0.95)
    assert (found.ci_low, found.ci_high) == pytest.approx((interval.low, interval.high))
    assert found.p_for == pytest.approx(reference.pvalue)
    assert found.effect_name == "d"


def test_equivalence_is_two_one_sided_tests() -> None:
    values = np.array([0.3, -0.2, 0.4, 0.1, -0.1])
    found = statistics.near(statistics.mean_of(values), 1.0)
    lower = stats.ttest_1samp(values, -1.0, alternative="greater").pvalue
    upper = stats.ttest_1samp(values, 1.0, alternative="less").pvalue
    assert found.p_for == pytest.approx(max(lower, upper))
    far = statistics.near(statistics.mean_of(values + 3), 1.0)
    assert far.p_against == pytest.approx(stats.ttest_1samp(values + 3, 1.0).pvalue)
    assert far.p_for > 0.9


def test_equal_differences_give_the_limit_of_the_test() -> None:
    estimate = statistics.mean_of([2.0, 2.0, 2.0])
    assert statistics.above(estimate, 0.0).p_for == 0.0
    assert statistics.above(estimate, 2.0).p_for == 1.0
    assert np.isnan(statistics.above(estimate, 0.0).effect)


def test_slopes_are_least_squares() -> None:
    x = np.array([1.0, 2.0, 5.0, 9.0])
    q = np.random.default_rng(3).normal(size=(5, 4))
    expected = [stats.linregress(x, row).slope for row in q]
    assert statistics.slopes(x, q) == pytest.approx(expected)


def test_a_peak_inside_is_above_each_position_outside() -> None:
    rng = np.random.default_rng(4)
    x = np.array([10.0, 20.0, 30.0, 35.0, 40.0])
    q = np.array([1.0, 1.4, 1.5, 1.5, 1.1]) + rng.normal(0, 0.12, (4, 5))
    inside, outside = q[:, [2, 3]], q[:, [0, 1, 4]]

    def p(best_of: np.ndarray, others: np.ndarray) -> float:
        best = [row[np.delete(best_of, s, 0).mean(0).argmax()] for s, row in enumerate(best_of)]
        found = [stats.ttest_rel(best, column, alternative="greater").pvalue for column in others.T]
        return min(1.0, 2 * max(found))

    found = statistics.peak(x, q, (25, 35))
    assert found.p_for == pytest.approx(p(inside, outside))
    assert found.p_against == pytest.approx(p(outside, inside))


def test_the_interval_of_a_peak_is_that_of_all_resamples_of_the_seeds() -> None:
    rng = np.random.default_rng(4)
    x = np.array([10.0, 20.0, 30.0, 40.0])
    q = np.array([1.0, 1.4, 1.5, 1.1]) + rng.normal(0, 0.12, (4, 4))
    peaks = [
        x[q[list(draw)].mean(axis=0).argmax()] for draw in itertools.product(range(4), repeat=4)
    ]
    found = statistics.peak(x, q, (25, 35))
    assert found.effect == pytest.approx(sum(25 <= value <= 35 for value in peaks) / 4**4)
    ends = np.quantile(peaks, [0.025, 0.975], method="inverted_cdf")
    assert (found.ci_low, found.ci_high) == (ends[0], ends[1])


@pytest.mark.parametrize("within", [(5, 45), (41, 45)])
def test_a_peak_needs_positions_inside_and_outside(within: tuple[float, float]) -> None:
    x = np.array([10.0, 20.0, 30.0, 40.0])
    with pytest.raises(ValueError, match="inside and outside"):
        statistics.peak(x, np.random.default_rng(7).normal(size=(5, 4)), within)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("truth", "judged"),
    [
        ([0, 5, 10, 10, 5], lambda q: statistics.peak(np.arange(5.0), q, (1.5, 2.5))),
        ([10, 10, 5, 0], statistics.rises_then_falls),
        ([0, 5, 10, 10], statistics.rises_then_falls),
    ],
)
def test_a_tie_is_decided_no_more_often_than_the_level(
    truth: list[float], judged: Callable[[np.ndarray], statistics.Evidence], seeds: int
) -> None:
    """Between what the claim says and what it denies: 2.5% a side, 600 draws."""
    rng = np.random.default_rng(8)
    found = [judged(truth + rng.normal(size=(seeds, len(truth)))) for _ in range(600)]
    assert np.mean([one.p_for < statistics.ALPHA for one in found]) < 0.045
    assert np.mean([one.p_against < statistics.ALPHA for one in found]) < 0.045


def test_many_seeds_are_resampled_the_same_way_every_time() -> None:
    q = np.random.default_rng(5).normal(size=(9, 4))
    x = np.arange(4.0)
    assert statistics.peak(x, q, (0, 1)) == statistics.peak(x, q, (0, 1))


def test_a_rise_is_judged_where_the_other_seeds_peak() -> None:
    q = np.array([[0.0, 3.0, 1.0], [0.0, 2.0, 1.5], [0.5, 1.0, 2.0], [0.0, 2.5, 0.5]])
    places = [np.delete(q, s, axis=0).mean(axis=0).argmax() for s in range(4)]
    rise = np.array([q[s, places[s]] - q[s, 0] for s in range(4)])
    fall = np.array([q[s, places[s]] - q[s, 2] for s in range(4)])
    found = statistics.rises_then_falls(q)
    assert found.estimate == pytest.approx(min(rise.mean(), fall.mean()))
    assert found.p_for == pytest.approx(
        max(stats.ttest_1samp(part, 0).pvalue for part in (rise, fall))
    )
    ends = [np.delete(q, s, axis=0).mean(axis=0)[[0, 2]].argmax() * 2 for s in range(4)]
    end = np.array([q[s, ends[s]] for s in range(4)])
    (against,) = [stats.ttest_rel(end, q[:, 1], alternative="greater").pvalue]
    assert found.p_against == pytest.approx(min(1.0, 2 * against))


def test_a_power_law_is_found_and_a_curve_that_is_none_is_told_from_it() -> None:
    rng = np.random.default_rng(6)
    x = np.array([10.0, 20, 50, 100, 200, 500, 1000])
    law = 90 * x**-0.3 * np.exp(rng.normal(0, 0.01, (5, 7)))
    found = statistics.power_law(x, law, sign=-1.0, r_squared=0.9, follows=True)
    assert found.estimate == pytest.approx(0.3, abs=0.01)
    assert found.p_for < 0.001
    bent = np.array([20.0, 20, 20, 60, 20, 20, 20]) + rng.normal(0, 0.1, (5, 7))
    assert statistics.power_law(x, bent, sign=-1.0, r_squared=0.9, follows=True).p_against < 0.001
    assert statistics.power_law(x, bent, sign=-1.0, r_squared=0.9, follows=False).p_for < 0.001


def test_holm_is_the_textbooks_and_counts_what_is_missing() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.01], total=4) == pytest.approx([0.04])
    assert statistics.holm([float("nan"), 0.5]) == [1.0, 1.0]
