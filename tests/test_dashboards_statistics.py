"""Statistics over seeds against few-line references on the present seeds of one cell."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from dashboards.statistics import paired, ratio_of_means, summarise, welch_interval

NAN = np.nan


def scores(seed: int, missing: float = 0.0, shape: tuple[int, int] = (6, 9)) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    values = rng.normal(50, 5, shape)
    values[rng.random(shape) < missing] = NAN
    return values


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.7])
def test_summary_equals_the_textbook_on_the_seeds_present(missing: float) -> None:
    values = scores(1, missing)
    summary = summarise(values)
    for cell, column in enumerate(values.T):
        present = column[~np.isnan(column)]
        assert summary.n[cell] == len(present)
        if len(present) > 0:
            assert summary.mean[cell] == pytest.approx(np.mean(present))
        if len(present) > 1:
            assert summary.std[cell] == pytest.approx(np.std(present, ddof=1))
            low, high = stats.t.interval(
                0.95, len(present) - 1, loc=np.mean(present), scale=stats.sem(present)
            )
            assert (summary.ci_low[cell], summary.ci_high[cell]) == pytest.approx((low, high))


def test_too_few_seeds_give_nan_and_no_warning() -> None:
    with np.errstate(all="raise"):
        summary = summarise(np.array([[NAN, 3.0], [NAN, NAN]]))
    assert summary.n.tolist() == [0, 1]
    assert summary.mean.tolist()[1] == 3.0
    assert np.isnan(summary.mean[0])
    assert np.isnan(summary.std).all()
    assert np.isnan(summary.ci_low).all()


def test_no_seed_at_all_is_a_summary_of_nothing() -> None:
    assert summarise(np.empty((0, 3))).n.tolist() == [0, 0, 0]


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_paired_differences_equal_the_paired_t_test(missing: float) -> None:
    of, to = scores(2, missing), scores(3, missing)
    result = paired(of, to)
    for cell in range(of.shape[1]):
        both = ~np.isnan(of[:, cell]) & ~np.isnan(to[:, cell])
        assert result.n[cell] == both.sum()
        if both.sum() > 1:
            test = stats.ttest_rel(of[both, cell], to[both, cell])
            interval = test.confidence_interval(0.95)
            assert result.p_value[cell] == pytest.approx(test.pvalue)
            assert result.mean[cell] == pytest.approx(np.mean(of[both, cell] - to[both, cell]))
            assert result.ci_low[cell] == pytest.approx(interval.low)
            assert result.ci_high[cell] == pytest.approx(interval.high)


def test_equal_differences_have_no_p_value() -> None:
    of = np.array([[0.3], [0.6], [0.9]])
    assert np.isnan(paired(of, of - 0.1).p_value[0])


def test_ratio_is_of_means_and_not_the_mean_of_ratios() -> None:
    of, to = np.array([[90.0, 1.0], [30.0, NAN]]), np.array([[30.0, 0.0], [30.0, 0.0]])
    ratio = ratio_of_means(of, to)
    assert ratio[0] == 2.0
    assert np.isnan(ratio[1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((35.96, 0.4, 5), (36.2, 0.3, 5)),
        ((50.0, 2.0, 5), (48.0, 0.1, 5)),
        ((50.0, 0.5, 9), (50.0, 0.5, 5)),
        ((50.0, 0.0, 5), (49.0, 0.5, 5)),
    ],
)
def test_welchs_interval_ends_where_scipys_test_has_its_limit(
    one: tuple[float, float, int], other: tuple[float, float, int]
) -> None:
    low, high = welch_interval(*one, *other)
    for end in (low, high):
        shifted = (one[0] - end, *one[1:])
        test = stats.ttest_ind_from_stats(*shifted, *other, equal_var=False)
        assert test.pvalue == pytest.approx(0.05)
    assert (low + high) / 2 == pytest.approx(one[0] - other[0])


def test_welchs_interval_needs_two_values_a_side_and_a_spread() -> None:
    assert np.isnan(welch_interval(1, np.nan, 1, 2, 0.1, 5)).all()
    assert np.isnan(welch_interval(1, 0.1, 5, 2, 0.1, 1)).all()
    assert welch_interval(3, 0, 5, 2, 0, 5) == (1, 1)
