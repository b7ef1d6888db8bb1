"""Servers that tests start: S3's protocol (moto), PostgreSQL, MLflow. Each is a process of its own
on a loopback port that it keeps over `stop` and `start`, and ends with its block.

    with postgres() as database, mlflow_server(database.uri) as mlflow:
        run("targetsweep", "run", …, env={**os.environ, **mlflow.environment})
        database.stop()
"""

from __future__ import annotations

import glob
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

__all__ = ["Server", "free_port", "mlflow_server", "postgres", "s3_server"]

_START_S = 90.0  # two cores shared by many tests; a start takes 1 to 10 s alone


@dataclass(kw_only=True)
class Server:
    """uri: for a client. environment: what a client's process needs besides (credentials too).
    end: the signal that ends it in order."""

    uri: str
    environment: Mapping[str, str]
    port: int
    command: Sequence[str]
    log: Path
    is_ready: Callable[[], bool]
    own_environment: Mapping[str, str] = field(default_factory=dict)
    end: signal.Signals = signal.SIGTERM
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.log.parent,
                env={**os.environ, **self.own_environment},
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        while not self.is_ready():
            if not self.is_running or time.monotonic() > deadline:
                text = self.log.read_text(errors="replace")[-4000:]
                self.kill()
                raise RuntimeError(f"{self.command[0]} does not answer:\n{text}")
            time.sleep(0.05)

    def stop(self) -> None:
        """In order; whatever does not end within ten seconds is killed."""
        if self.is_running:
            self.resume()
            os.kill(self.pid, self.end)
            with suppress(subprocess.TimeoutExpired):
                assert self.process is not None
                self.process.wait(10)
        self.kill()

    def kill(self) -> None:
        """kill -9, with all its children."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()

    def pause(self) -> None:
        """It accepts connections and never answers (the kernel accepts for it)."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def requests(self, method: str, part: str) -> int:
        """How often its log names a request of `method` whose path contains `part` (S3, MLflow)."""
        request = re.compile(rf'"(?:\x1b\[\d+m)*{method} [^" ]*{re.escape(part)}[^" ]* HTTP')
        return len(request.findall(self.log.read_text(errors="replace")))


@contextmanager
def s3_server(bucket: str = "bucket") -> Iterator[Server]:
    """moto, with one empty bucket; it keeps objects in memory, so `stop` loses them (`pause` does
    not). `uri` is pyarrow's for a store in the bucket."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ACCESS_KEY_ID": "planted-access-key",
        "AWS_SECRET_ACCESS_KEY": "planted-secret-key",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with _folder() as folder:
        server = Server(
            uri=f"s3://{bucket}/store?endpoint_override=127.0.0.1:{port}&scheme=http"
            "&region=us-east-1",
            environment=environment,
            port=port,
            command=[sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            log=folder / "s3.log",
            is_ready=lambda: _answers(f"{endpoint}/moto-api/"),
        )
        with _running(server):
            urllib.request.urlopen(
                urllib.request.Request(f"{endpoint}/{bucket}", method="PUT"), timeout=10
            ).close()
            yield server


@contextmanager
def postgres(database: str = "mlflow") -> Iterator[Server]:
    """A new PostgreSQL cluster with an empty database, password authentication, loopback only.
    Skips the test where PostgreSQL is not installed. As root it runs as another user: PostgreSQL
    refuses root. Its durability is off (a kill -9 of the process loses nothing all the same)."""
    binaries = _postgres_binaries()
    as_user, owner = _unprivileged()
    password, port = "planted-postgres-password", free_port()
    with _folder() as folder:
        data, secret = folder / "data", folder / "password"
        data.mkdir(mode=0o700)
        secret.write_text(password)
        for path in (folder, data, secret):
            os.chown(path, *owner)
        initdb = [*as_user, str(binaries / "initdb"), f"--pgdata={data}", f"--pwfile={secret}"]
        initdb += ["--username=targetsweep", "--auth=scram-sha-256", "--no-sync"]
        made = subprocess.run(
            [*initdb, "--encoding=UTF8", "--locale=C"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stdout + made.stderr
        settings = {"listen_addresses": "127.0.0.1", "port": port, "fsync": "off"}
        settings |= {"unix_socket_directories": str(folder), "max_connections": 60}
        options = [f"-c{name}={value}" for name, value in settings.items()]
        address = f"targetsweep:{password}@127.0.0.1:{port}"
        server = Server(
            # SQLAlchemy's own default would be psycopg 3.
            uri=f"postgresql+psycopg2://{address}/{database}",
            environment={},
            port=port,
            command=[*as_user, str(binaries / "postgres"), "-D", str(data), *options],
            log=folder / "postgres.log",
            is_ready=lambda: _accepts_queries(f"postgresql://{address}/postgres"),
            end=signal.SIGINT,
        )
        with _running(server):
            _create_database(f"postgresql://{address}/postgres", database)
            yield server


@contextmanager
def mlflow_server(backend_uri: str, artifacts: Path | None = None) -> Iterator[Server]:
    """MLflow's tracking server over any database. artifacts: where it keeps files (default: a
    folder that ends with the block)."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    with _folder() as folder:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--workers", "1"]
        command += ["--artifacts-destination", str(artifacts or folder / "artifacts")]
        server = Server(
            uri=uri,
            environment={"MLFLOW_TRACKING_URI": uri},
            port=port,
            command=command,
            log=folder / "mlflow.log",
            is_ready=lambda: _answers(f"{uri}/health"),
            # The database's password does not belong into a command line.
            own_environment={
                "MLFLOW_BACKEND_STORE_URI": backend_uri,
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
        )
        with _running(server):
            yield server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _folder() -> Iterator[Path]:
    """Not pytest's tmp_path: another user must get into it."""
    folder = Path(tempfile.mkdtemp(prefix="targetsweep-server-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(server: Server) -> Iterator[None]:
    server.start()
    try:
        yield
    finally:
        server.stop()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _postgres_binaries() -> Path:
    """The folder with initdb and postgres; the newest where there are several."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: _version(Path(path)))
    on_path = shutil.which("postgres")
    candidates = [*map(Path, reversed(found)), *([Path(on_path).parent] if on_path else [])]
    for folder in candidates:
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            return folder
    pytest.skip("PostgreSQL's initdb and postgres are not installed (apt-get install postgresql)")


def _version(path: Path) -> float:
    with suppress(ValueError):
        return float(path.parent.name)
    return 0.0


def _unprivileged() -> tuple[list[str], tuple[int, int]]:
    """(what to put before a command, (user, group) that it then runs as)."""
    if os.geteuid() != 0:
        return [], (os.getuid(), os.getgid())
    if shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL refuses root, and there is no setpriv to become somebody else")
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    command = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return command, (user.pw_uid, user.pw_gid)


def _accepts_queries(uri: str) -> bool:
    import psycopg2

    try:
        psycopg2.connect(uri, connect_timeout=2).close()
    except psycopg2.OperationalError:
        return False
    return True


def _create_database(uri: str, name: str) -> None:
    import psycopg2

    connection = psycopg2.connect(uri)
    connection.autocommit = True  # CREATE DATABASE refuses a transaction
    with connection.cursor() as cursor:
        cursor.execute(f'CREATE DATABASE "{name}"')
    connection.close()
