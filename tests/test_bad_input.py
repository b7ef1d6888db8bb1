"""What a person gets wrong: one message with a remedy, exit status 2, nothing started."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator import cli, driver, publishing, sweeping
from orchestrator.driver import Outcome
from orchestrator.lease import Lease, holder
from orchestrator.store import Store
from tests.driving import GRID, TINY, digits_store
from tests.sweep_files import write

SWEEP = TINY + GRID


@dataclass
class Answer:
    status: int
    out: str
    error: str


Command = Callable[..., Answer]


@pytest.fixture
def targetsweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """The command in this process: an exception that is nobody's message fails the test. Ray must
    not start, and no store may appear."""

    def no_ray(address: object, slots: object) -> object:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(driver, "connect", no_ray)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["targetsweep", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        out, error = capsys.readouterr()
        return Answer(status, out, error)

    return call


@pytest.fixture
def refused(targetsweep: Command, tmp_path: Path) -> Command:
    """`targetsweep run sweep.yaml` with further arguments; asserts what every refusal promises."""

    def call(text: str, *arguments: object) -> Answer:
        write(tmp_path, text)
        answer = targetsweep("run", "sweep.yaml", "--store", tmp_path / "store", *arguments)
        assert answer.status == 2, answer
        assert "Traceback" not in answer.error + answer.out
        assert answer.error.startswith("targetsweep: ")
        assert trained(tmp_path / "store") == []
        return answer

    return call


def trained(root: Path) -> list[str]:
    """What a store holds beyond its lock and decoded data."""
    there = {file.name for file in root.iterdir()} if root.is_dir() else set()
    return sorted(there - {".lease.lock", "datasets", "control"})


# -- the sweep file --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        (
            "lr: 0.01",
            "learning_rat: 0.01",
            ["sweep.yaml:6", "learning_rat", "nearest valid name: training.lr"],
        ),
        ("[A, B, C]", "[A, B, D]", ["sweep.yaml:10", "strategy", "D", "A, B"]),
        ("[20, 40]", "[20, 140]", ["sweep.yaml:10", "teacher.accuracy", "140", "100"]),
        ("dataset: digits", "dataset: digitz", ["sweep.yaml:4", "digitz", "digits"]),
        ("steps: 20", "steps: -20", ["sweep.yaml:6", "training.steps", "-20"]),
        ("name: resnet18", "name: resnet19", ["resnet19", "nearest valid name: resnet18"]),
        ("set:", "set: [", ["sweep.yaml"]),
        ("seed: [0]", "seed: [0], ipc: [5000]", ["sweep.yaml:10", "ipc", "5000"]),
        (
            "teacher: {max_steps: 300}",
            "teacher: {max_steps: 300}\n  scaling: {workers: 5}",
            ["scaling.workers", "5", "batch", "divisor"],
        ),
    ],
)
def test_sweep_file(refused: Command, old: str, new: str, parts: list[str]) -> None:
    assert old in SWEEP
    answer = refused(SWEEP.replace(old, new, 1))
    for part in parts:
        assert part in answer.error


def test_all_problems_of_a_file_at_once(refused: Command) -> None:
    text = SWEEP.replace("[A, B, C]", "[A, B, D]").replace("lr: 0.01", "learning_rat: 1")
    error = refused(text).error
    assert "learning_rat" in error
    assert "sweep.yaml:10" in error


@pytest.mark.parametrize("name", ["nowhere.yaml", "sweeps/paper/tabel_1.yaml", "."])
def test_a_file_that_is_not_there(targetsweep: Command, tmp_path: Path, name: str) -> None:
    answer = targetsweep("run", name, "--store", "store")
    assert answer.status == 2
    assert name in answer.error
    assert not (tmp_path / "store").exists()


def test_a_file_that_is_no_text(targetsweep: Command, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_bytes(b"\x89PNG\xff\xfe\x00")
    answer = targetsweep("run", "sweep.yaml")
    assert answer.status == 2
    assert "sweep.yaml" in answer.error


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--set", "training.stps=3"], ["--set", "training.stps", "training.steps"]),
        (["--set", "training.steps"], ["--set", "training.steps"]),
        (["--set", "training.steps=many"], ["--set", "training.steps", "many"]),
        (["--set", "seed=3"], ["--set", "seed", "axis"]),
        (["--limit", "strategy=Z"], ["--limit", "strategy", "Z"]),
        (["--limit", "seed=7"], ["--limit", "seed"]),
        (["--limit", "strateg=A"], ["--limit", "strateg", "strategy"]),
        (["--data", "digits"], ["--data digits", "NAME=PATH"]),
        (["--data", "=folder"], ["--data =folder", "NAME=PATH"]),
        (["--ray-address", "ray://head:10001"], ["ray://head:10001", "--ray-address auto"]),
        (["--gpus-per-run", "2.5"], ["--gpus-per-run 2.5", "whole number"]),
        (["--workers-per-run", "3"], ["batches of 32", "3 workers", "divides"]),
        (["--workers-per-run", "4096"], ["4096 workers"]),
    ],
)
def test_options(refused: Command, arguments: list[str], parts: list[str]) -> None:
    answer = refused(SWEEP, *arguments)
    for part in parts:
        assert part in answer.error


def test_wider_than_the_machine(refused: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    text = SWEEP.replace("set:\n", "set:\n  scaling: {workers: 16, teacher_workers: 1}\n")
    error = refused(text).error
    assert "16 CPU slots (16 workers), but only 2 are there" in error
    assert "scaling.workers" in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "sweep.yaml", "--concurrency", "0"],
        ["run", "sweep.yaml", "--concurrency", "many"],
        ["run", "sweep.yaml", "--stoer", "x"],
        ["rnu", "sweep.yaml"],
        ["data", "prepare"],
    ],
)
def test_usage(targetsweep: Command, tmp_path: Path, arguments: list[str]) -> None:
    answer = targetsweep(*arguments)
    assert answer.status == 2
    assert "Usage:" in answer.error
    assert "Traceback" not in answer.error
    assert list(tmp_path.iterdir()) == []


# -- data ------------------------------------------------------------------------------------------

MINE = SWEEP.replace("dataset: digits", "dataset: mine").replace(
    "name: tiny\n", "name: tiny\ndata: {mine: {path: raw}}\n"
)


def test_a_data_folder_written_without_its_key(refused: Command) -> None:
    error = refused(MINE.replace("{path: raw}", "raw")).error
    assert "sweep.yaml:2: data.mine: is 'raw': input should be a mapping" in error


def test_a_missing_data_folder(refused: Command, tmp_path: Path) -> None:
    error = refused(MINE).error
    assert "data set 'mine' is not there" in error
    assert "raw is not a folder" in error
    assert not (tmp_path / "store").exists()


def test_an_official_data_set_without_a_folder(refused: Command) -> None:
    error = refused(SWEEP.replace("digits", "cifar10")).error
    assert "cifar10" in error
    assert "--data" in error


def test_an_empty_data_folder(refused: Command, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    assert "looked there" in refused(MINE).error


def test_a_corrupt_parquet_file(refused: Command, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for split in ("train", "test"):
        (tmp_path / "raw" / f"mine_{split}.parquet").write_bytes(b"PAR1" + b"\0" * 64 + b"PAR1")
    error = refused(MINE).error
    assert "mine_train.parquet" in error


def test_a_parquet_file_with_images_that_are_none(refused: Command, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for split in ("train", "test"):
        table = pa.table({"image": [b"no image"] * 40, "label": [0, 1] * 20})
        pq.write_table(table, tmp_path / "raw" / f"mine_{split}.parquet")
    error = refused(MINE).error
    assert "parquet" in error
    assert "row 0" in error


def test_damaged_decoded_data(refused: Command, tmp_path: Path) -> None:
    """Found before Ray starts: the plan reads what the store says of its data sets."""
    digits_store(tmp_path / "store")
    (tmp_path / "store/datasets/digits/meta.json").write_text("{")
    error = refused(SWEEP).error
    assert "digits" in error
    assert "remedy" in error


# -- the store -------------------------------------------------------------------------------------


def test_a_store_that_is_a_file(targetsweep: Command, tmp_path: Path) -> None:
    write(tmp_path, SWEEP)
    (tmp_path / "store").write_text("mine")
    for command in (["run", "sweep.yaml"], ["plan", "sweep.yaml"], ["status"], ["report"]):
        answer = targetsweep(*command, "--store", tmp_path / "store")
        assert answer.status == 2, command
        assert str(tmp_path / "store") in answer.error
        assert "remedy" in answer.error
    assert (tmp_path / "store").read_text() == "mine"


def test_a_store_in_a_place_that_cannot_be(targetsweep: Command, tmp_path: Path) -> None:
    write(tmp_path, SWEEP)
    answer = targetsweep("run", "sweep.yaml", "--store", "/proc/nothing/store")
    assert answer.status == 2
    assert "/proc/nothing/store" in answer.error


def test_a_store_of_an_unknown_kind(targetsweep: Command, tmp_path: Path) -> None:
    write(tmp_path, SWEEP)
    answer = targetsweep("run", "sweep.yaml", "--store", "gopher://hole/store")
    assert answer.status == 2
    assert "gopher" in answer.error


def test_a_store_that_another_driver_uses(targetsweep: Command, tmp_path: Path) -> None:
    write(tmp_path, SWEEP)
    store = Store(tmp_path / "store")
    with Lease(store, "targetsweep run other.yaml"):
        answer = targetsweep("run", "sweep.yaml", "--store", store.uri)
    assert answer.status == 2
    assert "targetsweep run other.yaml" in answer.error
    assert "process " in answer.error
    assert trained(store.root) == []


@pytest.mark.parametrize("command", [["status"], ["report"], ["sync"], ["report", "demo"]])
def test_a_store_without_a_sweep(targetsweep: Command, tmp_path: Path, command: list[str]) -> None:
    answer = targetsweep(*command, "--store", tmp_path / "nothing")
    assert answer.status == 2
    assert "holds no sweep" in answer.error
    assert not (tmp_path / "nothing").exists()


def test_another_sweep_of_the_store(targetsweep: Command, tmp_path: Path) -> None:
    Store(tmp_path / "store").write_json("sweeps/demo/plan.json", {"points": []})
    answer = targetsweep("report", "dmeo", "--store", tmp_path / "store")
    assert answer.status == 2
    assert "'dmeo'" in answer.error
    assert "demo" in answer.error


def test_a_damaged_plan(targetsweep: Command, tmp_path: Path) -> None:
    Store(tmp_path / "store").write_bytes("sweeps/demo/plan.json", b"{")
    answer = targetsweep("status", "--store", tmp_path / "store")
    assert (answer.status, "sweeps/demo/plan.json" in answer.error) == (2, True)
    answer = targetsweep("sync", "--store", tmp_path / "store")
    assert (answer.status, "sweeps/demo/plan.json" in answer.out) == (1, True)
    assert "but for 1 damaged file" in answer.error


def test_a_report_that_cannot_be_written_is_a_failure(targetsweep: Command, tmp_path: Path) -> None:
    """A script must see it; the other sweeps' are written all the same."""
    store = Store(tmp_path / "store")
    store.write_json("sweeps/a/plan.json", {"sweep": "a", "report": [{"later": 1}], "points": []})
    store.write_json("sweeps/b/plan.json", {"sweep": "b", "points": []})
    answer = targetsweep("report", "--store", store.root)
    assert answer.status == 2
    assert "no report of a" in answer.error
    assert store.exists("sweeps/b/report/index.html")


def test_reports_of_a_scale_that_no_sweep_has(targetsweep: Command, tmp_path: Path) -> None:
    Store(tmp_path / "store").write_json("sweeps/demo/plan.json", {"sweep": "demo", "points": []})
    scale = Path(__file__).parents[1] / "sweeps/paper/scales/pilot.yaml"
    answer = targetsweep("report", "--store", tmp_path / "store", "--scale", scale)
    assert answer.status == 2
    assert "no sweep of scale pilot" in answer.error


def test_only_the_data_within_the_limit_is_needed(targetsweep: Command, tmp_path: Path) -> None:
    """Ray would start: no data set is missing."""
    two = TINY.replace("  dataset: digits\n", "").replace("  teacher: {max_steps: 300}\n", "") + (
        "grids: [{axes: {dataset: [digits, cifar10], strategy: [A], seed: [0]}}]\n"
    )
    write(tmp_path, two)
    arguments = ("run", "sweep.yaml", "--store", tmp_path / "store")
    answer = targetsweep(*arguments)
    assert answer.status == 2
    assert "cifar10" in answer.error
    with pytest.raises(AssertionError, match="Ray was started"):
        targetsweep(*arguments, "--limit", "dataset=digits")


# -- looking is no running -------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["plan"], ["run", "--dry-run"], ["run"]])
def test_a_path_for_a_data_set_that_nothing_here_means(
    targetsweep: Command, tmp_path: Path, command: list[str]
) -> None:
    write(tmp_path, SWEEP)
    verb, *options = command
    data = f"digit={tmp_path}"
    answer = targetsweep(verb, "sweep.yaml", *options, "--store", tmp_path / "s", "--data", data)
    assert answer.status == 2
    assert "--data digit=…" in answer.error
    assert "nearest valid name: digits" in answer.error
    assert not (tmp_path / "s").exists()


def test_a_script_may_give_all_the_data_it_has(targetsweep: Command, tmp_path: Path) -> None:
    write(tmp_path, SWEEP)
    data = f"cifar100={tmp_path}"
    answer = targetsweep("plan", "sweep.yaml", "--store", tmp_path / "s", "--data", data)
    assert answer.status == 0, answer


def test_plan_and_dry_run_write_nothing(targetsweep: Command, tmp_path: Path) -> None:
    write(tmp_path, SWEEP)
    for command in (["plan", "sweep.yaml"], ["run", "sweep.yaml", "--dry-run"]):
        answer = targetsweep(*command, "--store", tmp_path / "store")
        assert answer.status == 0, answer
        assert "unique runs" in answer.out
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("moment", ["_prepare", "drive", "publish_all"])
def test_ctrl_c_at_any_moment_says_how_to_go_on(
    targetsweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    write(tmp_path, SWEEP)
    digits_store(tmp_path / "store")
    done = Outcome(failed=[], blocked=[], interrupted=False, stopped_early=None, left=0)
    monkeypatch.setattr(sweeping, "drive", lambda *arguments, **named: done)
    monkeypatch.setattr(publishing if moment == "publish_all" else sweeping, moment, interrupted)
    answer = targetsweep("run", "sweep.yaml", "--store", tmp_path / "store", "--set", "seed=0")
    assert answer.status == 2  # seed is an axis: said before anything else
    answer = targetsweep("run", "sweep.yaml", "--store", tmp_path / "store", "--limit", "seed=0")
    assert answer.status == 130
    assert answer.error.splitlines()[0] == "targetsweep: stopped; nothing is lost. To go on:"
    assert answer.error.splitlines()[1].endswith("--limit seed=0")
    assert holder(Store(tmp_path / "store")) is None
