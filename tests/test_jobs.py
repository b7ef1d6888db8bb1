"""`submit`: what is checked here, what goes to the cluster, and what comes back."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from orchestrator import cli, paths
from orchestrator.cli_cluster import NOT_PASSED_ON, arguments_of
from orchestrator.errors import MachineError, SpecError, StoreInUseError, UserError
from orchestrator.jobpackage import files_of, pack
from orchestrator.jobrecord import JOB_VARIABLE, note_job, read_job
from orchestrator.jobserver import checked_address
from orchestrator.lease import Lease
from orchestrator.store import Store
from tests.driving import GRID, TINY, digits_store
from tests.job_server import FakeJobServer, job_server
from tests.sweep_files import write


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("MLFLOW_TRACKING_URI", "TARGETSWEEP_STORE", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    for name in (*names, JOB_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeJobServer]:
    with job_server(tmp_path / "cluster") as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return digits_store(tmp_path / "store")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path, TINY + GRID)


def submit(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["submit", *map(str, arguments)])


def given_to_run(job: Any) -> dict[str, Any]:
    """The job's command as `run` understands it."""
    program, verb, *arguments = shlex.split(job.request["entrypoint"])
    assert (program, verb) == ("targetsweep", "run")
    return parsed(arguments)


def parsed(arguments: list[str]) -> dict[str, Any]:
    run = typer.main.get_command(cli.app).commands["run"]  # type: ignore[attr-defined]
    with run.make_context("run", arguments) as context:
        found: dict[str, Any] = context.params
        return found


# -- what is sent ----------------------------------------------------------------------------------


def test_a_job_is_run_on_the_cluster(file: Path, store: Store, server: FakeJobServer) -> None:
    done = submit(
        file, "--store", store.root, "--ray-address", server.address,
        "--limit", "strategy=A", "--limit", "seed=0", "--checkpoint-every", 5, "--compile",
        "--no-cuda-graphs",
    )  # fmt: skip
    assert done.exit_code == 0, done.exception
    job, asked = server.job, given_to_run(server.job)
    assert asked["ray_address"] == "auto"
    assert asked["store"] == str(store.root)
    assert asked["limit"] == ["strategy=A", "seed=0"]
    assert (asked["checkpoint_every"], asked["compile_"]) == (5.0, True)
    assert asked["cuda_graphs"] is False
    (shipped,) = asked["files"]
    assert (job.folder / shipped).read_text() == file.read_text()
    assert [p.name for p in job.folder.rglob("*") if p.is_file()] == [file.name]

    record = read_job(store)
    assert record is not None
    assert record.address == server.address
    assert list(server.jobs) == [record.id]
    assert record.id in done.output
    assert f"stop --store {store.root}" in done.output.replace("\n", "")
    assert json.loads(job.request["runtime_env"]["env_vars"][JOB_VARIABLE]) == record.to_json()


def test_included_files_go_along_as_they_lie(tmp_path: Path) -> None:
    (tmp_path / "paper" / "reference").mkdir(parents=True)
    (tmp_path / "scales").mkdir()
    group = write(
        tmp_path / "paper", "name: all\ninclude: [one.yaml]\nscale: ../scales/s.yaml\n", "g.yaml"
    )
    write(
        tmp_path / "paper",
        "name: one\nreport: [{table: t, reference: reference/t.csv}]\n",
        "one.yaml",
    )
    write(tmp_path / "scales", "name: s\n", "s.yaml")
    write(tmp_path / "paper" / "reference", "value\n", "t.csv")
    write(tmp_path, "unrelated", "secret.yaml")
    files = files_of([group])
    placed = pack(files, tmp_path / "out")
    shipped = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
    assert shipped == sorted(placed.values())
    assert {Path(rel).name for rel in shipped} == {"g.yaml", "one.yaml", "s.yaml", "t.csv"}
    assert files_of([tmp_path / "out" / placed[group]]) == [
        tmp_path / "out" / placed[f] for f in files
    ]
    assert {rel.split("/")[0] for rel in shipped} == {"sweep-files"}  # shadows no package


def test_an_absolute_include_is_refused(tmp_path: Path) -> None:
    group = write(tmp_path, f"name: all\ninclude: [{tmp_path}/one.yaml]\n", "g.yaml")
    with pytest.raises(UserError, match="other machines do not have"):
        files_of([group])


def test_every_option_of_run_is_one_of_submit() -> None:
    found = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    options = {
        name: {one.name: (one.opts, one.default, one.help) for one in found[name].params}
        for name in ("run", "submit")
    }
    for name in NOT_PASSED_ON:
        del options["run"][name]
    own = {name: options["submit"].pop(name) for name in ("ray_address", "follow")}
    assert options["submit"] == options["run"]
    assert own["ray_address"][0] == ["--ray-address"]


def test_run_understands_every_option_that_is_passed_on() -> None:
    """Each with another value than its default."""
    defaults = parsed(["a.yaml"])
    hints = get_type_hints(cli.run)
    others = {"list": ["x=1", "y=2"], "int": 7, "float": 2.5, "str": "text", "Literal": "gpu"}
    values: dict[str, Any] = {}
    for name in defaults.keys() - set(NOT_PASSED_ON):
        kind = next((kind for kind in others if kind in str(hints[name])), "")
        values[name] = others[kind] if kind else not defaults[name]
    again = parsed(arguments_of(cli.run, values))
    assert {name: again[name] for name in values} == values
    assert not {name for name in values if again[name] == defaults[name]}


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--store", "store"], "absolute path or a URI"),
        (["--store", "s3://key:secret@bucket/x"], "carries credentials"),
        (["--data", "cifar10=data/cifar10"], "as the nodes see it"),
        (["--tracking-uri", "http://me:secret@server:5000"], "carries a password"),
        (["--ray-address", "ray://head:10001"], "http://HEAD:8265"),
        (["--ray-address", "auto"], "http://HEAD:8265"),
        (["--ray-address", "http://me:secret@head:8265"], "RAY_AUTH_TOKEN"),
        (["--gpus-per-run", "1.5"], "whole number"),
    ],
    ids=["relative", "credentials", "data", "password", "client", "auto", "userinfo", "gpus"],
)
def test_what_could_only_go_wrong_there(
    file: Path, store: Store, server: FakeJobServer, arguments: list[str], said: str
) -> None:
    given = ["--ray-address", server.address, "--store", store.root]
    done = submit(file, *given, *arguments)
    assert isinstance(done.exception, UserError), done.exception
    assert said in str(done.exception)
    assert "secret" not in f"{done.output}{done.exception}"
    assert done.exception.exit_status == 2
    assert not server.jobs


def test_sweeps_are_checked_here(tmp_path: Path, store: Store, server: FakeJobServer) -> None:
    file = write(tmp_path, TINY + "grids: [{axes: {strateggy: [A]}}]\n")
    done = submit(file, "--store", store.root, "--ray-address", server.address)
    assert isinstance(done.exception, SpecError)
    assert not server.requests


def test_data_need_not_be_here(tmp_path: Path, server: FakeJobServer) -> None:
    """Nor the store: both are the cluster's."""
    file = write(tmp_path, TINY.replace("digits", "cifar10") + GRID)
    store = tmp_path / "elsewhere" / "store"
    data = "cifar10=/on/the/cluster"
    done = submit(file, "--store", store, "--data", data, "--ray-address", server.address)
    assert done.exit_code == 0, done.exception
    assert "cannot be seen from here" in done.output
    assert given_to_run(server.job)["data"] == [data]
    assert not store.exists()


def test_a_store_that_is_driven(file: Path, store: Store, server: FakeJobServer) -> None:
    with Lease(store, "targetsweep run other.yaml"):
        done = submit(file, "--store", store.root, "--ray-address", server.address)
    assert isinstance(done.exception, StoreInUseError)
    assert "targetsweep run other.yaml" in str(done.exception)
    assert not server.jobs


def test_a_password_in_the_environment_stays_here(
    file: Path, store: Store, server: FakeJobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter22@mlflow:5000")
    done = submit(file, "--store", store.root, "--ray-address", server.address)
    assert done.exit_code == 0, done.exception
    assert given_to_run(server.job)["tracking_uri"] == "http://me:hunter22@mlflow:5000"  # its own
    sent = json.dumps(server.job.request) + str(store.read_bytes(paths.job_json()))
    assert "hunter22" not in sent + done.output
    assert "stays here" in done.output


def test_no_server_and_no_token(tmp_path: Path, file: Path, store: Store) -> None:
    done = submit(file, "--store", store.root, "--ray-address", "http://127.0.0.1:9")
    assert isinstance(done.exception, MachineError)
    assert "no job server answers" in str(done.exception)
    with job_server(tmp_path / "guarded", token="right") as server:
        done = submit(file, "--store", store.root, "--ray-address", server.address)
    assert isinstance(done.exception, MachineError)
    assert "RAY_AUTH_TOKEN" in str(done.exception)
    assert read_job(store) is None


def test_addresses() -> None:
    assert checked_address(None) == "http://127.0.0.1:8265"
    assert checked_address("head:8265") == "http://head:8265"
    assert checked_address("https://head:8265/") == "https://head:8265"


# -- what comes back -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 130])
def test_following_ends_as_the_job_ends(
    tmp_path: Path, file: Path, store: Store, status: int
) -> None:
    """The connection to its log breaks twice; every line is shown once."""
    with job_server(tmp_path / "cluster", breaks=2) as server:
        threading.Timer(0.5, server.end, [status]).start()
        done = submit(file, "--store", store.root, "--ray-address", server.address, "--follow")
    assert getattr(done.exception, "exit_status", 0) == status, done.exception
    shown = done.output.splitlines()
    assert [shown.count(line) for line in ("ready", "done")] == [1, 1]


def test_a_driver_notes_its_job(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"id": "targetsweep-x", "address": "http://head:8265", "submitted": "", "command": "c"}
    monkeypatch.setenv(JOB_VARIABLE, json.dumps(record))
    note_job(store)
    found = read_job(store)
    assert found is not None
    assert found.to_json() == record
    monkeypatch.delenv(JOB_VARIABLE)
    note_job(store)
    assert read_job(store) is None
