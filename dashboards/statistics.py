"""Numbers over seeds.

Scores are `(num_seeds, num_cells)` float arrays, one row a seed and one column a cell of a table,
with NaN where a seed is missing. A column without enough seeds gives NaN, never an error: an empty
cell is an honest result. Intervals are Student's t at 95%, standard deviations have ddof 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = [
    "LEVEL",
    "Paired",
    "Summary",
    "log_mean_variance",
    "paired",
    "ratio_of_means",
    "summarise",
    "welch_half_width",
    "welch_interval",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

LEVEL = 0.95
"""Coverage of every interval in the report."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Per cell, each of shape (num_cells,): mean, std (ddof 1; NaN below two seeds), n seeds, and
    the 95% t-interval of the mean (NaN below two seeds)."""

    mean: FloatArray
    std: FloatArray
    n: IntArray
    ci_low: FloatArray
    ci_high: FloatArray


@dataclass(frozen=True, kw_only=True)
class Paired(Summary):
    """A summary of differences by seed. p_value (num_cells,): two-sided paired t-test, NaN below
    two pairs or when all differences are equal (the statistic is then undefined)."""

    p_value: FloatArray


def summarise(scores: FloatArray) -> Summary:
    """scores (num_seeds, num_cells), NaN for missing seeds -> per-cell `Summary`."""
    present = ~np.isnan(scores)
    n = present.sum(axis=0, dtype=np.int64)
    mean = _divide(np.where(present, scores, 0.0).sum(axis=0), n)
    squares = np.where(present, (scores - mean) ** 2, 0.0).sum(axis=0)
    std = np.sqrt(_divide(squares, np.maximum(n - 1, 0)))
    half = half_width(std, n)
    return Summary(mean=mean, std=std, n=n, ci_low=mean - half, ci_high=mean + half)


def half_width(std: FloatArray, n: IntArray) -> FloatArray:
    """Half the 95% t-interval of a mean, (num_cells,): t(n − 1) · std / √n; NaN where n < 2."""
    quantile = stats.t.ppf((1 + LEVEL) / 2, np.maximum(n - 1, 1))
    return np.where(n > 1, quantile * std / np.sqrt(np.maximum(n, 1)), np.nan)


def paired(of: FloatArray, to: FloatArray) -> Paired:
    """Differences `of − to` by seed. of, to (num_seeds, num_cells), the same seed in the same row,
    NaN for missing seeds; a seed counts only where both have it."""
    differences = of - to
    summary = summarise(differences)
    error = summary.std / np.sqrt(np.maximum(summary.n, 1))
    # a spread at rounding level means equal differences: t would be noise over noise
    noise = 1e-12 * np.maximum(np.abs(summary.mean), 1.0)
    t = _divide(summary.mean, np.where(error > noise, error, 0.0))
    p_value = 2 * stats.t.sf(np.abs(t), np.maximum(summary.n - 1, 1))
    return Paired(**vars(summary), p_value=np.asarray(p_value, dtype=np.float64))


def ratio_of_means(of: FloatArray, to: FloatArray) -> FloatArray:
    """The paper's Gain: mean(of) / mean(to), (num_cells,). of, to (num_seeds, num_cells) with NaN
    for missing seeds; each mean takes all its own seeds. NaN where either is empty or `to` is 0."""
    return _divide(summarise(of).mean, summarise(to).mean)


def welch_interval(
    mean1: float, std1: float, n1: int, mean2: float, std2: float, n2: int
) -> tuple[float, float]:
    """95% interval of mean1 − mean2 for two samples of unequal variances: Welch's t, with the
    Welch-Satterthwaite degrees of freedom. std1, std2: sample standard deviations (ddof 1). NaNs
    below two values on either side; the difference itself, twice, when neither side varies."""
    if min(n1, n2) < 2 or np.isnan([mean1, std1, mean2, std2]).any():
        return np.nan, np.nan
    difference = mean1 - mean2
    half = welch_half_width([(std1**2 / n1, n1), (std2**2 / n2, n2)])
    return difference - half, difference + half


def welch_half_width(parts: Sequence[tuple[float, int]]) -> float:
    """Half the 95% interval of a sum or difference of independent means: t(ν) · √Σv, with the
    Welch-Satterthwaite degrees of freedom ν = (Σv)² / Σ(v² / (n − 1)). parts: (variance v of the
    mean, its n of at least 2). 0 when none of them varies."""
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(variance**2 / (n - 1) for variance, n in parts)
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * float(total**0.5)


def log_mean_variance(mean: float, std: float, n: int) -> float:
    """Variance of the logarithm of a mean of n values, to first order: std² / (n · mean²). NaN
    without a spread, or where the mean is not above 0."""
    return std**2 / (n * mean**2) if mean > 0 else np.nan


def _divide(numerator: FloatArray, denominator: FloatArray | IntArray) -> FloatArray:
    """numerator / denominator, NaN where the denominator is 0."""
    return numerator / np.where(denominator == 0, np.nan, denominator)
