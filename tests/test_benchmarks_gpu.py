"""What the benchmarks of a GPU session compute, and the session itself, with made-up stages."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from orchestrator.sharing import parse_table
from tests.benchmark_scripts import module, read

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a script of the folder is run; spawned processes inherit the path."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


# -- steps that count in a window -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("opens", "closes", "steps"),
    [
        (0.0, 3.0, 30.0),  # all of it
        (0.5, 2.5, 20.0),  # parts of the first and the last
        (1.25, 1.75, 5.0),  # within one
        (-1.0, 9.0, 30.0),  # nothing is trained outside
    ],
)
def test_steps_within_a_window(opens: float, closes: float, steps: float) -> None:
    stamps = [(0.0, 0), (1.0, 10), (2.0, 20), (3.0, 30)]
    assert module("crew").steps_within(stamps, opens, closes) == pytest.approx(steps)


# -- from a measurement to the table of `auto` ----------------------------------------------------


def measured(name: str = "NVIDIA H200", **device: Any) -> dict[str, Any]:
    """As `sharing.py` writes it, of a GPU."""
    rounds = [{1: 100.0, 2: 190.0, 4: 240.0}, {1: 110.0, 2: 190.0, 4: 250.0}]
    rows = [module("sharing").row_of(runs, rounds) for runs in (1, 2, 4)]
    return {
        "n": 2,
        "machine": {"date": "2026-01-01", "torch": "2.11.0"},
        "device": {"name": name, "multiprocessors": 132} | device,
        "job": {"width": 64, "batch": 128, "image_size": 32, "precision": "bf16"},
        "measures": [{"mps": False, "rows": rows}, {"mps": True, "rows": []}],
    }


def test_a_row_is_about_rounds() -> None:
    rows = measured()["measures"][0]["rows"]
    assert [row["images_per_s"]["median"] for row in rows] == [105.0, 190.0, 245.0]
    assert [row["images_per_s_each"] for row in rows] == [105.0, 95.0, 61.2]
    assert rows[2]["to_one"]["median"] == pytest.approx((2.4 + 250 / 110) / 2, rel=1e-4)


def test_what_is_recorded_is_what_auto_reads() -> None:
    table = module("sharing").record(measured(), {"about": "…", "measured": []})
    (row,) = parse_table(table)
    assert (row.gpu, row.best) == ("NVIDIA H200", 4)
    assert row.gain == pytest.approx(245 / 105)
    assert str(row.load) == "resnet18-w64 32px batch 128 bf16"


def test_a_later_measurement_takes_an_earlier_ones_place() -> None:
    record = module("sharing").record
    table = record(measured(), {"measured": []})
    table = record(measured("NVIDIA H100 80GB HBM3"), table)
    again = record({"stages": {"sharing": {"result": measured()}}}, table)  # a whole session's
    assert [row["gpu"] for row in again["measured"]] == ["NVIDIA H100 80GB HBM3", "NVIDIA H200"]
    parse_table(again)


def test_a_session_measures_what_the_papers_sweeps_ask_too() -> None:
    half, single = measured(), measured()
    single["job"] = single["job"] | {"precision": "fp32"}
    stages = {"sharing": {"result": single}, "sharing-bf16": {"result": half}, "step": {}}
    table = module("sharing").record({"stages": stages}, {"measured": []})
    assert [row.load.precision for row in parse_table(table)] == ["bf16", "fp32"]


def test_a_cpu_is_no_gpu() -> None:
    on_cpu = measured() | {"device": {"name": "cpu"}}
    with pytest.raises(SystemExit, match="measured on cpu"):
        module("sharing").record(on_cpu, {"measured": []})


def test_the_shipped_table_can_be_recorded_into(tmp_path: Path) -> None:
    sharing = module("sharing")
    table, result = tmp_path / "table.json", tmp_path / "result.json"
    table.write_text(sharing.TABLE.read_text())
    result.write_text(json.dumps(measured()))
    assert sharing.main(["--record", str(result), "--table", str(table)]) == 0
    assert "NVIDIA H200" in {row.gpu for row in parse_table(json.loads(table.read_text()))}


# -- MPS ------------------------------------------------------------------------------------------


def a_program(folder: Path, script: str) -> None:
    program = folder / "nvidia-cuda-mps-control"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_no_mps_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with module("mps").serving() as refusal:
        assert refusal == "nvidia-cuda-mps-control is not there"


def test_an_mps_that_refuses_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    a_program(tmp_path, "echo not permitted >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with module("mps").serving() as refusal:
        assert "ended with 1: not permitted" in refusal
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ


def test_mps_serves_what_is_started_within(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = tmp_path / "said"
    a_program(tmp_path, f'echo "$1" >> {said}; test "$1" = -d || cat >> {said}')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    mps = module("mps")
    monkeypatch.setattr(mps, "_TRY", "import os; os.environ['CUDA_MPS_PIPE_DIRECTORY']")
    with mps.serving() as refusal:
        assert refusal is None
        assert Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"]).is_dir()
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert said.read_text().split() == ["-d", "quit"]


# -- bf16 against fp32 ----------------------------------------------------------------------------


def pairs(*accuracies: tuple[float, float]) -> list[dict[str, Any]]:
    return [
        {"seed": seed, "fp32": {"top1_h": fp32}, "bf16": {"top1_h": bf16}}
        for seed, (fp32, bf16) in enumerate(accuracies)
    ]


def test_a_difference_below_the_spread_is_none() -> None:
    check = module("precision_check")
    found = check.compare(pairs((90.0, 90.2), (91.0, 90.8), (92.0, 92.3)), "top1_h")
    assert (found["n"], found["difference"], found["spread"]) == (3, 0.1, 1.0)
    assert found["difference_std"] == pytest.approx(0.265, abs=1e-3)
    assert found["agrees"]
    assert "less than the seeds' spread of 1.00 (n = 3)" in check.headline(found)


def test_a_difference_above_it_is_one() -> None:
    check = module("precision_check")
    found = check.compare(pairs((90.0, 88.0), (90.1, 88.2), (90.2, 88.1)), "top1_h")
    assert not found["agrees"]
    assert "not less" in check.headline(found)


def test_one_seed_has_no_spread() -> None:
    check = module("precision_check")
    found = check.compare(pairs((90.0, 89.0)), "top1_h")
    assert found["agrees"] is None
    assert check.headline(found) == "top1_h: -1.00 points, one seed"


# -- a session of stages --------------------------------------------------------------------------

GOOD = """
import json, sys
print("hello [/nothing]")
path = sys.argv[sys.argv.index("--json") + 1]
json.dump({"headline": ["seven"], "argv": sys.argv[1:]}, open(path, "w"))
"""
BAD = "import sys\nprint('what went wrong')\nsys.exit(3)\n"
HANGING = """
import json, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
path = sys.argv[sys.argv.index("--json") + 1]
json.dump({"headline": ["so far"], "child": child.pid}, open(path, "w"))
time.sleep(600)
"""


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """gpu_session with stages of its own: scripts of a line or two."""
    found = module("gpu_session")
    for name, text in (("good.py", GOOD), ("bad.py", BAD), ("hanging.py", HANGING)):
        (tmp_path / name).write_text(text)
    stage, ours = found.Stage, found._OURS
    stages = (
        stage(name="bad", script="bad.py", least_s=0, limit_s=60),
        stage(name="absent", script="absent.py", least_s=0, limit_s=60),
        stage(name="hanging", script="hanging.py", least_s=1, limit_s=60),
        stage(name="data", script="good.py", least_s=0, limit_s=60, needs_data=True),
        stage(name="long", script="good.py", least_s=9e9, limit_s=60),
        stage(
            name="good", script="good.py", arguments=(*ours, "--seconds", "{seconds}"),
            least_s=0, limit_s=60, takes_data=True,
        ),
    )  # fmt: skip
    monkeypatch.setattr(found, "STAGES", stages)
    monkeypatch.setattr(found, "HERE", tmp_path)
    return found


def test_no_stage_stops_the_others(
    session: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(session, "_wait", _impatient(session._wait))
    assert session.main(["--out", str(out), "--minutes", "5", "--device", "cpu"]) == 0
    stages = read(out / "results.json")["stages"]
    assert {name: stage["state"] for name, stage in stages.items()} == {
        "bad": "failed", "absent": "left out", "hanging": "out of time", "data": "left out",
        "long": "left out", "good": "done",
    }  # fmt: skip
    assert (stages["bad"]["status"], stages["bad"]["tail"]) == (3, ["what went wrong"])
    assert stages["hanging"]["result"]["headline"] == ["so far"]
    _ends(stages["hanging"]["result"]["child"])
    arguments = stages["good"]["result"]["argv"]
    assert arguments[arguments.index("--device") + 1] == "cpu"
    assert arguments[arguments.index("--seconds") + 1] == "54"
    assert "hello [/nothing]" in (out / "log.txt").read_text()
    summary = (out / "summary.txt").read_text()
    assert all(text in summary for text in ("seven", "what went wrong", "no --data", "so far"))


def _impatient(wait: Callable[[Any, float], int | None]) -> Callable[[Any, float], int | None]:
    """The time of the stage that hangs is over once it has written what it writes."""

    def wait_less(process: Any, limit_s: float) -> int | None:
        if Path(process.args[1]).name == "hanging.py" and Path(process.args[1]).read_text() != GOOD:
            result = Path(process.args[process.args.index("--json") + 1])
            while not result.exists() or not result.read_text().endswith("}"):
                time.sleep(0.05)
            limit_s = 0.0
        return wait(process, limit_s)

    return wait_less


def _ends(pid: int) -> None:
    """A killed process is gone, or waits for somebody to notice."""
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "a stage's own process lives on"
        time.sleep(0.05)


def test_a_session_goes_on_where_it_stopped(session: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out"
    base = ["--out", str(out), "--minutes", "5", "--device", "cpu"]
    session.main([*base, "--only", "bad", "data"])
    assert read(out / "results.json")["stages"].keys() == {"bad", "data"}
    (tmp_path / "bad.py").write_text(GOOD)
    (tmp_path / "hanging.py").write_text(GOOD)
    session.main([*base, "--data", str(tmp_path / "train.parquet")])
    stages = read(out / "results.json")["stages"]
    assert stages["bad"]["state"] == "failed"  # it is not tried again by itself
    assert stages["data"]["state"] == "done"  # what was left out is
    assert str(tmp_path / "train.parquet") in stages["good"]["result"]["argv"]
    session.main([*base, "--only", "bad"])
    assert read(out / "results.json")["stages"]["bad"]["state"] == "done"


def test_what_the_session_cut_short_is_begun_again(
    session: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And keeps what it found until it finds more."""
    out = tmp_path / "out"
    base = ["--out", str(out), "--device", "cpu", "--only", "hanging"]
    monkeypatch.setattr(session, "_wait", _impatient(session._wait))
    session.main([*base, "--minutes", "0.9"])  # less than the stage's own minute
    found = read(out / "results.json")["stages"]["hanging"]
    assert (found["state"], found["result"]["headline"]) == ("cut short", ["so far"])
    session.main([*base, "--minutes", "0"])
    assert read(out / "results.json")["stages"]["hanging"] == found
    (tmp_path / "hanging.py").write_text(GOOD)
    monkeypatch.setattr(session, "STAGES", session.STAGES[2:3])
    session.main([*base[:-2], "--minutes", "5"])
    assert read(out / "results.json")["stages"]["hanging"]["state"] == "done"


def test_a_steps_measures_are_headlines() -> None:
    row = {"measure": "step of A / floor", "goal": "≤ 1.10", "median": 1.0472, "n": 15}
    result = {"results": [{"measures": [row]}]}
    lines = list(module("gpu_session").headlines({"result": result}))
    assert lines == ["step of A / floor: 1.047 (goal ≤ 1.10), n = 15"]


def test_every_stages_script_is_there_or_known_to_come_from_elsewhere() -> None:
    found = module("gpu_session")
    scripts = {stage.script for stage in found.STAGES if stage.script}
    elsewhere = {"step.py", "teacher_validation.py", "checkpointing.py"}
    assert {name for name in scripts if not (BENCHMARKS / name).exists()} <= elsewhere
    assert len({stage.name for stage in found.STAGES}) == len(found.STAGES)


def test_gpu_tests_need_trainers_alone() -> None:
    files = module("gpu_session").gpu_tests()
    assert "tests/test_gpu.py" in files
    assert "tests/test_docker.py" not in files
