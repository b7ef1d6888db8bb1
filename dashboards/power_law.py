"""The power law of an error: error = a · x^(−b).

The paper speaks of power-law scaling of accuracy with IPC. An accuracy is bounded by 100%, a power
law is not; what scaling laws describe is the error, here 100 − top-1 in percent. It is fitted by
least squares on log error against log x over the means of the cells that have data: every x counts
the same, as it does to the eye on logarithmic axes. The interval of b is Student's t with the
regression's n − 2 degrees of freedom.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dashboards.statistics import LEVEL

__all__ = ["MIN_POINTS", "PowerLaw", "fit_power_law"]

FloatArray = NDArray[np.float64]

MIN_POINTS = 3
"""Values of x that a fit needs: two give a line without a residual."""


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """error = a · x^(−b). b_low, b_high: 95% interval of b. r_squared: of the regression on logs,
    NaN when all errors are equal. n: values of x behind it, from x_min to x_max."""

    a: float
    b: float
    b_low: float
    b_high: float
    r_squared: float
    n: int
    x_min: float
    x_max: float

    def top1(self, x: FloatArray | float) -> FloatArray:
        """The fitted accuracy in percent, (num_x,)."""
        return np.asarray(100 - self.a * np.asarray(x, dtype=np.float64) ** -self.b)


def fit_power_law(x: FloatArray, top1: FloatArray) -> PowerLaw | None:
    """x, top1 (percent): (num_x,). None for fewer than three different positive x whose error is
    above 0; pairs with NaN or without a logarithm are left out."""
    error = 100 - top1
    kept = np.isfinite(x) & np.isfinite(error) & (x > 0) & (error > 0)
    log_x, log_error = np.log(x[kept]), np.log(error[kept])
    n = len(log_x)
    if len(np.unique(log_x)) < MIN_POINTS:
        return None
    slope, intercept = np.polyfit(log_x, log_error, 1)
    residual = float(np.sum((log_error - intercept - slope * log_x) ** 2))
    total = float(np.sum((log_error - log_error.mean()) ** 2))
    spread = float(np.sum((log_x - log_x.mean()) ** 2))
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 2)) * (residual / (n - 2) / spread) ** 0.5
    return PowerLaw(
        a=float(np.exp(intercept)),
        b=float(-slope),
        b_low=float(-slope - half),
        b_high=float(-slope + half),
        r_squared=1 - residual / total if total > 1e-24 else float("nan"),
        n=n,
        x_min=float(x[kept].min()),
        x_max=float(x[kept].max()),
    )
