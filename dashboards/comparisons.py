"""One of our numbers beside the paper's.

A mean is compared by Welch's interval of the difference, ours less the paper's, with the paper's
printed ± taken as the sample standard deviation of its five seeds. A Gain, a ratio of means, is
compared by Welch's interval of the difference of logarithms, from the spread of all four means (our
two, and the paper's two cells with their printed ±), widened by half a unit of the printed Gain's
last digit. Neither has a verdict before five of our seeds are there, in a pilot, where the command
line changed the sweep's settings, or where the paper does not print the ± that it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from dashboards.labels import format_score
from dashboards.layout import Reference
from dashboards.statistics import log_mean_variance, welch_half_width, welch_interval

__all__ = [
    "PAPER_SEEDS",
    "Comparison",
    "GainSide",
    "Verdict",
    "compare_gain",
    "compare_mean",
    "signed",
]

Verdict = Literal["inside", "above", "below", "—"]
"""Of ours to the paper's: within the interval, above or below it; — where nothing can be said."""

PAPER_SEEDS = 5
_ROUNDING = 0.005
"""Half a unit of the last digit of a Gain, which the paper prints with two decimals."""


class GainSide(NamedTuple):
    """One of a Gain's two cells: our mean, sample standard deviation (NaN below two seeds) and
    number of seeds; the paper's number of the same cell, None where it prints none."""

    mean: float
    std: float
    n: int
    printed: Reference | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """difference: ours − the paper's, NaN without ours. low, high: its Welch interval, of a Gain
    with the rounding of the printed one, NaN where there is none. verdict: None where nothing is
    compared (another experiment than the paper's, or no number of ours)."""

    reference: Reference
    difference: float = np.nan
    low: float = np.nan
    high: float = np.nan
    verdict: Verdict | None = None

    def text(self, column: str) -> str:
        """`paper 35.96 ± 0.4 · +0.31 · inside`. column: of metrics.parquet, for the decimals."""
        parts = [_printed(self.reference, column)]
        if self.verdict is not None:
            parts += [signed(self.difference, column), self.verdict]
        return " · ".join(parts)


def compare_mean(
    reference: Reference, mean: float, std: float, n: int, *, is_tested: bool
) -> Comparison:
    """Our mean and standard deviation (NaN below two seeds) over n seeds beside a printed one.
    is_tested: whether ours is of the paper's own experiment."""
    if not is_tested or n == 0:
        return Comparison(reference=reference)
    value, paper_std = _value(reference)
    difference = mean - value
    if n < PAPER_SEEDS or paper_std is None or np.isnan(std):
        return Comparison(reference=reference, difference=difference, verdict="—")
    low, high = welch_interval(mean, std, n, value, paper_std, PAPER_SEEDS)
    verdict: Verdict = "above" if low > 0 else "below" if high < 0 else "inside"
    return Comparison(
        reference=reference, difference=difference, low=low, high=high, verdict=verdict
    )


def compare_gain(
    reference: Reference, of: GainSide, to: GainSide, *, is_tested: bool
) -> Comparison:
    """Our ratio r = of / to beside a printed Gain G.

    d = ln r − ln G has the variance Σ s² / (n · mean²) over the four means (first order: a mean's
    logarithm spreads by s / mean), and Welch and Satterthwaite's degrees of freedom; G itself is
    known to ± 0.005. Ours is inside where the interval
    [ln r − ln(G + 0.005) − t·se, ln r − ln(G − 0.005) + t·se] has 0. The four means count as
    independent: where seeds that two strategies share raise and lower both, r truly spreads less.
    No verdict below five of our seeds a side, or where the paper does not print both cells with
    their ±.
    """
    value = _value(reference)[0]
    ratio = of.mean / to.mean if to.mean else np.nan
    if not is_tested or np.isnan(ratio):
        return Comparison(reference=reference)
    difference = ratio - value
    parts = _gain_parts(of, to)
    if not parts or min(ratio, value - _ROUNDING) <= 0:
        return Comparison(reference=reference, difference=difference, verdict="—")
    half = welch_half_width(parts)
    # back from logarithms: ours shrunk and stretched by the half width, less the printed one's ends
    low = ratio * np.exp(-half) - (value + _ROUNDING)
    high = ratio * np.exp(half) - (value - _ROUNDING)
    verdict: Verdict = "above" if low > 0 else "below" if high < 0 else "inside"
    return Comparison(
        reference=reference, difference=difference, low=low, high=high, verdict=verdict
    )


def _gain_parts(of: GainSide, to: GainSide) -> list[tuple[float, int]]:
    """(variance of the logarithm of a mean, its n) of the four means; empty where one is missing,
    or has no spread."""
    samples = []
    for side in (of, to):
        value, std = _value(side.printed) if side.printed else (np.nan, None)
        samples += [(side.mean, side.std, side.n), (value, std, PAPER_SEEDS)]
    parts = [
        (log_mean_variance(mean, std, n), n)
        for mean, std, n in samples
        if std is not None and n >= PAPER_SEEDS
    ]
    is_whole = len(parts) == len(samples) and np.isfinite([variance for variance, _ in parts]).all()
    return parts if is_whole else []


def signed(value: float, column: str) -> str:
    """`+0.31`, `−0.31`; no sign on what prints as zero."""
    text = format_score(abs(value), column)
    sign = "" if float(text) == 0 else "−" if value < 0 else "+"
    return sign + text


def _value(reference: Reference) -> tuple[float, float | None]:
    """What ours is compared with: the arXiv copy's number, else the review copy's."""
    if reference.value is not None:
        return reference.value, reference.std
    assert reference.review_value is not None  # the model has one of the two
    return reference.review_value, reference.review_std


def _printed(reference: Reference, column: str) -> str:
    legible = " (partly legible)" if reference.status == "partial" else ""
    review = _number(reference.review_value, reference.review_std, column)
    if reference.value == reference.review_value and reference.review_std is not None:
        review = f"± {_decimals(reference.review_std)}"  # a finer one of the same mean
    if reference.value is None:
        return f"review copy {review}{legible}"
    text = f"paper {_number(reference.value, reference.std, column)}{legible}"
    return f"{text} (review copy {review})" if review else text


def _number(value: float | None, std: float | None, column: str) -> str:
    if value is None:
        return ""
    text = format_score(value, column)
    return text if std is None else f"{text} ± {_decimals(std)}"


def _decimals(std: float) -> str:
    """As printed: one decimal, more where there are more."""
    text = f"{std:.10g}"
    return text if "." in text else f"{text}.0"
