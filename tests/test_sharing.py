"""How many students share a GPU: from a measured table, and never by a guess."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from orchestrator import cli, planning
from orchestrator.clusterview import Node, Picture
from orchestrator.driver import _auto_shares
from orchestrator.errors import StoreError
from orchestrator.plan import Plan, make_plan
from orchestrator.planview import show_plan
from orchestrator.progress import Progress
from orchestrator.rates import Rates
from orchestrator.shapes import shape_of
from orchestrator.sharing import (
    Sharing,
    gpu_model,
    most_runs,
    parse_table,
    shipped_table,
)
from orchestrator.spec import load_sweeps
from orchestrator.units import Unit
from tests.sweep_files import write
from trainers.data.catalogue import OFFICIAL

SWEEP = """\
name: shared
set:
  dataset: cifar10
  training: {steps: 100, precision: bf16}
  teacher: {accuracy: 60}
grids:
  - axes: {strategy: [A, C], seed: [0, 1, 2, 3]}
"""

ROW = {
    "gpu": "NVIDIA H200",
    "backbone": {"name": "resnet18", "width": 64, "stem": "small"},
    "batch_size": 128,
    "image_size": 32,
    "precision": "bf16",
    "images_per_s": {"1": 40_000.0, "2": 70_000.0, "4": 99_000.0, "8": 100_000.0},
    "date": "2026-01-01",
}
TABLE = {"measured": [ROW]}


def plan_of(folder: Path, scaling: str = "") -> Plan:
    text = SWEEP.replace("grids:", f"  scaling: {{{scaling}}}\ngrids:") if scaling else SWEEP
    (sweep,) = load_sweeps([write(folder, text)], OFFICIAL)
    return make_plan([sweep], OFFICIAL)


def one(folder: Path, kind: str = "student", scaling: str = "") -> Unit:
    return plan_of(folder, scaling).of_kind(kind)[0]


def sharing(*gpus: str, table: object = TABLE) -> Sharing:
    return Sharing(parse_table(table), gpus, OFFICIAL)


# -- the table ------------------------------------------------------------------------------------


def test_the_fewest_runs_near_the_best_are_taken() -> None:
    (row,) = parse_table(TABLE)
    assert row.best == 4  # eight bring one percent more
    assert row.gain == pytest.approx(99 / 40)


def test_one_run_where_sharing_does_not_pay() -> None:
    worse = ROW | {"images_per_s": {"1": 100.0, "2": 101.0, "4": 90.0}}
    (row,) = parse_table({"measured": [worse]})
    assert (row.best, row.gain) == (1, 1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"images_per_s": {"2": 3.0}},  # without one run there is nothing to compare with
        {"images_per_s": {"1": 3.0, "2": 0.0}},
        {"images_per_s": {"1": 3.0, "none": 1.0}},
        {"images_per_s": 7},
        {"backbone": {"depth": 18}},
        {"image_size": None},
    ],
)
def test_a_table_that_is_none(change: dict[str, object]) -> None:
    with pytest.raises(StoreError, match="the table of shared GPUs cannot be read"):
        parse_table({"measured": [ROW | change]})


@pytest.mark.parametrize("text", ["[]", "{}", '{"measured": 7}', '{"measured": [7]}'])
def test_a_file_that_is_none(text: str) -> None:
    with pytest.raises(StoreError):
        parse_table(json.loads(text))


def test_the_shipped_table_can_be_read_and_names_gpus_alone() -> None:
    for row in shipped_table():
        assert gpu_model(row.gpu) != row.gpu, "the full name, as torch says it"
        assert row.date


# -- the choice -----------------------------------------------------------------------------------


def test_students_share_what_was_measured(tmp_path: Path) -> None:
    student = one(tmp_path)
    assert student.gpus_auto
    assert sharing("NVIDIA H200").share(student, at_most=8) == 0.25
    assert sharing("H200").share(student, at_most=8) == 0.25  # as Ray names it
    assert sharing("NVIDIA H200").share(student, at_most=3) == 0.3333


@pytest.mark.parametrize("runs", range(1, 33))
def test_as_many_shares_fit_for_ray_as_for_the_ledger(tmp_path: Path, runs: int) -> None:
    """Ray rounds to four decimals, half up: six of its sixths are more than a GPU."""
    table = {"measured": [ROW | {"images_per_s": {"1": 1.0, str(runs): 1000.0}}]}
    share = sharing("H200", table=table).share(one(tmp_path), at_most=64)
    assert int(1 / share) == 10_000 // int(10_000 * share + 0.5) == runs


@pytest.mark.parametrize("gpus", [(), ("NVIDIA A100-SXM4-40GB",), ("H200", "A100"), ("",)])
def test_anything_else_has_a_gpu_of_its_own(gpus: tuple[str, ...], tmp_path: Path) -> None:
    assert sharing(*gpus).share(one(tmp_path), at_most=8) == 1.0


@pytest.mark.parametrize(
    "change", [{"precision": "fp32"}, {"batch_size": 64}, {"image_size": 64},
               {"backbone": {"name": "resnet18", "width": 32, "stem": "small"}}],
)  # fmt: skip
def test_another_load_was_not_measured(change: dict[str, object], tmp_path: Path) -> None:
    its = sharing("H200", table={"measured": [ROW | change]})
    assert its.share(one(tmp_path), at_most=8) == 1.0


@pytest.mark.parametrize("kind", ["teacher", "targets"])
def test_who_others_wait_for_shares_with_nobody(kind: str, tmp_path: Path) -> None:
    assert sharing("H200").share(one(tmp_path, kind), at_most=8) == 1.0


def test_a_number_in_the_sweep_stands(tmp_path: Path) -> None:
    half = one(tmp_path, scaling="gpus_per_worker: 0.5")
    assert (half.gpus_per_worker, half.gpus_auto) == (0.5, False)
    assert sharing("H200").share(half, at_most=8) == 0.5
    assert shape_of(half, use_gpu=True, devices=8, auto_share=0.25).devices == 0.5


def test_auto_reaches_the_shape_of_a_run(tmp_path: Path) -> None:
    unit = one(tmp_path, scaling="gpus_per_worker: {default: auto}")
    assert shape_of(unit, use_gpu=True, devices=8, auto_share=0.25).devices == 0.25
    assert shape_of(unit, use_gpu=True, devices=8, auto_share=0.25, gpus_per_run=1).devices == 1
    assert shape_of(unit, use_gpu=False, devices=8, auto_share=0.25).devices == 1
    wide = replace(unit, workers=2)
    assert shape_of(wide, use_gpu=True, devices=8, auto_share=0.25).devices == 2


def test_no_key_knows_of_shares(tmp_path: Path) -> None:
    assert one(tmp_path, scaling="gpus_per_worker: 0.5").key == one(tmp_path).key


# -- on a machine, on a cluster -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("students", "nodes", "most"),
    [
        (100, [(1, 16)], 16),  # a core for each
        (3, [(1, 16)], 3),
        (100, [(8, 64), (8, 16)], 2),  # by the narrower node
        (12, [(8, 64)], 2),  # four a GPU would leave five GPUs idle
        (100, [(1, 16), (0, 4)], 16),  # a head without GPUs does not count
        (100, [(4, 2)], 1),
        (100, [], 1),
        (0, [(1, 16)], 1),
    ],
)
def test_no_gpu_is_left_idle_for_sharing(
    students: int, nodes: list[tuple[float, float]], most: int
) -> None:
    assert most_runs(students, nodes) == most


NAMES = [
    "NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB",
    "Tesla V100-SXM2-16GB", "Tesla T4", "NVIDIA L40S", "NVIDIA A10G", "NVIDIA GH200 480GB",
    "NVIDIA RTX A6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition", "NVIDIA GeForce RTX 4090",
    "NVIDIA TITAN RTX",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_is_called_as_ray_calls_it(name: str) -> None:
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

    its = NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type(name)
    assert gpu_model(name) == its
    assert gpu_model(its) == its


def test_a_driver_shares_gpus_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.driver.shipped_table", lambda: parse_table(TABLE))
    plan = plan_of(tmp_path)
    node = Node(node_id="a", gpus=1, cpus=16, gpu_model="H200")
    console = Console(file=io.StringIO(), width=200)
    shares = _auto_shares(plan, Picture((node,)), Progress(console, done_before=0))
    kinds = {unit.name: unit.kind for unit in plan.left}
    assert {kinds[name]: share for name, share in shares.items()} == {
        "teacher": 1.0, "targets": 1.0, "student": 0.25,
    }  # fmt: skip
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "4 runs of resnet18-w64 32px batch 128 bf16 share a GPU" in written
    alone = _auto_shares(plan, Picture((replace(node, gpu_model="A100"),)), Progress(
        Console(file=io.StringIO()), done_before=0,
    ))  # fmt: skip
    assert set(alone.values()) == {1.0}


# -- what a person sees ---------------------------------------------------------------------------


def shown(plan: Plan, its: Sharing) -> str:
    console = Console(file=io.StringIO(), width=200)
    show_plan(console, plan, Rates(), None, sharing=its.choices(plan.left))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_plan_says_what_is_chosen_and_why(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    load = "resnet18-w64 32px batch 128 bf16"
    assert f"{load}: there is no GPU to look up" in shown(plan, sharing())
    assert f"{load}: nothing measured on NVIDIA L4" in shown(plan, sharing("NVIDIA L4"))
    why = f"{load}: 2.48 × the images/s of one, measured on NVIDIA H200 on 2026-01-01"
    (line,) = [line for line in shown(plan, sharing("H200")).splitlines() if why in line]
    assert line.split()[:4] == ["students", "a", "GPU", "4"]


def test_nothing_is_said_where_the_sweep_says(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "gpus_per_worker: 0.5")
    assert "students a GPU" not in shown(plan, sharing("H200"))


def test_plan_looks_up_the_device_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "shipped_table", lambda: parse_table(TABLE))
    monkeypatch.setattr(planning, "local_gpus", lambda: ())
    monkeypatch.setattr(
        planning, "load_rates", lambda store, name: Rates(about={"device": "NVIDIA H200"})
    )
    file = write(tmp_path, SWEEP)
    arguments = ["plan", str(file), "--store", str(tmp_path / "store"), "--json"]
    here = json.loads(CliRunner().invoke(cli.app, arguments).output)
    assert [choice["runs_per_gpu"] for choice in here["sharing"]] == [1]
    there = json.loads(CliRunner().invoke(cli.app, [*arguments, "--device", "h200"]).output)
    (choice,) = there["sharing"]
    assert choice["load"] == "resnet18-w64 32px batch 128 bf16"
    assert choice["runs_per_gpu"] == 4
    students = [unit for unit in there["units"] if unit["name"].startswith("student")]
    assert {unit["gpus_auto"] for unit in students} == {True}
