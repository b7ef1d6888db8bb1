"""One of our numbers beside the paper's.

A mean is compared by Welch's interval of the difference, ours less the paper's, with the paper's
printed ± taken as the sample standard deviation of its five seeds. A Gain is compared as printed:
the paper rounds to two decimals, so ±0.01 is agreement. Neither has a verdict before five of our
seeds are there, in a pilot, or where the command line changed the sweep's settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dashboards.labels import format_score
from dashboards.layout import Reference
from dashboards.statistics import welch_interval

__all__ = ["PAPER_SEEDS", "Comparison", "Verdict", "compare_gain", "compare_mean", "signed"]

Verdict = Literal["inside", "above", "below", "—"]
"""Of ours to the paper's: within the interval, above or below it; — where nothing can be said."""

PAPER_SEEDS = 5
_ROUNDING = 0.01 + 1e-9  # of a Gain; the second term is for binary fractions


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """difference: ours − the paper's, NaN without ours. low, high: its Welch interval, NaN where
    there is none. verdict: None where nothing is compared (another experiment than the paper's, or
    no number of ours)."""

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


def compare_gain(reference: Reference, ratio: float, n: int, *, is_tested: bool) -> Comparison:
    """Our ratio (NaN without a side), rounded as the paper rounds. n: seeds of the side with
    fewer."""
    if not is_tested or np.isnan(ratio):
        return Comparison(reference=reference)
    difference = round(ratio, 2) - _value(reference)[0]
    verdict: Verdict = "—"
    if n >= PAPER_SEEDS:
        agrees = abs(difference) <= _ROUNDING
        verdict = "inside" if agrees else "above" if difference > 0 else "below"
    return Comparison(reference=reference, difference=difference, verdict=verdict)


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
