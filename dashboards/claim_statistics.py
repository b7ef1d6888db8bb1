"""The tests of claims, as plain functions of scores.

Every function returns `Evidence`: an estimate with its 95% interval and two p-values, one for the
claim and one against it. Both are at the two-sided 5% level unless the docstring says otherwise, so
"not shown" is an answer of its own, and the opposite of a claim can be found. Scores of a curve are
(num_seeds, num_positions) arrays without gaps. Formulas: the kinds in `dashboards.claim_layout`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dashboards.statistics import LEVEL

__all__ = [
    "ALPHA",
    "Estimate",
    "Evidence",
    "above",
    "below",
    "difference",
    "holm",
    "mean_of",
    "near",
    "peak",
    "power_law",
    "rises_then_falls",
    "slopes",
]

FloatArray = NDArray[np.float64]

ALPHA = 1 - LEVEL
_NUM_EXHAUSTIVE = 6  # 6^6 = 46,656 resamples, still all of them
_NUM_DRAWN = 10_000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean or a difference of means: standard error, degrees of freedom, seeds behind it (the
    smaller side's), and its size in standard deviations."""

    mean: float
    error: float
    freedom: float
    n: int
    effect: float
    effect_name: str

    def above(self, value: float) -> float:
        """One-sided p of "the true mean is above value". Equal scores leave no spread: then the
        limit of the t-test, 0 or 1 (1/2 at the value itself)."""
        distance = self.mean - value
        if self.error <= 1e-12 * max(abs(self.mean), abs(value), 1.0):
            is_zero = abs(distance) <= 1e-12 * max(abs(self.mean), abs(value), 1.0)
            return 0.5 if is_zero else float(distance < 0)
        return float(stats.t.sf(distance / self.error, self.freedom))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% t-interval."""
        half = float(stats.t.ppf((1 + LEVEL) / 2, self.freedom)) * self.error
        return self.mean - half, self.mean + half


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one contrast says.

    unit: of estimate and interval: `score` (the metric's), `ratio`, or a word for another one.
    effect, effect_name: the standardised size. p_for, p_against: of the claim and of its failure.
    is_opposite: whether the estimate's interval lies wholly on the other side of none.
    """

    estimate: float
    ci_low: float
    ci_high: float
    unit: str
    effect: float
    effect_name: str
    n: int
    p_for: float
    p_against: float
    is_opposite: bool = False


def mean_of(values: Sequence[float] | FloatArray) -> Estimate:
    """One-sample estimate of values (num_seeds,), at least two; effect: mean / std (ddof 1)."""
    array = np.asarray(values, dtype=np.float64)
    std = float(array.std(ddof=1))
    return Estimate(
        mean=float(array.mean()),
        error=std / float(np.sqrt(len(array))),
        freedom=len(array) - 1,
        n=len(array),
        effect=_ratio(float(array.mean()), std),
        effect_name="d_z",
    )


def difference(of: Mapping[int, float], to: Mapping[int, float], *, is_paired: bool) -> Estimate:
    """mean(of) − mean(to), scores by seed. Paired over the common seeds where there are three and
    `is_paired`; else Welch's, over all seeds of each."""
    common = sorted(of.keys() & to.keys())
    if is_paired and len(common) >= 3:
        return mean_of([of[seed] - to[seed] for seed in common])
    one, other = (np.array([side[s] for s in sorted(side)], dtype=np.float64) for side in (of, to))
    squares = [float(side.var(ddof=1)) for side in (one, other)]
    sizes = [len(one), len(other)]
    parts = [square / size for square, size in zip(squares, sizes, strict=True)]
    spread = sum(part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True))
    pooled = sum(square * (size - 1) for square, size in zip(squares, sizes, strict=True))
    mean = float(one.mean() - other.mean())
    return Estimate(
        mean=mean,
        error=float(np.sqrt(sum(parts))),
        freedom=sum(parts) ** 2 / spread if spread else sum(sizes) - 2,
        n=min(sizes),
        effect=_ratio(mean, float(np.sqrt(pooled / (sum(sizes) - 2)))),
        effect_name="d",
    )


def above(estimate: Estimate, margin: float, unit: str = "score") -> Evidence:
    """mean > margin."""
    p = estimate.above(margin)
    is_opposite = estimate.interval[1] < 0
    return _evidence(estimate, unit, _two_sided(p), _two_sided(1 - p), is_opposite=is_opposite)


def below(estimate: Estimate, margin: float, unit: str = "score") -> Evidence:
    """mean < margin."""
    p = estimate.above(margin)
    is_opposite = estimate.interval[0] > 0
    return _evidence(estimate, unit, _two_sided(1 - p), _two_sided(p), is_opposite=is_opposite)


def near(estimate: Estimate, margin: float, unit: str = "score") -> Evidence:
    """|mean| < margin: TOST, the larger of two one-sided p; against it, the mean beyond the margin
    on either side."""
    beyond, short = estimate.above(margin), estimate.above(-margin)
    p_for = max(1 - beyond, short)
    return _evidence(estimate, unit, p_for, _two_sided(min(beyond, 1 - short)))


def slopes(positions: FloatArray, q: FloatArray) -> FloatArray:
    """Least-squares slope of each seed, (num_seeds,). positions (num_positions,)."""
    centred = positions - positions.mean()
    result: FloatArray = (q - q.mean(axis=1, keepdims=True)) @ centred / (centred @ centred)
    return result


def peak(positions: FloatArray, q: FloatArray, within: tuple[float, float]) -> Evidence:
    """The mean's largest q lies in `within`: the best position inside is above each one outside;
    against it, the best outside above each one inside. Interval: percentiles of the bootstrapped
    peaks. Raises ValueError where no position lies inside, or none outside."""
    is_inside = (positions >= within[0]) & (positions <= within[1])
    if is_inside.all() or not is_inside.any():
        raise ValueError("positions are needed inside and outside")
    peaks = _resampled_means(q).argmax(axis=1)
    low, high = np.quantile(positions[peaks], [ALPHA / 2, 1 - ALPHA / 2], method="inverted_cdf")
    return Evidence(
        estimate=float(positions[q.mean(axis=0).argmax()]),
        ci_low=float(low),
        ci_high=float(high),
        unit="position",
        effect=float(is_inside[peaks].mean()),
        effect_name="share of resamples inside",
        n=len(q),
        p_for=_best_above_each(q[:, is_inside], q[:, ~is_inside]),
        p_against=_best_above_each(q[:, ~is_inside], q[:, is_inside]),
    )


def _best_above_each(q: FloatArray, others: FloatArray) -> float:
    """p of "the best column of q is above every column of others": the largest of the paired
    two-sided ones. The best for a seed is the other seeds', so that none chooses what it is judged
    by. q, others: (num_seeds, ...)."""
    best = _at_peak(q)
    return max(_two_sided(mean_of(best - column).above(0.0)) for column in others.T)


def _at_peak(q: FloatArray) -> FloatArray:
    """Each seed's q at the peak of the other seeds' mean, (num_seeds,)."""
    others = (q.sum(axis=0) - q) / (len(q) - 1)
    chosen: FloatArray = q[np.arange(len(q)), others.argmax(axis=1)]
    return chosen


def rises_then_falls(q: FloatArray) -> Evidence:
    """Rise to an inner peak and fall after it; the estimate is the smaller of both. Against it: the
    better end is above each position between."""
    at_peak = _at_peak(q)
    parts = [mean_of(at_peak - q[:, 0]), mean_of(at_peak - q[:, -1])]
    weaker = min(parts, key=lambda part: part.mean)
    p_for = max(_two_sided(part.above(0.0)) for part in parts)
    return _evidence(weaker, "score", p_for, _best_above_each(q[:, [0, -1]], q[:, 1:-1]))


def power_law(
    positions: FloatArray, q: FloatArray, *, sign: float, r_squared: float, follows: bool
) -> Evidence:
    """q (positive) against positions (positive) on log axes; sign: of the expected exponent. The
    estimate is the exponent in the expected direction; effect: mean R²."""
    x, y = np.log10(positions), np.log10(q)
    b = slopes(x, y)
    rest = y - y.mean(axis=1, keepdims=True) - np.outer(b, x - x.mean())
    total = ((y - y.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    fit = 1 - (rest**2).sum(axis=1) / np.where(total == 0, np.nan, total)
    fit = np.nan_to_num(fit, nan=0.0)
    exponent = mean_of(sign * b)
    quality = mean_of(np.arctanh(np.sqrt(np.clip(fit, 0.0, 1 - 1e-12))))
    p_fit = quality.above(float(np.arctanh(np.sqrt(r_squared))))
    p_rise = exponent.above(0.0)
    p_for = max(_two_sided(p_fit), _two_sided(p_rise))
    p_against = min(1.0, 2 * min(_two_sided(1 - p_fit), _two_sided(1 - p_rise)))  # either will do
    if not follows:
        p_for, p_against = _two_sided(1 - p_fit), _two_sided(p_fit)
    low, high = exponent.interval
    return Evidence(
        estimate=exponent.mean,
        ci_low=low,
        ci_high=high,
        unit="exponent",
        effect=float(fit.mean()),
        effect_name="R²",
        n=len(q),
        p_for=p_for,
        p_against=p_against,
        is_opposite=follows and high < 0,
    )


def holm(p_values: Sequence[float], total: int | None = None) -> list[float]:
    """Holm-adjusted p-values, in the given order. total: how many tests the claim makes, those
    without data yet included (they count as 1), so that no answer changes when they arrive only
    because the claim looked early. NaN counts as 1."""
    values = [1.0 if np.isnan(p) else p for p in p_values]
    count = max(total or 0, len(values))
    adjusted, largest = [1.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (count - rank) * values[index]))
        adjusted[index] = largest
    return adjusted


def _evidence(
    estimate: Estimate, unit: str, p_for: float, p_against: float, *, is_opposite: bool = False
) -> Evidence:
    low, high = estimate.interval
    return Evidence(
        estimate=estimate.mean,
        ci_low=low,
        ci_high=high,
        unit=unit,
        effect=estimate.effect,
        effect_name=estimate.effect_name,
        n=estimate.n,
        p_for=p_for,
        p_against=p_against,
        is_opposite=is_opposite,
    )


def _two_sided(p: float) -> float:
    return min(1.0, 2 * p)


def _ratio(mean: float, std: float) -> float:
    """NaN where the spread is at rounding level: an effect of infinite size is no size."""
    return mean / std if std > 1e-12 * max(abs(mean), 1.0) else float("nan")


def _resampled_means(q: FloatArray) -> FloatArray:
    """Means over resampled seeds, (num_resamples, num_positions); the same ones every time."""
    n = len(q)
    if n <= _NUM_EXHAUSTIVE:
        index = np.array(list(itertools.product(range(n), repeat=n)))
    else:
        index = np.random.Generator(np.random.Philox(0)).integers(n, size=(_NUM_DRAWN, n))
    weights = np.stack([(index == seed).mean(axis=1) for seed in range(n)], axis=1)
    means: FloatArray = weights @ q
    return means
