"""The benchmarks of a GPU session, tiny: that they run. On a GPU too, with `trainers` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmark_scripts import module, read

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ],
)
on_every_device = pytest.mark.parametrize("device", ["cpu", CUDA])


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a script of the folder is run; spawned processes inherit the path."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@on_every_device
def test_resnet50_from_both_sources(device: str, tmp_path: Path) -> None:
    path = tmp_path / "resnet50.json"
    arguments = ["--device", device, "--width", "2", "--size", "32", "--batch", "4", "--steps", "1"]
    arguments += ["--pictures", "8", "--rounds", "1", "--decode-threads", "1", "2"]
    assert module("resnet50").main([*arguments, "--json", str(path)]) == 0
    found = read(path)
    assert [row["decode_threads"] for row in found["rows"]] == [1, 2]
    assert all(rate["median"] > 0 for row in found["rows"] for rate in row["images_per_s"].values())
    assert len(found["headline"]) == 2


def test_without_a_decoder_the_device_is_measured_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resnet50, path = module("resnet50"), tmp_path / "resnet50.json"

    def without(options: Any, folder: Path) -> Any:
        raise ModuleNotFoundError("No module named 'decoder'")

    monkeypatch.setattr(resnet50, "shards_of", without)
    arguments = ["--device", "cpu", "--width", "2", "--size", "32", "--batch", "4", "--steps", "1"]
    arguments += ["--pictures", "8", "--rounds", "1", "--json", str(path)]
    assert resnet50.main(arguments) == 1
    found = read(path)
    assert found["shards_left_out"] == "ModuleNotFoundError: No module named 'decoder'"
    assert [list(row["images_per_s"]) for row in found["rows"]] == [["device"]]
    assert found["headline"][0].endswith("images/s on the device")


@on_every_device
def test_precision_check_runs(device: str, tmp_path: Path) -> None:
    path = tmp_path / "precision.json"
    arguments = ["--device", device, "--width", "2", "--batch", "64", "--steps", "4"]
    arguments += ["--seeds", "2", "--json", str(path)]
    assert module("precision_check").main(arguments) == 0
    found = read(path)
    assert [one["seed"] for one in found["pairs"]] == [0, 1]
    assert [one["head"] for one in found["compared"]] == ["top1_h", "top1_g"]


def test_precision_check_keeps_within_its_time(tmp_path: Path) -> None:
    path = tmp_path / "precision.json"
    arguments = ["--device", "cpu", "--width", "2", "--batch", "64", "--steps", "1"]
    arguments += ["--seeds", "5", "--seconds", "0.001", "--json", str(path)]
    assert module("precision_check").main(arguments) == 0
    assert read(path)["n"] == 1  # one pair at least


@pytest.mark.slow
def test_sharing_runs(tmp_path: Path) -> None:
    path = tmp_path / "sharing.json"
    arguments = ["--device", "cpu", "--runs", "2", "--width", "2", "--batch", "8"]
    arguments += ["--images", "64", "--rounds", "1", "--seconds", "0.5", "--settle", "0.1"]
    assert module("sharing").main([*arguments, "--json", str(path)]) == 0
    found = read(path)
    (measure,) = found["measures"]
    assert [row["runs"] for row in measure["rows"]] == [1, 2]
    assert all(row["images_per_s"]["median"] > 0 for row in measure["rows"])


@pytest.mark.slow
def test_a_student_that_cannot_train_ends_the_benchmark() -> None:
    arguments = ["--device", "cpu", "--runs", "1", "--width", "2", "--batch", "8", "--images", "0"]
    with pytest.raises(SystemExit, match="student 0 of 1 ended"):
        module("sharing").main(arguments)


@on_every_device
@pytest.mark.slow
def test_everything_runs_here(device: str, tmp_path: Path) -> None:
    path = tmp_path / "runs_here.json"
    arguments = ["--device", device, "--width", "2", "--batch", "8", "--steps", "2"]
    arguments += ["--images", "64", "--no-compile", "--json", str(path)]
    assert module("runs_here").main(arguments) == 0
    rows = read(path)["rows"]
    assert {"A, fp32", "B, bf16", "C, bf16", "a teacher, bf16"} <= {row["trial"] for row in rows}


def test_what_does_not_run_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, path = module("runs_here"), tmp_path / "runs_here.json"

    def broken(place: Any) -> dict[str, Any]:
        raise RuntimeError("no such kernel")

    trials = [here.Trial("broken", broken), here.Trial("whole", lambda place: {"steps": 1})]
    monkeypatch.setattr(here, "trials", lambda device, with_compile: trials)
    assert here.main(["--device", "cpu", "--images", "8", "--batch", "4", "--json", str(path)]) == 1
    found = read(path)
    assert [row["ran"] for row in found["rows"]] == [False, True]
    assert found["headline"] == ["1 of 2 ran", "broken"]
