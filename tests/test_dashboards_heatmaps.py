"""Heat maps, power laws and the paper's points on figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dashboards_store import Settings, grid, top1, write_plan, write_run
from scipy import stats

from dashboards.drawn import Drawn, drawn
from dashboards.figure_data import FigureData, figure_data
from dashboards.figures import image
from dashboards.heatmaps import draw_heatmap, heatmap_table
from dashboards.layout import REPORT_ITEMS, FigureItem
from dashboards.power_law import fit_power_law
from dashboards.results import Results, load_plan, load_results

AUGMENTATIONS = ("none", "std", "mixup")
POINTS = grid("B", [30.0], augmentation=AUGMENTATIONS, **{"teacher.augmentation": AUGMENTATIONS})
HEATMAP: dict[str, Any] = {
    "figure": "map",
    "kind": "heatmap",
    "x": "teacher.augmentation",
    "y": "augmentation",
}
IPC = (10, 20, 50, 100)
FIT: dict[str, Any] = {"figure": "f", "x": "ipc", "hue": "strategy", "scale": "log", "fit": "power"}


def power(settings: Mapping[str, Any], step: int) -> float:
    """error = 120 · ipc^(−0.3), whatever the rest."""
    ipc = settings["ipc"] if isinstance(settings["ipc"], int) else 5000
    return float(100 - 120 * ipc**-0.3)


def results_of(
    store: Path, item: dict[str, Any], points: list[Settings], score: Any = top1, **plan: Any
) -> tuple[Results, FigureItem]:
    for point in points:
        write_run(store, point, score=score)
    write_plan(store, points, [item], **plan)
    (parsed,) = REPORT_ITEMS.validate_python([item])
    assert isinstance(parsed, FigureItem)
    return load_results(str(store), load_plan(str(store), "demo")), parsed


def lines(store: Path, item: dict[str, Any], points: list[Settings], **more: Any) -> FigureData:
    return figure_data(*results_of(store, item, points, **more))


def texts(shown: Drawn) -> list[str]:
    return [text.get_text() for ax in shown.figure.axes for text in ax.texts]


def test_a_heat_map_says_each_mean_in_its_square(tmp_path: Path) -> None:
    reference = {
        "at": {"augmentation": "std", "teacher.augmentation": "mixup"},
        "review_value": 44.3,
        "status": "partial",
    }
    shown = drawn(*results_of(tmp_path, HEATMAP | {"references": [reference]}, POINTS))
    assert (shown.filled, shown.planned, shown.unit) == (9, 9, "cells")
    ax = shown.figure.axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["NoAug", "StdAug", "MixUp"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["NoAug", "StdAug", "MixUp"]
    values = [
        top1(
            {"strategy": "B", "teacher.accuracy": 30.0, "augmentation": "std"}
            | {"teacher.augmentation": "mixup", "seed": seed},
            300,
        )
        for seed in range(5)
    ]
    annotated = [
        (round(t.get_position()[0] - 0.5), int(t.get_position()[1]), t.get_text()) for t in ax.texts
    ]
    assert (2, 1, f"{np.mean(values):.2f}") in annotated
    assert (2, 1, "paper 44.30") in annotated
    assert len(annotated) == 10
    assert "as far as it is legible" in shown.notes


def test_a_heat_map_without_runs_is_empty_and_with_a_seed_less_says_n(tmp_path: Path) -> None:
    item = HEATMAP | {"title": "none yet"}
    write_plan(tmp_path, POINTS, [item])
    (parsed,) = REPORT_ITEMS.validate_python([item])
    assert isinstance(parsed, FigureItem)
    plan = load_plan(str(tmp_path), "demo")
    assert texts(drawn(load_results(str(tmp_path), plan), parsed)) == []
    for point in POINTS[:4]:
        write_run(tmp_path, point)
    (text,) = texts(drawn(load_results(str(tmp_path), plan), parsed))
    assert text.endswith(" (n=4)")


def test_a_heat_map_has_a_panel_a_value_and_equal_bytes(tmp_path: Path) -> None:
    points = [p | {"teacher.accuracy": t} for t in (30.0, 60.0) for p in POINTS]
    results, item = results_of(tmp_path, HEATMAP | {"panel": "teacher.accuracy"}, points)
    table = heatmap_table(results, item)
    figure = draw_heatmap(table)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["teacher 30%", "teacher 60%"]
    assert image(figure, "png") == image(draw_heatmap(table), "png")


def test_the_fit_recovers_a_known_power_law() -> None:
    x = np.array([10.0, 20, 50, 100, 1000])
    law = fit_power_law(x, 100 - 80 * x**-0.35)
    assert law is not None
    assert (law.a, law.b, law.n) == (pytest.approx(80), pytest.approx(0.35), 5)
    assert (law.b_low, law.b_high) == (pytest.approx(0.35), pytest.approx(0.35))
    assert law.r_squared == pytest.approx(1)
    assert law.top1(x) == pytest.approx(100 - 80 * x**-0.35)


def test_the_exponents_interval_is_that_of_a_regression_on_logarithms() -> None:
    rng = np.random.default_rng(0)
    x = np.geomspace(10, 5000, 9)
    top1_x = 100 - 80 * x**-0.35 * np.exp(rng.normal(0, 0.05, 9))
    law = fit_power_law(x, top1_x)
    assert law is not None
    regression = stats.linregress(np.log(x), np.log(100 - top1_x))
    half = stats.t.ppf(0.975, 7) * regression.stderr
    assert (law.b_low, law.b_high) == pytest.approx(
        (-regression.slope - half, -regression.slope + half)
    )
    assert law.r_squared == pytest.approx(regression.rvalue**2)


@pytest.mark.parametrize(
    ("x", "top1_x"),
    [
        ([10, 20], [50, 60]),
        ([10, 10, 20], [50, 50, 60]),
        ([10, 20, 50], [50, 60, np.nan]),
        ([10, 20, 50], [50, 60, 100]),
        ([0, 20, 50], [50, 60, 70]),
    ],
)
def test_fewer_than_three_values_of_x_give_no_fit(x: list[float], top1_x: list[float]) -> None:
    assert fit_power_law(np.array(x, float), np.array(top1_x, float)) is None


def test_equal_errors_have_exponent_zero_and_no_r_squared() -> None:
    law = fit_power_law(np.array([10.0, 20, 50]), np.full(3, 60.0))
    assert law is not None
    assert law.b == pytest.approx(0)
    assert np.isnan(law.r_squared)


def test_a_fit_over_ipc_is_drawn_and_listed_and_full_is_no_number(tmp_path: Path) -> None:
    points = grid("AB", [30.0], ipc=(*IPC, "full"))
    results, item = results_of(tmp_path, FIT, points, score=power)
    data = figure_data(results, item)
    assert [law.n for law in data.fits.values()] == [4, 4]
    assert [law.b for law in data.fits.values()] == pytest.approx([0.3, 0.3])
    shown = drawn(results, item)
    assert "Strategy A: b = 0.300 [0.300, 0.300], a = 120, R² 1.000, 4 points." in shown.notes
    rows = list(csv.DictReader(io.StringIO(shown.csv)))
    assert {row["x"]: bool(row["fit"]) for row in rows} == {
        **dict.fromkeys(map(str, IPC), True), "full": False,
    }  # fmt: skip
    assert {row["fit_b"] for row in rows} == {"0.3"}
    (legend,) = shown.figure.legends
    assert [t.get_text() for t in legend.get_texts()][-1] == "power law of the error"


def test_the_papers_points_stand_on_curves_and_on_fields(tmp_path: Path) -> None:
    at = {"strategy": "B", "teacher.accuracy": 30, "step": 100}
    references = [
        {"at": at, "value": 40.0, "std": 0.4},
        {"at": at | {"step": 9999}, "value": 1.0},
        {"at": at | {"strategy": "Z"}, "value": 2.0},
        {"at": {"teacher.accuracy": 30, "step": 100}, "kind": "gain", "value": 1.1},
    ]
    curves = {"figure": "c", "hue": "strategy", "style": "teacher.accuracy"}
    data = lines(tmp_path, curves | {"references": references}, grid())
    (row,) = data.paper.to_dict("records")
    series = data.series[int(row["series"])]
    assert (series.hue, series.style, row["x"]) == ("B", 30.0, 100)
    assert (row["value"], row["std"], row["partial"]) == (40, 0.4, False)
    field = {"figure": "x", "x": "teacher.accuracy", "hue": "strategy", "steps": [100]}
    data = lines(tmp_path, field | {"references": references}, grid())
    (row,) = data.paper.to_dict("records")
    assert (data.series[int(row["series"])].hue, row["x"]) == ("B", 30)


def test_a_pilots_figure_leaves_out_what_has_no_run_and_says_what_is_here(tmp_path: Path) -> None:
    scale = {"name": "pilot", "notes": ["x"], "steps": {"300": 100, "50": 20}}

    def actual(point: Settings) -> Settings | None:
        one = {30.0: {"teacher.accuracy": 20.0, "horizon": 100}, None: {"horizon": 100}}
        return one.get(point["teacher.accuracy"])

    item = {"figure": "c", "hue": "strategy", "style": "teacher.accuracy"}
    reference = {"at": {"strategy": "B", "teacher.accuracy": 30, "step": 50}, "value": 40.0}
    results, parsed = results_of(
        tmp_path, item | {"references": [reference]}, grid(), scale=scale, actual=actual
    )
    data = figure_data(results, parsed)
    assert {series.style for series in data.series} == {None, 30.0}
    assert data.means["x"].max() == 100
    assert data.paper["x"].tolist() == [20]
    assert data.title.endswith("(pilot)")
    (legend,) = drawn(results, parsed).figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert "Strategy B, teacher 30% (here 20%)" in labels
    field = {"figure": "x", "x": "teacher.accuracy", "hue": "strategy", "steps": [50]}
    data = lines(tmp_path, field, grid(), scale=scale, actual=actual)
    assert data.axis.ticks == ((30.0, "30% (here 20%)"),)
    values = [top1({"strategy": "B", "teacher.accuracy": 30.0, "seed": s}, 20) for s in range(5)]
    b = [i for i, series in enumerate(data.series) if series.hue == "B"]
    assert data.means.loc[data.means["series"].isin(b), "mean"].tolist() == [
        pytest.approx(np.mean(values))
    ]
