"""`stop`, from another process than the driver's; and what `status` says meanwhile."""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from orchestrator import cli, paths, stopcommand, stopping
from orchestrator.errors import TargetsweepError, UserError
from orchestrator.jobrecord import JobRecord
from orchestrator.lease import Lease, holder
from orchestrator.stopping import ask_to_stop, forget_others, watching
from orchestrator.store import Store
from tests.job_server import job_server

RUN = "targetsweep run a.yaml --store here"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for variable in ("MLFLOW_TRACKING_URI", "TARGETSWEEP_STORE", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    made = Store(tmp_path / "store")
    made.write_json(paths.plan_json("small"), {"points": []})
    return made


def call(verb: str, store: Store, *options: object) -> Result:
    arguments = [verb, "--store", store.root, *options]
    return CliRunner().invoke(cli.app, [str(one) for one in arguments])


@contextmanager
def driving(store: Store, command: str = RUN) -> Iterator[threading.Event]:
    """A driver that ends when it is asked to; the event says that it was."""
    asked, ended, taken = threading.Event(), threading.Event(), threading.Event()

    def drive() -> None:
        with Lease(store, command, heartbeat_s=0.05) as lease:
            forget_others(store, lease.id)
            taken.set()

            def stop() -> None:
                asked.set()
                ended.set()

            with watching(store, lease.id, stop):
                ended.wait(60)

    thread = threading.Thread(target=drive)
    thread.start()
    taken.wait(60)
    try:
        yield asked
    finally:
        ended.set()
        thread.join()


def driver_of(store: Store) -> str:
    found = holder(store)
    assert found is not None
    return found.id


def flags(store: Store) -> list[str]:
    return [name for name in store.list(paths.control_dir()) if name.startswith("stop")]


# -- the flag --------------------------------------------------------------------------------------


def test_a_flag_is_for_one_driver(store: Store) -> None:
    ask_to_stop(store, "0123456789abcdef")
    with driving(store) as asked:
        assert flags(store) == []  # an earlier driver's: it may not outlive it
        ask_to_stop(store, "0123456789abcdef")
        ask_to_stop(store, driver_of(store))
        assert asked.wait(60)


def test_a_flag_that_comes_before_the_first_look_counts(store: Store) -> None:
    with Lease(store, RUN) as lease:
        ask_to_stop(store, lease.id)
        forget_others(store, lease.id)
        heard: list[str] = []
        with watching(store, lease.id, lambda: heard.append("stop")):
            assert heard == ["stop"]
        assert heard == ["stop"]


def test_two_holdings_of_one_process_have_names_of_their_own(store: Store) -> None:
    with Lease(store, RUN) as first:
        assert first.id == driver_of(store) != ""
    assert holder(store) is None
    with Lease(store, RUN) as second:
        assert driver_of(store) == second.id != first.id


def test_the_end_waits_for_no_hung_mount(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_LAST_LOOK_S", 0.01)
    monkeypatch.setattr(stopping, "_LOOK_S", {True: 0.01})
    hanging, answers = threading.Event(), threading.Event()

    def looked(store: Store, driver: str) -> bool:
        if threading.current_thread() is not threading.main_thread():
            hanging.set()
            assert answers.wait(60)
        return False

    monkeypatch.setattr(stopping, "_is_asked", looked)
    try:
        with watching(store, "0123456789abcdef", lambda: None):
            assert hanging.wait(60)
        assert not answers.is_set()
    finally:
        answers.set()


# -- the command -----------------------------------------------------------------------------------


def test_stop_waits_until_the_driver_has_ended(store: Store) -> None:
    with driving(store) as asked:
        done = call("stop", store)
        assert done.exit_code == 0, done.exception
        assert asked.is_set()
        assert holder(store) is None
    assert RUN in done.output
    assert "To go on" in done.output
    assert flags(store) == []


def test_the_command_to_go_on_with_can_be_pasted(store: Store) -> None:
    words = ["targetsweep", "run", "my sweep.yaml", "--limit", "teacher.accuracy=20, 40"]
    with driving(store, shlex.join(words)):
        done = call("stop", store)
    assert shlex.split(done.output.splitlines()[-1]) == words


def test_nobody_drives(store: Store) -> None:
    done = call("stop", store)
    assert done.exit_code == 0
    assert "nobody drives" in done.output
    assert flags(store) == []


def test_a_driver_that_takes_its_time(store: Store) -> None:
    with Lease(store, RUN):
        done = call("stop", store, "--timeout", 0.1)
        assert isinstance(done.exception, TargetsweepError)
        assert "still drives after 0.1 s" in str(done.exception)
        assert done.exception.exit_status == 1
        assert flags(store) == [f"stop-{driver_of(store)}"]
        assert "it is asked to stop" in call("status", store).output
        assert call("stop", store, "--no-wait").exit_code == 0


def test_only_drivers_look_at_the_flag(store: Store) -> None:
    with Lease(store, "targetsweep sync --store here"):
        done = call("stop", store)
        assert isinstance(done.exception, UserError)
        assert "Ctrl-C" in str(done.exception)
        assert flags(store) == []


def test_a_driver_elsewhere_that_is_gone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopcommand, "_SILENT_S", 0.0)
    with Lease(store, RUN):
        content = store.read_json(paths.lease()) or {}
    store.write_json(paths.lease(), content | {"host": "another"})
    done = call("stop", store)
    assert done.exit_code == 0, done.exception
    assert "another is silent" in done.output


# -- with a Ray job --------------------------------------------------------------------------------


def record(store: Store, address: str, id: str = "targetsweep-job") -> None:
    job = JobRecord(id=id, address=address, submitted="2026-11-21", command="targetsweep submit x")
    store.write_json(paths.job_json(), dict(job.to_json()))


def test_now_ends_the_job_as_well(tmp_path: Path, store: Store) -> None:
    with job_server(tmp_path / "cluster") as server:
        CliRunner().invoke(cli.app, ["stop", "--store", str(store.root)])
        _start_job(server.address, tmp_path)
        (id,) = server.jobs
        record(store, server.address, id)
        assert f"job     {id} at {server.address}" in call("status", store).output
        assert "RUNNING" in call("status", store).output
        with driving(store):
            done = call("stop", store, "--now")
        assert done.exit_code == 0, done.exception
        assert "targetsweep submit x" in done.output  # to go on
        assert server.job.process.wait(30) == 130
        assert server.job.state == "STOPPED"
        assert "STOPPED" in call("status", store).output


def _start_job(address: str, folder: Path) -> None:
    (folder / "shipped").mkdir()
    (folder / "shipped" / "a.yaml").touch()
    from orchestrator.jobserver import JobServer

    JobServer(address).submit("targetsweep-job", "exec targetsweep run", folder / "shipped", {})


def test_now_without_a_job(store: Store) -> None:
    with driving(store):
        done = call("stop", store, "--now")
    assert isinstance(done.exception, UserError)
    assert "no Ray job" in str(done.exception)


# -- status ----------------------------------------------------------------------------------------


def test_status_of_a_driver_and_of_a_server_that_is_gone(store: Store) -> None:
    record(store, "http://127.0.0.1:9")
    store.write_bytes(f"{paths.damaged_dir()}/20261121T000000Z-runs~x~result.json", b"?")
    with Lease(store, RUN):
        shown = call("status", store).output
    assert RUN in shown
    assert "last heartbeat" in shown
    assert "cannot be asked (no job server answers at http://127.0.0.1:9" in shown
    assert "1 file set aside in damaged/" in shown


def test_status_counts_failures_by_cause(store: Store) -> None:
    names = [f"student-{n:016x}" for n in range(3)]
    points = [{"run": name, "horizon": 10, "snapshot": None} for name in names]
    store.write_json(paths.plan_json("small"), {"points": points})
    for name, cause in zip(names, ["diverged", "out of memory", "diverged"], strict=True):
        store.write_json(paths.failure(name), {"cause": cause})
    assert "failed for: 2 diverged, 1 out of memory" in call("status", store).output


def test_stopping_needs_no_ray(store: Store) -> None:
    """It must be quick, and work on a machine that only sees the store."""
    code = "import sys, orchestrator.stopcommand; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
