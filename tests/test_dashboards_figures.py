"""The numbers that figures show, and what ends up on the axes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dashboards_store import (
    STEPS,
    Settings,
    grid,
    read_json,
    top1,
    write_json,
    write_plan,
    write_run,
)
from scipy import stats
from statsmodels.nonparametric.smoothers_lowess import lowess

from dashboards.errors import ReportError
from dashboards.figure_data import FigureData, figure_data
from dashboards.figure_text import figure_notes
from dashboards.figures import draw, image, series_looks, smoothed
from dashboards.layout import REPORT_ITEMS, FigureItem
from dashboards.results import load_plan, load_results

CURVES: dict[str, Any] = {"figure": "curves", "hue": "strategy", "style": "teacher.accuracy"}


def data_of(
    store: Path, item: dict[str, Any], points: list[Settings], steps: Any = STEPS, **more: Any
) -> FigureData:
    write_plan(store, points, [item], **more)
    for point in points:
        write_run(store, point, steps=steps)
    (parsed,) = REPORT_ITEMS.validate_python([item])
    assert isinstance(parsed, FigureItem)
    return figure_data(load_results(str(store), load_plan(str(store), "demo")), parsed)


def test_curves_are_means_with_t_intervals_over_seeds(tmp_path: Path) -> None:
    data = data_of(tmp_path, CURVES, grid())
    assert (data.filled, data.planned) == (5, 5)
    for row in data.means.to_dict("records"):
        series = data.series[int(row["series"])]
        settings = {"strategy": series.hue, "teacher.accuracy": series.style}
        values = [top1(settings | {"seed": seed}, int(row["x"])) for seed in range(5)]
        low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
        assert row["n"] == 5
        assert (row["mean"], row["ci_low"], row["ci_high"]) == pytest.approx(
            (np.mean(values), low, high)
        )


def test_means_over_several_teacher_snapshots_say_so(tmp_path: Path) -> None:
    data = data_of(tmp_path, CURVES, grid())
    assert data.num_mixed == 0
    write_run(tmp_path, grid("B", (30.0,))[0], digest="e" * 64)
    results = load_results(str(tmp_path), load_plan(str(tmp_path), "demo"))
    assert figure_data(results, data.item).num_mixed == 1
    (note,) = [n for n in figure_notes(figure_data(results, data.item)) if "snapshot" in n]
    assert "1 of 5 series" in note


def test_a_curve_ends_at_the_points_horizon(tmp_path: Path) -> None:
    assert data_of(tmp_path, CURVES, grid(), horizon=100).means["x"].max() == 100


def test_legends_speak_the_fields_words_and_colours_follow_the_hue(tmp_path: Path) -> None:
    data = data_of(tmp_path, CURVES, grid())
    looks = series_looks(data)
    assert [look.label for look in looks] == [
        "Strategy A, no teacher",
        "Strategy B, teacher 30%",
        "Strategy B, teacher 60%",
        "Strategy C, teacher 30%",
        "Strategy C, teacher 60%",
    ]
    assert looks[1].color == looks[2].color != looks[3].color
    assert looks[1].dash == looks[3].dash != looks[2].dash


def test_the_full_set_stands_right_of_the_numbers(tmp_path: Path) -> None:
    item = {"figure": "ipc", "x": "ipc", "hue": "strategy", "scale": "log"}
    points = grid("AB", [30.0], ipc=("full", 10, 100, 1000))
    data = data_of(tmp_path, item, points)
    assert data.axis.positions == {10: 10, 100: 100, 1000: 1000, "full": pytest.approx(1e4)} | {
        None: pytest.approx(np.nan, nan_ok=True)
    }
    (ax,) = draw(data).axes
    assert [text.get_text() for text in ax.get_xticklabels()] == ["10", "100", "1,000", "full"]
    assert ax.get_xscale() == "log"


def test_names_alone_are_categories(tmp_path: Path) -> None:
    item = {"figure": "f", "x": "augmentation", "scale": "log"}
    points = grid("B", [30.0], augmentation=("std", "none"))
    data = data_of(tmp_path, item, points)
    assert data.axis.ticks == ((0.0, "StdAug"), (1.0, "NoAug"))
    assert draw(data).axes[0].get_xscale() == "linear"


def test_a_few_steps_have_ticks_at_whole_ones(tmp_path: Path) -> None:
    figure = draw(data_of(tmp_path, CURVES, grid(), steps=(1, 2, 4), horizon=4))
    figure.canvas.draw()
    ticks = [tick for ax in figure.axes for tick in ax.get_xticks()]
    assert ticks
    assert all(float(tick).is_integer() for tick in ticks)


def test_strategy_a_is_a_level_line_across_teachers(tmp_path: Path) -> None:
    data = data_of(tmp_path, {"figure": "f", "x": "teacher.accuracy", "hue": "strategy"}, grid())
    level = data.means[data.means["x"].isna()]
    values = [
        top1({"strategy": "A", "teacher.accuracy": None, "seed": seed}, 300) for seed in range(5)
    ]
    assert level["mean"].tolist() == pytest.approx([np.mean(values)])
    lines = draw(data).axes[0].get_lines()
    assert any(np.ptp(np.asarray(line.get_ydata(), dtype=float)) == 0 for line in lines)


def test_strategy_a_stands_in_every_panel(tmp_path: Path) -> None:
    item = {"figure": "f", "hue": "strategy", "panel": "teacher.accuracy"}
    data = data_of(tmp_path, item, grid())
    assert data.panels == [30.0, 60.0]
    assert [len(data.of_panel(panel)) for panel in data.panels] == [3, 3]
    assert [ax.get_title() for ax in draw(data).axes] == ["teacher 30%", "teacher 60%"]


def test_a_line_a_step_against_the_teachers(tmp_path: Path) -> None:
    item = {"figure": "f", "x": "teacher.accuracy", "hue": "step", "steps": [300, 10, 50]}
    data = data_of(tmp_path, item, grid("B"))
    assert [series.hue for series in data.series] == [10, 50, 300]
    values = [top1({"strategy": "B", "teacher.accuracy": 60.0, "seed": s}, 10) for s in range(5)]
    row = data.means[(data.means["series"] == 0) & (data.means["x"] == 60)]
    assert row["mean"].tolist() == pytest.approx([np.mean(values)])


def test_smoothing_is_lowess_over_a_tenth_and_needs_enough_points(tmp_path: Path) -> None:
    x = np.arange(100.0)
    y = np.sin(x / 9)
    np.testing.assert_allclose(smoothed(x, y), lowess(y, x, frac=0.1)[:, 1])
    item = CURVES | {"smooth": "lowess"}
    few = data_of(tmp_path / "few", item, grid("A"))
    many = data_of(tmp_path / "many", item, grid("A"), steps=range(5, 301, 5))
    drawn = [len(draw(data).axes[0].get_lines()) for data in (few, many)]
    assert drawn == [1, 2]
    assert "LOWESS" not in figure_notes(few)[0]
    assert "with a LOWESS line over a tenth of the points;" in figure_notes(many)[0]
    both = data_of(tmp_path / "both", item, [*grid("A"), *grid("B", (30.0,))])
    for point in grid("A"):
        write_run(tmp_path / "both", point, steps=range(5, 301, 5))
    results = load_results(str(tmp_path / "both"), load_plan(str(tmp_path / "both"), "demo"))
    assert "(1 of 2 curves)" in figure_notes(figure_data(results, both.item))[0]


def test_means_over_fewer_seeds_are_counted(tmp_path: Path) -> None:
    data = data_of(tmp_path, CURVES, grid("A"))
    assert not any("rest on fewer" in note for note in figure_notes(data))
    write_run(tmp_path, grid("A")[0], steps=STEPS[:-1])
    results = load_results(str(tmp_path), load_plan(str(tmp_path), "demo"))
    notes = figure_notes(figure_data(results, data.item))
    assert f"1 of {len(STEPS)} means rest on fewer than 5 seeds." in notes


def test_hidden_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"teacher\.accuracy"):
        data_of(tmp_path, {"figure": "f", "hue": "strategy"}, grid())


@pytest.mark.parametrize("x", ["step", "teacher.accuracy"])
def test_nothing_measured_is_still_a_figure(tmp_path: Path, x: str) -> None:
    item = {"figure": "f", "x": x, "hue": "strategy", "where": {"teacher.accuracy": 30}}
    write_plan(tmp_path, grid(), [item])
    (parsed,) = REPORT_ITEMS.validate_python([item])
    assert isinstance(parsed, FigureItem)
    data = figure_data(load_results(str(tmp_path), load_plan(str(tmp_path), "demo")), parsed)
    assert data.filled == 0 < data.planned
    assert image(draw(data), "png").startswith(b"\x89PNG")


def test_equal_data_give_equal_images(tmp_path: Path) -> None:
    data = data_of(tmp_path, CURVES, grid())
    for kind in ("png", "pdf"):
        assert image(draw(data), kind) == image(draw(data), kind)


def test_a_curve_has_what_its_own_sweep_asked_for(tmp_path: Path) -> None:
    """Another sweep had one run evaluated at 20, 50 and 200 too: a longer one asks more often."""
    data = data_of(tmp_path, CURVES, grid("A"))
    assert data.means["x"].tolist() == list(STEPS)
    file = tmp_path / "sweeps" / "demo" / "plan.json"
    plan = read_json(file)
    for point in plan["points"]:
        point["schedule"] = 1
    write_json(file, plan | {"schedules": [[20], [10, 100, 300]]})
    results = load_results(str(tmp_path), load_plan(str(tmp_path), "demo"))
    assert figure_data(results, data.item).means["x"].tolist() == [10, 100, 300]
    plan["points"][0]["schedule"] = 2
    write_json(file, plan | {"schedules": [[20], [10, 100, 300]]})
    with pytest.raises(ReportError, match="schedules has no place 2"):
        load_plan(str(tmp_path), "demo")


def test_accuracies_end_at_0_and_100_whatever_the_bands_do(tmp_path: Path) -> None:
    data = data_of(tmp_path, CURVES, grid())
    data.means["ci_low"], data.means["ci_high"] = -30.0, 140.0  # of two seeds
    low, high = draw(data).axes[0].get_ylim()
    assert (low, high) == (0.0, 100.0)
    close = dataclasses.replace(data, means=data.means.assign(ci_low=20.0, ci_high=40.0, mean=30.0))
    assert draw(close).axes[0].get_ylim()[1] < 50


def test_the_papers_numbers_have_the_marks_of_their_series(tmp_path: Path) -> None:
    """Colours are the hue's: without, those of two styles could not be told apart."""
    data = data_of(tmp_path, CURVES, grid())
    looks = series_looks(data)
    rows = [{"series": i, "x": 50.0, "value": 40.0 + i, "std": 0.5} for i in range(len(looks))]
    figure = draw(dataclasses.replace(data, paper=pd.DataFrame(rows)))
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert [line.get_marker() for line in hollow] == [look.marker for look in looks]
    entries = {line.get_label(): line.get_marker() for line in figure.legends[0].get_lines()}
    assert {look.label: look.marker for look in looks} | {"paper (hollow)": "o"} == entries
