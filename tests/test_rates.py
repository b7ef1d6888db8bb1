"""Rates of devices, and the hours that a plan takes by them."""

from __future__ import annotations

import dataclasses
import io
import json
from importlib import resources
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from dashboards.seals import seal_parquet
from orchestrator import calibration, cli, paths
from orchestrator.admission import Shape
from orchestrator.calibration import calibrate
from orchestrator.environment import environment
from orchestrator.errors import StoreError, UserError
from orchestrator.estimate import ADAPTIVE_IMAGES, Pace, group_of, measured_rates
from orchestrator.plan import Plan, make_plan
from orchestrator.planview import _pace_remarks
from orchestrator.rates import EVALUATION, Group, Rate, Rates, load_rates, rates_path, save_rates
from orchestrator.store import Store
from orchestrator.units import SEARCH_STEPS, Unit, Work
from tests.driving import GRID, TINY, tiny_plan
from tests.sweep_files import sweep_of, write
from trainers.data.catalogue import OFFICIAL
from trainers.schedule import evaluation_steps
from trainers.spec import Backbone, Runtime, Screening

FILES = resources.files("sweeps").joinpath("rates").iterdir()
SHIPPED = [file.name.removesuffix(".json") for file in FILES if file.name.endswith(".json")]
GROUP = Group("cifar10", Backbone(name="resnet18", width=64), 128, "A", 32)


def of(**changes: object) -> Group:
    return dataclasses.replace(GROUP, **changes)  # type: ignore[arg-type]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan([sweep_of(tmp_path, "  teacher: {validate_every: 2}\n", BASE)], OFFICIAL)


BASE = """\
name: small
set:
  dataset: cifar10
  strategy: B
  training: {steps: 4000}
  teacher.accuracy: 60
"""


def the(plan: Plan, kind: str) -> Unit:
    (unit,) = plan.of_kind(kind)
    return unit


# -- kept under a name -----------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "rate"), [("cuda", 500.0), ("cpu", 2.0)])
def test_on_a_gpu_replayed_steps_are_measured(
    monkeypatch: pytest.MonkeyPatch, device: str, rate: float
) -> None:
    """Three launched ones, then the capture, which takes half a second, then 2 ms each."""
    now = 0.0
    steps = iter([0.008] * 3 + [0.6] + [0.002] * 1000 if device == "cuda" else [0.5] * 1000)

    def act() -> None:
        nonlocal now
        now += next(steps)

    monkeypatch.setattr(calibration.time, "perf_counter", lambda: now)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    runtime = Runtime(device=device)
    bench = calibration._Bench(None, None, runtime)  # type: ignore[arg-type]
    assert bench._repeated(act, 10, share_s=1.0).per_s == pytest.approx(rate)


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    rates = Rates(
        steps={GROUP: Rate(12.5, 10), of(strategy=EVALUATION, image_size=None): Rate(900.0, 3)},
        about={"device": "abacus", "date": "2026-01-01"},
    )
    store = Store(tmp_path)
    assert save_rates(store, "abacus", rates) == rates_path("abacus") == "rates/abacus.json"
    assert load_rates(store, "abacus") == rates


def test_saving_again_keeps_other_groups(tmp_path: Path) -> None:
    store = Store(tmp_path)
    save_rates(store, "x", Rates(steps={GROUP: Rate(1.0, 1), of(batch_size=256): Rate(2.0, 2)}))
    save_rates(store, "x", Rates(steps={GROUP: Rate(3.0, 3)}, about={"device": "y"}))
    found = load_rates(store, "x")
    assert found.steps == {GROUP: Rate(3.0, 3), of(batch_size=256): Rate(2.0, 2)}
    assert found.about == {"device": "y"}


def test_a_name_that_nobody_saved(tmp_path: Path) -> None:
    save_rates(Store(tmp_path), "mine", Rates(steps={GROUP: Rate(1.0, 1)}))
    with pytest.raises(
        UserError, match=r"no device is called 'yours' \(there are .*mine"
    ) as caught:
        load_rates(Store(tmp_path), "yours")
    assert "--calibrate --save-rates yours" in caught.value.remedy


@pytest.mark.parametrize("text", ['{"rates": []}', '{"about": {}, "rates": [{}]}', "[]"])
def test_a_damaged_file(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    store.write_bytes(rates_path("x"), text.encode())
    with pytest.raises(StoreError):
        load_rates(store, "x")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_rates_say_where_they_come_from(name: str, tmp_path: Path) -> None:
    rates = load_rates(Store(tmp_path), name)
    assert {"device", "torch", "python", "date", "method"} <= rates.about.keys()
    assert rates.steps
    assert all(rate.per_s > 0 and rate.n >= 1 for rate in rates.steps.values())


# -- from rates to hours ---------------------------------------------------------------------------


def test_a_students_evaluations_are_added(plan: Plan) -> None:
    student = the(plan, "student")
    rates = Rates(steps={of(strategy="B"): Rate(10.0, 1), of(strategy=EVALUATION): Rate(1e4, 1)})
    times = len(evaluation_steps(4000, 390))
    assert Pace(rates, OFFICIAL).seconds(student, 4000) == pytest.approx(400 + times)


def test_a_teachers_validations_are_added(plan: Plan) -> None:
    teacher = the(plan, "teacher")
    rates = Rates(
        steps={of(strategy="teacher"): Rate(10.0, 1), of(strategy=EVALUATION): Rate(1e4, 1)}
    )
    assert teacher.request.validate_every == 2
    expected = SEARCH_STEPS / 10 + SEARCH_STEPS / 2
    assert Pace(rates, OFFICIAL).seconds(teacher, 100_000) == pytest.approx(expected)


@pytest.mark.parametrize(("screen", "images"), [(1000, 1000), ("adaptive", ADAPTIVE_IMAGES)])
def test_screened_validations_are_cheaper(plan: Plan, screen: Screening, images: int) -> None:
    teacher = the(plan, "teacher")
    request = dataclasses.replace(teacher.request, screen=screen)
    asked = dataclasses.replace(teacher, request=request)
    rates = Rates(
        steps={of(strategy="teacher"): Rate(10.0, 1), of(strategy=EVALUATION): Rate(1e4, 1)}
    )
    expected = SEARCH_STEPS / 10 + SEARCH_STEPS / 2 * images / 1e4
    assert Pace(rates, OFFICIAL).seconds(asked, 100_000) == pytest.approx(expected)


def test_whole_runs_have_their_evaluations_in(plan: Plan) -> None:
    rates = Rates(steps={of(strategy=EVALUATION): Rate(1.0, 1)}, runs={of(strategy="B"): 8.0})
    assert Pace(rates, OFFICIAL).seconds(the(plan, "student"), 4000) == 500


def test_a_sibling_lends_its_rate(plan: Plan) -> None:
    rates = Rates(steps={GROUP: Rate(10.0, 1), of(strategy="C"): Rate(30.0, 1)})
    assert Pace(rates, OFFICIAL).seconds(the(plan, "student"), 4000) == pytest.approx(200)


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 64}, {"dataset": "cifar100"}, {"image_size": 16}, {"precision": "bf16"},
     {"backbone": Backbone(name="resnet18", width=8)}],
)  # fmt: skip
def test_nothing_else_does(plan: Plan, change: dict[str, object]) -> None:
    pace = Pace(Rates(steps={of(**change): Rate(10.0, 1)}), OFFICIAL)
    assert pace.seconds(the(plan, "student"), 4000) is None
    assert pace.total((unit, 1) for unit in plan.units).unknown == 2
    assert list(pace.unknown) == [of(strategy="")]


def test_the_group_of_a_run(plan: Plan) -> None:
    assert group_of(the(plan, "student"), OFFICIAL) == of(strategy="B")
    assert group_of(the(plan, "teacher"), OFFICIAL) == of(strategy="teacher")


# -- on several devices, on a part of one, and elsewhere -------------------------------------------


def eight(plan: Plan) -> Unit:
    return dataclasses.replace(the(plan, "student"), workers=8)


def test_device_time_is_wall_time_of_all_devices(plan: Plan) -> None:
    """Eight GPUs for ten seconds are eighty of one; the run is over after ten."""
    pace = Pace(Rates(runs={of(strategy="B", workers=8): 400.0}), OFFICIAL)
    unit = eight(plan)
    assert pace.seconds(unit, 4000) == pytest.approx(10)
    assert pace.total([(unit, 4000)]).seconds == pytest.approx(80)
    assert pace.borrowed == {}


def test_runs_that_shared_a_gpu_count_their_part_of_it(plan: Plan) -> None:
    pace = Pace(Rates(runs={of(strategy="B", share=0.25): 4.0}), OFFICIAL)
    assert pace.total([(the(plan, "student"), 4000)]).seconds == pytest.approx(250)
    shared = Pace(
        Rates(runs={of(strategy="B", share=0.25): 4.0}),
        OFFICIAL,
        lambda unit: Shape(devices_per_worker=0.25),
    )
    assert shared.seconds(the(plan, "student"), 4000) == pytest.approx(1000)


def test_a_stopwatchs_steps_are_of_one_device(plan: Plan) -> None:
    pace = Pace(Rates(steps={of(strategy="B"): Rate(10.0, 1)}), OFFICIAL)
    assert pace.total([(eight(plan), 4000)]).seconds == pytest.approx(400)
    assert pace.seconds(eight(plan), 4000) == pytest.approx(50)


def test_the_same_number_of_workers_goes_first_and_another_is_said(plan: Plan) -> None:
    one, two = of(strategy="B"), of(strategy="B", workers=2)
    pace = Pace(Rates(runs={one: 10.0, two: 16.0}), OFFICIAL)
    assert pace.total([(the(plan, "student"), 4000)]).seconds == pytest.approx(400)
    pace = Pace(Rates(runs={one: 10.0}), OFFICIAL)
    assert pace.seconds(eight(plan), 4000) == pytest.approx(50)
    assert list(pace.borrowed.items()) == [(of(strategy="B", workers=8), one)]
    assert "not measured on 8 workers, device time as on 1: " in shown(pace)


def test_other_hardware_lends_only_where_nothing_is_measured_here(plan: Plan) -> None:
    here, there = of(strategy="B"), of(strategy="B", hardware="NVIDIA H100")
    student = the(plan, "student")
    assert Pace(Rates(runs={there: 100.0, here: 10.0}), OFFICIAL).seconds(student, 4000) == 400
    steps = {of(strategy="B"): Rate(20.0, 1)}
    pace = Pace(Rates(steps=steps, runs={there: 100.0}), OFFICIAL)
    assert (pace.seconds(student, 4000), pace.borrowed) == (200, {})
    pace = Pace(Rates(runs={there: 100.0}), OFFICIAL)
    assert pace.seconds(student, 4000) == 40
    assert "not measured here, hours of NVIDIA H100: cifar10 32px resnet18-w64" in shown(pace)
    assert pace.seconds(the(plan, "teacher"), 4000) == 40  # a sibling's


def shown(pace: Pace) -> str:
    return "\n".join(_pace_remarks(Rates(), pace))


HERE, THERE = "Some CPU @ 2.0GHz", "NVIDIA H100 80GB HBM3"


def test_what_a_bundle_brought_from_elsewhere_was_not_measured_here(tmp_path: Path) -> None:
    """Old results, without a share, among them."""
    store = Store(tmp_path / "store")
    plan = tiny_plan(tmp_path, text=f"{BARE}grids: [{{axes: {{strategy: [A], seed: {SEEDS}}}}}]\n")
    students = plan.of_kind("student")
    plan = dataclasses.replace(plan, work={unit.name: Work(action="done") for unit in students})
    executed: list[dict[str, object]] = [
        {"hardware": HERE, "workers": 1},
        {"hardware": HERE, "workers": 2, "share": None},
        {"hardware": THERE, "workers": 1, "share": 0.25},
        {"hardware": THERE},
        {},
    ]
    for unit, its, wall_s in zip(students, executed, (10, 5, 2, 1, 4), strict=True):
        store.write_json(paths.result(unit.name), {"environment": its})
        table = pa.table({"step": [10, 20], "wall_time_s": [wall_s / 2, float(wall_s)]})
        file = io.BytesIO()
        pq.write_table(table, file)
        store.write_bytes(paths.metrics(unit.name), seal_parquet(file.getvalue()))
    kind = group_of(students[0], OFFICIAL)
    found = measured_rates(store, plan, {HERE}).runs
    assert found == {
        kind: 2.0,
        dataclasses.replace(kind, workers=2): 4.0,
        dataclasses.replace(kind, share=0.25, hardware=THERE): 10.0,
        dataclasses.replace(kind, hardware=THERE): 20.0,
        dataclasses.replace(kind, hardware="not recorded"): 5.0,
    }
    assert kind not in measured_rates(store, plan, {"Another CPU"}).runs
    assert dataclasses.replace(kind, share=0.25) in measured_rates(store, plan, {"H100"}).runs
    assert measured_rates(store, plan, {HERE}, only_left=True).runs == {}


SEEDS = [0, 1, 2, 3, 4]
BARE = TINY.replace("  teacher: {max_steps: 300}\n", "")


def test_a_result_says_what_its_workers_had_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: THERE)
    assert environment(Runtime(device="cuda:0", share=0.25), "fp32")["share"] == 0.25
    assert environment(Runtime(), "fp32")["share"] is None


def test_kept_rates_name_no_workers(tmp_path: Path) -> None:
    """An earlier version reads them too."""
    store = Store(tmp_path)
    save_rates(store, "x", Rates(steps={GROUP: Rate(1.0, 1)}))
    (row,) = (store.read_json(rates_path("x")) or {})["rates"]
    assert not {"workers", "share", "hardware"} & row.keys()


# -- measured --------------------------------------------------------------------------------------


def test_every_kind_of_run_is_measured_once(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path)
    rates = calibrate(plan.infos, plan.units, steps=1, seconds=600.0)
    groups = {group_of(unit, plan.infos) for unit in plan.units if unit.kind != "targets"}
    evaluation = {dataclasses.replace(group, strategy=EVALUATION) for group in groups}
    assert rates.left_out == ()
    assert rates.steps.keys() == groups | evaluation
    assert {group.strategy for group in groups} == {"A", "B", "C", "teacher"}
    assert all(rate.n == 1 and rate.per_s > 0 for rate in rates.steps.values())


def test_a_model_too_slow_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration._Bench, "predicted_s", lambda bench: 1e9)
    plan = tiny_plan(tmp_path)
    rates = calibrate(plan.infos, plan.units, steps=1)
    assert rates.steps == {}
    (group,) = rates.left_out
    assert group.backbone == Backbone(name="resnet18", width=4)
    file = write(tmp_path, TINY + GRID)
    arguments = ["plan", str(file), "--calibrate", "--store", str(tmp_path / "store")]
    shown = CliRunner().invoke(cli.app, arguments).output
    assert "too slow or too large to measure here: digits 8px resnet18-w4 batch 32" in shown


def test_a_batch_too_large_for_the_device_is_measured_in_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 32: 16 do not fit, 8 do, at a hundred steps a second."""
    asked: list[int] = []

    def measured(bench: calibration._Bench, kind: str, steps: int, share_s: float) -> Rate:
        asked.append(bench._spec.batch_size)
        if bench._spec.batch_size > 8:
            raise torch.OutOfMemoryError
        return Rate(100.0, steps)

    monkeypatch.setattr(calibration._Bench, "predicted_s", lambda bench: 1e-3)
    monkeypatch.setattr(calibration._Bench, "_measure", measured)
    plan = tiny_plan(tmp_path)
    rates = calibrate(plan.infos, plan.units, steps=1)
    assert asked[:4] == [32, 16, 8, 8]
    assert rates.left_out == ()
    assert {group.batch_size for group in rates.steps} == {32}
    per_s = {group.strategy: rate.per_s for group, rate in rates.steps.items()}
    assert (per_s["A"], per_s["B"], per_s[EVALUATION]) == (25.0, 25.0, 100.0)


@pytest.mark.parametrize("where", ["predicted_s", "_measure"])
def test_a_model_too_large_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def out_of_memory(*_: object) -> Rate:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(calibration._Bench, where, out_of_memory)
    plan = tiny_plan(tmp_path)
    rates = calibrate(plan.infos, plan.units, steps=1)
    assert (rates.steps, len(rates.left_out)) == ({}, 1)


def test_rates_from_one_command_to_the_next(tmp_path: Path) -> None:
    file = write(tmp_path, TINY + GRID)
    arguments = ["plan", str(file), "--store", str(tmp_path / "store"), "--json"]
    saved = CliRunner().invoke(cli.app, [*arguments, "--calibrate", "--save-rates", "here"])
    assert saved.exit_code == 0, saved.output
    ended = CliRunner().invoke(cli.app, [*arguments, "--device", "here"])
    found = json.loads(ended.output)
    assert found["sweeps"][0]["gpu_hours"] == found["total"]["gpu_hours"] > 0
    assert found["total"]["runs_of_unknown_pace"] == 0
    assert found["rates"]["device"]


def test_saving_needs_a_measurement(tmp_path: Path) -> None:
    file = write(tmp_path, TINY + GRID)
    ended = CliRunner().invoke(cli.app, ["plan", str(file), "--save-rates", "here"])
    assert isinstance(ended.exception, UserError)
    assert ended.exception.exit_status == 2
