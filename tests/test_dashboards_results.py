"""What is read from a store, and that nothing in it can stop the reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dashboards_store import (
    STEPS,
    TEACHER,
    Settings,
    digest_of,
    grid,
    read_json,
    run_name,
    top1,
    write_json,
    write_plan,
    write_run,
    write_snapshot,
)

from dashboards.aggregates import MAX_STEPS, aggregate
from dashboards.errors import ReportError
from dashboards.results import Results, load_plan, load_results


def read(store: Path) -> Results:
    return load_results(str(store), load_plan(str(store), "demo"))


def filled(store: Path, points: list[Settings], **more: Any) -> Results:
    write_plan(store, points, [], **more)
    for point in points:
        write_run(store, point)
    for preset in (30.0, 60.0):
        write_snapshot(store, preset)
    return read(store)


def test_one_row_a_point_and_step_with_the_values_written(tmp_path: Path) -> None:
    points = grid(seeds=(0, 1))
    frame = filled(tmp_path, points).frame()
    assert len(frame) == len(points) * len(STEPS)
    for row in frame.to_dict("records"):
        settings = {name: row[name] for name in ("strategy", "teacher.accuracy", "seed")}
        settings["teacher.accuracy"] = None if row["strategy"] == "A" else row["teacher.accuracy"]
        assert row["top1_h"] == pytest.approx(top1(settings, row["step"]))
        assert row["complete"]


def test_points_that_share_a_run_appear_each_up_to_their_horizon(tmp_path: Path) -> None:
    (point,) = grid(strategies="A", seeds=[0])
    write_run(tmp_path, point)
    write_plan(tmp_path, [point], [])
    path = tmp_path / "sweeps/demo/plan.json"
    plan = read_json(path)
    plan["points"] = [plan["points"][0] | {"settings": point | {"ipc": ipc}} for ipc in (1, 2)]
    plan["points"][0]["horizon"] = 50
    write_json(path, plan)
    steps = read(tmp_path).frame().groupby("ipc")["step"].max()
    assert steps.to_dict() == {1: 50, 2: 300}


def test_settings_that_all_points_share_are_every_points_settings(tmp_path: Path) -> None:
    results = filled(tmp_path, grid(seeds=[0]), settings={"dataset": "digits"})
    assert {point.settings["dataset"] for point in results.plan.points} == {"digits"}


def test_absent_partial_failed_and_damaged_runs_are_told_apart(tmp_path: Path) -> None:
    absent, partial, failed, damaged, whole = grid(strategies="A", seeds=range(5))
    write_plan(tmp_path, [absent, partial, failed, damaged, whole], [])
    write_run(tmp_path, partial, steps=STEPS[:3], complete=False)
    for point in (damaged, whole):
        write_run(tmp_path, point)
    (tmp_path / "runs" / run_name(failed)).mkdir()
    (tmp_path / "runs" / run_name(failed) / "failure.json").write_text("{}")
    (tmp_path / "runs" / run_name(damaged) / "metrics.parquet").write_bytes(b"PAR1 half a file")
    results = read(tmp_path)
    states = [results.runs[p.run].state for p in results.plan.points]
    assert states == ["absent", "partial", "failed", "absent", "complete"]
    assert [run_name(damaged) in problem for problem in results.problems] == [True]
    assert len(results.frame()) == 3 + len(STEPS)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_result_leaves_the_evaluations_and_is_told(
    tmp_path: Path, content: bytes
) -> None:
    (point,) = grid(strategies="B", teachers=[30.0], seeds=[0])
    filled(tmp_path, [point])
    (tmp_path / "runs" / run_name(point) / "result.json").write_bytes(content)
    results = read(tmp_path)
    assert results.runs[run_name(point)].state == "partial"
    assert len(results.problems) == 1
    assert len(results.frame()) == len(STEPS)


@pytest.mark.parametrize("file", ["result.json", "metrics.parquet"])
def test_a_flipped_digit_is_told_and_not_shown(tmp_path: Path, file: str) -> None:
    (point,) = grid(strategies="A", seeds=[0])
    filled(tmp_path, [point])
    path = tmp_path / "runs" / run_name(point) / file
    data = bytearray(path.read_bytes())
    at = data.index(b"300") if file == "result.json" else len(data) // 3
    data[at] ^= 1
    path.write_bytes(bytes(data))
    results = read(tmp_path)
    (problem,) = results.problems
    assert f"{run_name(point)}/{file}: damaged (its checksum does not fit)" in problem
    assert len(results.frame()) == (len(STEPS) if file == "result.json" else 0)


def test_a_plan_without_a_seal_says_what_to_do(tmp_path: Path) -> None:
    write_plan(tmp_path, grid(seeds=[0]), [])
    path = tmp_path / "sweeps/demo/plan.json"
    path.write_text(json.dumps(read_json(path)))
    with pytest.raises(ReportError, match="store check --seal"):
        load_plan(str(tmp_path), "demo")


def test_a_run_shorter_than_a_point_asks_is_not_complete(tmp_path: Path) -> None:
    results = filled(tmp_path, grid(strategies="A", seeds=[0]), horizon=1000)
    assert not results.is_complete(results.plan.points[0])


def test_an_unfinished_run_has_the_digest_of_the_snapshot_it_asks(tmp_path: Path) -> None:
    (point,) = grid(strategies="B", teachers=[30.0], seeds=[0])
    write_plan(tmp_path, [point], [])
    write_run(tmp_path, point, complete=False)
    write_snapshot(tmp_path, 30.0, digest="d" * 64)
    assert read(tmp_path).runs[run_name(point)].teacher_digest == "d" * 64


def test_only_snapshots_that_the_sweep_used_are_its_teachers(tmp_path: Path) -> None:
    filled(tmp_path, grid(strategies="B", teachers=[30.0], seeds=[0]))
    (snapshot,) = read(tmp_path).snapshots
    assert (snapshot.run, snapshot.preset, snapshot.digest) == (TEACHER, 30.0, digest_of(30.0))


def test_a_sweep_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    write_plan(tmp_path, grid(seeds=[0]), [])
    with pytest.raises(ReportError, match="sweeps of this store: demo"):
        load_plan(str(tmp_path), "dmeo")


def test_a_plan_that_is_no_plan_is_an_error_with_its_path(tmp_path: Path) -> None:
    write_plan(tmp_path, grid(seeds=[0]), [])
    write_json(tmp_path / "sweeps/demo/plan.json", {"sweep": "demo", "points": [{}]})
    with pytest.raises(ReportError, match=r"sweeps/demo/plan\.json"):
        load_plan(str(tmp_path), "demo")


def test_an_item_with_a_field_that_no_point_has_is_refused(tmp_path: Path) -> None:
    write_plan(tmp_path, grid(seeds=[0]), [{"table": "t", "rows": ["stratgy"]}])
    with pytest.raises(ReportError, match="t: stratgy"):
        load_plan(str(tmp_path), "demo")


def test_an_empty_store_gives_an_empty_frame(tmp_path: Path) -> None:
    write_plan(tmp_path, grid(seeds=[0]), [])
    results = read(tmp_path)
    assert results.frame().empty
    assert aggregate(results)[0].series == {}


def test_aggregates_are_means_over_the_seeds_that_have_the_step(tmp_path: Path) -> None:
    points = grid(strategies="B", teachers=[30.0], seeds=range(4))
    write_plan(tmp_path, points, [])
    for point in points[:3]:
        write_run(tmp_path, point)
    write_run(tmp_path, points[3], steps=STEPS[:2], complete=False)
    write_snapshot(tmp_path, 30.0)
    (group,) = aggregate(read(tmp_path))
    assert group.settings == {"dataset": "digits", "strategy": "B", "teacher.accuracy": 30.0}
    assert group.run_names == tuple(sorted(map(run_name, points)))
    assert (group.num_planned, group.digests) == (4, (digest_of(30.0),))
    for step, mean, std, n, low, high in group.series["top1_h"]:
        values = [top1(p, step) for p in (points if step <= STEPS[1] else points[:3])]
        assert n == len(values)
        assert mean == pytest.approx(np.mean(values))
        assert std == pytest.approx(np.std(values, ddof=1))
        assert low < mean < high
    assert [row[0] for row in group.series["top1_h"]] == list(STEPS)


def test_long_series_are_thinned_and_keep_their_ends(tmp_path: Path) -> None:
    (point,) = grid(strategies="A", seeds=[0])
    write_plan(tmp_path, [point], [], horizon=900)
    write_run(tmp_path, point, steps=range(1, 1001))
    (group,) = aggregate(read(tmp_path))
    steps = [row[0] for row in group.series["top1_h"]]
    assert len(steps) == MAX_STEPS
    assert (steps[0], steps[-1]) == (1, 900)  # never beyond what the sweep asks
