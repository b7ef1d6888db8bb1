"""A figure's numbers as records for CSV, and the sentences below it."""

from __future__ import annotations

import math
from typing import Any

from dashboards.figure_data import FigureData
from dashboards.labels import axis_label, field_label, phrase
from dashboards.notes import override_notes, restriction_notes, scale_notes

__all__ = ["figure_columns", "figure_notes", "figure_records"]

MAX_FITS = 6  # described below the figure; more stand in its CSV file alone
_MEANS = ("panel", "hue", "style", "x", "mean", "std", "n", "ci_low", "ci_high")
_PAPER = ("paper", "paper_std", "paper_status")
_FIT = ("fit", "fit_a", "fit_b", "fit_b_low", "fit_b_high", "fit_r_squared", "fit_n")


def figure_columns(data: FigureData) -> list[str]:
    """Names of the records' values, in order; the paper's and a fit's where there are any."""
    paper = _PAPER if data.item.references else ()
    return [*_MEANS, *paper, *(_FIT if data.item.fit else ())]


def figure_records(data: FigureData) -> list[dict[str, Any]]:
    """One record a (series, x) with a mean or a number of the paper, in the figure's order."""
    value_at = {position: value for value, position in data.axis.positions.items()}
    rows: dict[tuple[int, float], dict[str, Any]] = {}
    for row in data.means.to_dict("records"):
        rows[_place(row)] = {str(k): v for k, v in row.items() if k not in ("series", "x")}
    for row in data.paper.to_dict("records"):
        status = "partial" if row["partial"] else "printed"
        paper = {"paper": row["value"], "paper_std": row["std"], "paper_status": status}
        rows[_place(row)] = rows.get(_place(row), {}) | paper
    records = []
    for series, x in sorted(rows):
        shown = x if data.item.x == "step" else value_at.get(x)
        about = vars(data.series[series]) | {"x": shown} | _fit(data, series, x)
        records.append({k: _finite(v) for k, v in (rows[series, x] | about).items()})
    return records


def _place(row: dict[Any, Any]) -> tuple[int, float]:
    x = float(row["x"])
    return int(row["series"]), math.inf if math.isnan(x) else x


def _fit(data: FigureData, series: int, x: float) -> dict[str, Any]:
    law = data.fits.get(series)
    if law is None:
        return {}
    numbers = {v for v in data.axis.positions if isinstance(v, float)}
    line = float(law.top1(x)) if x in numbers else None
    return {
        "fit": line,
        "fit_a": law.a,
        "fit_b": law.b,
        "fit_b_low": law.b_low,
        "fit_b_high": law.b_high,
        "fit_r_squared": law.r_squared,
        "fit_n": law.n,
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def figure_notes(data: FigureData) -> list[str]:
    """What a reader must know to read the figure, one sentence each."""
    text = [f"Mean over seeds{_about_the_lines(data)}; bands and bars are 95% t-intervals."]
    most = int(data.means["n"].max()) if len(data.means) else 0
    if short := int((data.means["n"] < most).sum()):
        text.append(f"{short} of {len(data.means)} means rest on fewer than {most} seeds.")
    if data.num_mixed:
        text.append(
            f"More than one teacher snapshot (weight digest) stands behind means of "
            f"{data.num_mixed} of {len(data.series)} series."
        )
    text += restriction_notes(data.restriction)
    text += override_notes(data.overrides)
    if data.scale is not None:
        text.append(f"A {data.scale.label}: the layout of the full experiment, not its scale.")
        text += scale_notes(data.scale)
    if len(data.paper):
        text.append("Hollow marks: the paper's numbers, with their ± where one is printed.")
    if data.item.fit:
        text += _about_the_fits(data)
    return text


def _about_the_lines(data: FigureData) -> str:
    """Which curves have a smooth one."""
    if not data.smoothed:
        return ""
    drawn = data.means["series"].nunique()
    some = f" ({len(data.smoothed)} of {drawn} curves)" if len(data.smoothed) < drawn else ""
    return f" with a LOWESS line over a tenth of the points{some}"


def _about_the_fits(data: FigureData) -> list[str]:
    x = field_label(data.item.x)
    text = [
        f"Dashed: error = a · {x}^(−b), error = 100 − {axis_label(data.item.metric).lower()}, by "
        f"least squares on logarithms over the means (names such as full are left out)."
    ]
    exponents = [law.b for law in data.fits.values()]
    if len(exponents) > MAX_FITS:
        low, high = min(exponents), max(exponents)
        text.append(f"b of {len(exponents)} series from {low:.3f} to {high:.3f}: see the CSV file.")
    for series, law in sorted(data.fits.items()) if len(exponents) <= MAX_FITS else ():
        s = data.series[series]
        fields = {data.item.panel: s.panel, data.item.hue: s.hue, data.item.style: s.style}
        name = ", ".join(phrase(f, v) for f, v in fields.items() if f is not None)
        r_squared = "" if math.isnan(law.r_squared) else f", R² {law.r_squared:.3f}"
        text.append(
            f"{name or 'Fit'}: b = {law.b:.3f} [{law.b_low:.3f}, {law.b_high:.3f}], "
            f"a = {law.a:.3g}{r_squared}, {law.n} points."
        )
    missing = len(data.series) - len(data.fits)
    if missing:
        text.append(f"{missing} of {len(data.series)} series have no fit (fewer than 3 points).")
    return text
