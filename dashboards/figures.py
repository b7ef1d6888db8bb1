"""Draws figures: plot functions take data and an `ax` and return the `ax`.

Colour follows the hue field and dash and marker the style field, so a setting looks the same in
every panel. The palette is seaborn's colour-blind one, or viridis for many numbers. Bands and bars
are 95% t-intervals over seeds; nothing is drawn for an interval of a single seed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray
from statsmodels.nonparametric.smoothers_lowess import lowess

from dashboards.figure_data import FigureData, Series
from dashboards.labels import Key, axis_label, phrase, value_label
from dashboards.power_law import PowerLaw

__all__ = [
    "LOWESS_FRACTION",
    "Look",
    "draw",
    "image",
    "plot_curve",
    "plot_paper",
    "plot_points",
    "plot_power_law",
    "smoothed",
]

LOWESS_FRACTION = 0.1
"""Share of a curve's points behind each smoothed value (the paper's LOWESS)."""

DPI = 150
_PANEL_WIDTH = 4.4  # inches, with its share of the labels
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
_MARKERS = "osD^vPX*"
_FIT: dict[str, Any] = {"linestyle": (0, (3.5, 2)), "linewidth": 1.0}
_PAPER: dict[str, Any] = {
    "marker": "o",
    "markersize": 5,
    "markerfacecolor": "white",
    "linestyle": "",
}
_NEUTRAL = "0.3"  # grey: a value that does not apply, beside a palette of numbers


@dataclass(frozen=True, kw_only=True)
class Look:
    """How one series is drawn; `label` as in the legend."""

    label: str
    color: Any
    dash: Any
    marker: str


def draw(data: FigureData) -> Figure:
    """All panels with one legend. Never touches pyplot's global state."""
    style = sns.axes_style("whitegrid", {"axes.edgecolor": "0.4", "grid.color": "0.87"})
    sizes = {"font.size": 9, "axes.titlesize": 10, "grid.linewidth": 0.6, "axes.linewidth": 0.8}
    with mpl.rc_context(style | sizes | {"pdf.fonttype": 42}):
        looks = series_looks(data)
        num_entries = len({look.label for look in looks}) + 2
        panels = data.panels
        num_columns = min(len(panels), 3)
        num_rows = -(-len(panels) // num_columns)
        height = max(3.1 * num_rows + 0.4, 0.21 * num_entries + 0.8)
        size = (_PANEL_WIDTH * num_columns + 1.7, height)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
        axes = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True, sharex=True)
        for ax, panel in zip(axes.flat, panels, strict=False):
            plot_panel(data, panel, looks, ax)
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        for ax in axes.flat[max(len(panels) - num_columns, 0) : len(panels)]:
            ax.set_xlabel(data.axis.label)
            ax.tick_params(labelbottom=True)
        for ax in axes[:, 0]:
            ax.set_ylabel(axis_label(data.item.metric))
        if data.item.metric.startswith("top1"):
            low, high = axes[0, 0].get_ylim()  # of all panels; bands of few seeds leave 0 to 100
            axes[0, 0].set_ylim(max(low, 0.0), min(high, 100.0))
        figure.suptitle(data.title, fontsize=11)
        _legend(figure, data, looks)
    return figure


def plot_panel(data: FigureData, panel: Key, looks: list[Look], ax: Axes) -> Axes:
    """The series of one panel. looks: one a series of `data`."""
    for index in data.of_panel(panel):
        means = data.means[data.means["series"] == index]
        if data.item.x == "step":
            plot_curve(means, looks[index], index in data.smoothed, ax)
        else:
            plot_points(means, looks[index], ax)
        if index in data.fits:
            plot_power_law(data.fits[index], looks[index], ax)
        plot_paper(data.paper[data.paper["series"] == index], looks[index], ax)
    if data.item.panel is not None:
        ax.set_title(_phrase(data, data.item.panel, panel))
    if data.means.empty:
        ax.text(0.5, 0.5, "no runs yet", transform=ax.transAxes, ha="center", color=_NEUTRAL)
    return _dress_x(data, ax)


def plot_curve(means: pd.DataFrame, look: Look, smooth: bool, ax: Axes) -> Axes:
    """A curve over steps. means: `x` ascending, `mean`, `ci_low`, `ci_high`. With `smooth` the
    raw mean turns faint under its LOWESS line, which is fitted on steps whatever the scale of the
    axis, as in the paper."""
    x, mean = means["x"].to_numpy(), means["mean"].to_numpy()
    width, alpha = (0.8, 0.35) if smooth else (1.4, 1.0)
    marker = look.marker if len(x) < 15 else ""
    line = {"color": look.color, "linestyle": look.dash}
    ax.plot(x, mean, linewidth=width, alpha=alpha, marker=marker, markersize=4, **line)
    ax.fill_between(x, means["ci_low"], means["ci_high"], color=look.color, alpha=0.15, linewidth=0)
    if smooth:
        ax.plot(x, smoothed(x, mean), linewidth=1.9, **line)
    return ax


def smoothed(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """LOWESS of y on x, (num_points,), each value from the nearest tenth of the points."""
    values: NDArray[np.float64] = lowess(y, x, frac=LOWESS_FRACTION, return_sorted=False)
    return values


def plot_points(means: pd.DataFrame, look: Look, ax: Axes) -> Axes:
    """Means with interval bars against a field. means: `x`, `mean`, `ci_low`, `ci_high`; a row with
    x NaN (a strategy without the field) becomes a level line across the axis with its band."""
    placed = means[means["x"].notna()]
    half = (placed["ci_high"] - placed["mean"]).fillna(0.0).to_numpy()
    if len(placed):
        ax.errorbar(
            placed["x"], placed["mean"], yerr=half, capsize=2.5, elinewidth=1, linewidth=1.4,
            markersize=4.5, color=look.color, linestyle=look.dash, marker=look.marker,
        )  # fmt: skip
    levels = means.loc[means["x"].isna(), ["mean", "ci_low", "ci_high"]].to_numpy(dtype=np.float64)
    for mean, low, high in levels:
        ax.axhline(mean, color=look.color, linestyle=look.dash, linewidth=1.4)
        if not np.isnan(low):
            ax.axhspan(low, high, color=look.color, alpha=0.12, linewidth=0)
    return ax


def plot_power_law(law: PowerLaw, look: Look, ax: Axes) -> Axes:
    """The fitted accuracy over the values of x that it was fitted to."""
    x = np.geomspace(law.x_min, law.x_max, 100)
    ax.plot(x, law.top1(x), color=look.color, zorder=1.5, **_FIT)
    return ax


def plot_paper(paper: pd.DataFrame, look: Look, ax: Axes) -> Axes:
    """The paper's numbers as hollow marks, with their ± where they have one. paper: `x`, `value`,
    `std`; a row without a place on the axis becomes a short mark at its left end."""
    levels = paper["x"].isna()
    bars: dict[str, Any] = {
        "elinewidth": 0.8,
        "capsize": 1.5,
        "color": look.color,
        "zorder": 4,
        **_PAPER,
        "marker": look.marker,
    }
    for rows, transform in ((paper[~levels], ax.transData), (paper[levels], None)):
        if len(rows):
            x = rows["x"].to_numpy() if transform else np.full(len(rows), 0.015)
            place = transform or ax.get_yaxis_transform()
            error = rows["std"].fillna(0.0).to_numpy()
            ax.errorbar(x, rows["value"], yerr=error, transform=place, **bars)
    return ax


def series_looks(data: FigureData) -> list[Look]:
    """One look a series: colours by hue, dashes and markers by style."""
    colors = _colors(sorted({s.hue for s in data.series}, key=data.rank("hue")))
    styles = sorted({s.style for s in data.series}, key=data.rank("style"))
    return [
        Look(
            label=_label(data, series),
            color=colors[series.hue],
            dash=_DASHES[styles.index(series.style) % len(_DASHES)],
            marker=_MARKERS[styles.index(series.style) % len(_MARKERS)],
        )
        for series in data.series
    ]


def _colors(values: list[Key]) -> dict[Key, Any]:
    """Named values get the colour-blind palette; five numbers and more get a sequence."""
    numbers = [value for value in values if isinstance(value, float)]
    named = [value for value in values if not isinstance(value, float)]
    if len(numbers) < 5 and len(values) <= 10:
        return dict(zip(values, sns.color_palette("colorblind", len(values)), strict=True))
    # the last, yellow end of viridis is too light for a line on white
    sequence = sns.color_palette("viridis", len(numbers) + 1)[:-1]
    names = [_NEUTRAL, *sns.color_palette("colorblind", len(named))][: len(named)]
    return dict(zip(numbers, sequence, strict=True)) | dict(zip(named, names, strict=True))


def _label(data: FigureData, series: Series) -> str:
    fields = {data.item.hue: series.hue, data.item.style: series.style}
    texts = [_phrase(data, field, value) for field, value in fields.items() if field is not None]
    text = ", ".join(texts) or axis_label(data.item.metric)
    panel = data.item.panel
    everywhere = panel is not None and series.panel is None and data.panels != [None]
    # strategy A, shown beside strategies that have a teacher in each panel
    return f"{text}, {phrase(panel, None)}" if panel is not None and everywhere else text


def _phrase(data: FigureData, field: str, value: Key) -> str:
    """As in a legend; in a pilot with what its runs have instead."""
    actual = data.here.get(field, {}).get(value)
    here = ", ".join(value_label(field, one) for one in actual or ())
    return f"{phrase(field, value)} (here {here})" if here else phrase(field, value)


def _dress_x(data: FigureData, ax: Axes) -> Axes:
    if data.item.scale == "log" and not data.axis.categorical:
        ax.set_xscale("log")
    if data.item.x == "step":
        if data.item.scale != "log":  # a pilot of few steps: no ticks between them
            ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        return ax
    if data.axis.ticks and (len(data.axis.ticks) <= 12 or data.axis.categorical):
        positions, labels = zip(*data.axis.ticks, strict=True)
        labels = tuple(label.replace(" (", "\n(") for label in labels)  # a pilot's: 90% (here 50%)
        if _is_crowded(data, positions, labels):
            ax.set_xticks(positions, labels, rotation=40, ha="right", rotation_mode="anchor")
        else:
            ax.set_xticks(positions, labels)
        ax.xaxis.set_minor_locator(NullLocator())
    return ax


def _is_crowded(data: FigureData, positions: Sequence[float], labels: Sequence[str]) -> bool:
    """Whether level tick labels would touch."""
    is_log = data.item.scale == "log" and not data.axis.categorical
    at = np.log(positions) if is_log else np.array(positions)
    inches = (at - at.min()) / (np.ptp(at) or 1.0) * 0.85 * (_PANEL_WIDTH - 0.6)
    longest = [max(map(len, label.splitlines())) for label in labels]
    halves = np.array(longest) * 0.045 + 0.04
    order = np.argsort(inches)
    return bool((np.diff(inches[order]) < halves[order][1:] + halves[order][:-1]).any())


def _legend(figure: Figure, data: FigureData, looks: list[Look]) -> None:
    """One entry a look, at the right, then the fits and the paper's numbers. Series that differ
    only in their panel share an entry."""
    mark = data.item.x != "step" or len(data.paper) > 0
    entries = {
        look.label: Line2D(
            [], [], color=look.color, linestyle=look.dash, marker=look.marker if mark else "",
            markersize=4.5, linewidth=1.6, label=look.label,
        )
        for look in looks
    }  # fmt: skip
    handles = list(entries.values()) if data.item.hue or data.item.style else []
    if data.fits:
        handles.append(Line2D([], [], color=_NEUTRAL, label="power law of the error", **_FIT))
    if len(data.paper):
        handles.append(Line2D([], [], color=_NEUTRAL, label="paper (hollow)", **_PAPER))
    if handles:
        figure.legend(handles=handles, loc="outside right center", frameon=False)


def image(figure: Figure, kind: str) -> bytes:
    """Bytes of a drawn figure. kind: `png` (150 dpi) or `pdf`; without a time or a tool's name."""
    out = io.BytesIO()
    metadata: dict[str, Any] = {"png": {"Software": None}, "pdf": {"CreationDate": None}}[kind]
    figure.savefig(out, format=kind, dpi=DPI, metadata=metadata)
    return out.getvalue()
