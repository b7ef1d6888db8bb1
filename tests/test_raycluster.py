"""A Ray of this machine: reachable from it alone, and by nobody without the token."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from orchestrator import raycluster, raylean
from orchestrator.errors import MachineError
from orchestrator.raylean import without_helpers

ALONE = """
import os, ray
from orchestrator.raycluster import connect
with connect(None, 2):
    @ray.remote
    def token():
        return os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"])
    print(*ray.get(token.remote()), ray.get_runtime_context().gcs_address, flush=True)
    input()
"""
JOINS = """
import sys
from orchestrator.errors import MachineError
from orchestrator.raycluster import connect
try:
    with connect(sys.argv[1], 0):
        print("joined")
except MachineError as error:
    print(error)
"""


def started(script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    strangers = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    kept = {name: value for name, value in os.environ.items() if name not in strangers}
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=kept | environment,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process with a Ray of its own, and its address. HOME: no token lies there."""
    process = started(ALONE, HOME=str(tmp_path_factory.mktemp("home")))
    assert process.stdout is not None
    mode, length, address = process.stdout.readline().split()
    assert (mode, length) == ("token", "64")
    yield process, address
    process.communicate("\n", timeout=60)


def tree(process: subprocess.Popen[str]) -> list[psutil.Process]:
    root = psutil.Process(process.pid)
    return [root, *root.children(recursive=True)]


@pytest.mark.ray
def test_nothing_listens_beyond_this_machine(alone: tuple[subprocess.Popen[str], str]) -> None:
    heard = {
        connection.laddr.ip
        for one in tree(alone[0])
        for connection in one.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert heard
    assert heard <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.ray
def test_no_token_on_a_command_line_or_in_a_file(
    alone: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    child = next(one for one in tree(alone[0]) if "raylet" in one.name())
    token = child.environ()["RAY_AUTH_TOKEN"]
    assert all(token not in " ".join(one.cmdline()) for one in tree(alone[0]))
    home = Path(child.environ()["HOME"])
    assert not list(home.rglob("*"))


@pytest.mark.ray
def test_no_process_without_work(alone: tuple[subprocess.Popen[str], str]) -> None:
    scripts = {Path(part).name for one in tree(alone[0]) for part in one.cmdline()}
    assert "raylet" in scripts
    assert not scripts & {"monitor.py", "log_monitor.py", "dashboard.py"}


@pytest.mark.ray
@pytest.mark.parametrize("token", [{}, {"RAY_AUTH_TOKEN": "f" * 64}])
def test_without_the_token_nobody_joins(
    alone: tuple[subprocess.Popen[str], str], token: dict[str, str], tmp_path: Path
) -> None:
    here = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # else Ray turns 127.0.0.1 into another
    stranger = started(JOINS, alone[1], HOME=str(tmp_path), **here, **token)
    said, _ = stranger.communicate(timeout=120)
    assert "joined" not in said
    assert f"no Ray cluster at {alone[1]}" in said
    assert "RAY_AUTH_TOKEN" in said


@pytest.mark.ray
def test_where_nobody_listens() -> None:
    stranger = started(JOINS, "127.0.0.1:9")
    said, _ = stranger.communicate(timeout=60)
    assert "no Ray cluster at 127.0.0.1:9" in said
    assert "check the address" in said


# -- without a Ray ---------------------------------------------------------------------------------


def test_ray_is_itself_again_when_it_has_started() -> None:
    from ray._private import utils
    from ray._private.node import Node

    def helpers() -> list[object]:
        started = [getattr(Node, name) for name in raylean._HELPERS]
        return [*started, utils.get_dashboard_dependency_error]

    def fail() -> None:
        assert not set(helpers()) & set(before)
        raise OSError("no memory")

    before = helpers()
    with pytest.raises(OSError, match="no memory"), without_helpers():
        fail()
    assert helpers() == before


# -- the environment -------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The process's, emptied of what matters here."""
    empty: dict[str, str] = {}
    monkeypatch.setattr(raycluster, "os", SimpleNamespace(environ=empty))
    return empty


def test_a_token_for_a_ray_of_ours(environment: dict[str, str]) -> None:
    raycluster._set_token(is_ours=True)
    assert environment["RAY_AUTH_MODE"] == "token"
    first = environment["RAY_AUTH_TOKEN"]
    assert len(first) == 64
    raycluster._set_token(is_ours=True)  # a second drive of this process
    assert environment["RAY_AUTH_TOKEN"] == first


@pytest.mark.parametrize(
    "given",
    [
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "mine"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/run/secrets/ray"},
    ],
)
def test_a_persons_own_settings_stand(environment: dict[str, str], given: dict[str, str]) -> None:
    environment.update(given)
    raycluster._set_token(is_ours=True)
    assert environment == given


def test_a_cluster_of_others_without_a_token_gets_none(environment: dict[str, str]) -> None:
    raycluster._set_token(is_ours=False)
    assert environment == {}
    environment["RAY_AUTH_TOKEN"] = "theirs"
    raycluster._set_token(is_ours=False)
    assert environment == {"RAY_AUTH_TOKEN": "theirs", "RAY_AUTH_MODE": "token"}


def test_trials_of_a_job_are_not_told_twice() -> None:
    ours = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    assert raycluster._for_trials(ours) == ours
    job = '{"runtime_env": {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}}}'
    assert raycluster._for_trials({**ours, "RAY_JOB_CONFIG_JSON_ENV_VAR": job}) == {}


def test_a_client_address_is_pointed_elsewhere() -> None:
    raycluster.check_address("auto")
    with pytest.raises(MachineError, match="targetsweep submit"):
        raycluster.check_address("ray://head:10001")


def test_nothing_is_freed_while_ray_shuts_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference that is freed in that moment ends the process."""
    import ray

    seen: list[str] = []

    class Reference:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            seen.append("freed")

    def shutdown() -> None:
        seen.append("collector on" if gc.isenabled() else "collector off")

    monkeypatch.setattr(ray, "shutdown", shutdown)
    Reference()
    raycluster._shutdown()
    assert seen == ["freed", "collector off"]
    assert gc.isenabled()
