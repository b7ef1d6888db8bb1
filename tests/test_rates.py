"""Rates of devices, and the hours that a plan takes by them."""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from orchestrator import calibration, cli
from orchestrator.calibration import calibrate
from orchestrator.errors import StoreError, UserError
from orchestrator.estimate import ADAPTIVE_IMAGES, Pace, group_of
from orchestrator.plan import Plan, make_plan
from orchestrator.rates import EVALUATION, Group, Rate, Rates, load_rates, rates_path, save_rates
from orchestrator.store import Store
from orchestrator.units import SEARCH_STEPS, Unit
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
