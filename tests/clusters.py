"""A Ray cluster of several nodes on this machine: real `ray start` processes, on the loopback
address alone, with token authentication, that can be killed one by one.

    with cluster(nodes=2, cpus=1) as ray_cluster:
        running("run", sweep, "--ray-address", ray_cluster.address, env=ray_cluster.environment)
        ray_cluster.kill_node(1)

Node 0 is the head. CPUs and GPUs are numbers that Ray counts; nothing has to be there. All nodes
have one address, 127.0.0.1: tell them apart by `node_id`, or by their resource `node-0`, `node-1`.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

__all__ = ["Cluster", "Node", "cluster"]

_START_S = 120.0  # alone a node takes 3 to 5 s; machines with other work take longer
_STORE_BYTES = 80_000_000  # Ray's object store; nothing of ours goes through it
_STRANGERS = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "MLFLOW_TRACKING_URI", "TARGETSWEEP_STORE")

_PACE = {
    # A killed raylet refuses connections at once; Ray waits for five refusals, 3 s apart.
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_initial_delay_ms": "2000",
    # How long nodes outlive their head.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}


@dataclass
class Node:
    """One `ray start --block` with everything it began. mark: in the environment of all of it."""

    index: int
    process: subprocess.Popen[bytes]
    log: Path
    mark: str

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def processes(self, title: str = "") -> list[psutil.Process]:
        """Everything that lives on this node and has `title` in its command line."""
        found = {one.pid: one for one in self._descendants()}
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if one.pid not in found and self._is_mine(one.pid):
                    found[one.pid] = one
        return [one for one in found.values() if title in _title(one)]

    def raylet(self) -> psutil.Process:
        return next(one for one in self.processes("/raylet") if "--node_id=" in _title(one))

    @property
    def node_id(self) -> str:
        """Ray's, 56 hex digits."""
        return _title(self.raylet()).partition("--node_id=")[2].split()[0]

    def kill(self) -> None:
        """kill -9 of all of it, as when a machine loses its power."""
        while victims := self.processes():
            for victim in victims:
                with contextlib.suppress(psutil.Error):
                    victim.kill()
            psutil.wait_procs(victims, timeout=5)
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()

    def _descendants(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.process.pid)
            return [] if _is_dead(root) else [root, *root.children(recursive=True)]
        except psutil.Error:
            return []

    def _is_mine(self, pid: int) -> bool:
        """Orphans too: of this node's session, or with its mark in their environment."""
        if _is_dead(psutil.Process(pid)):
            return False
        if os.getsid(pid) == self.process.pid:
            return True
        return self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _is_dead(process: psutil.Process) -> bool:
    try:
        return process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return True


@dataclass
class Cluster:
    """address: of the head (GCS), for --ray-address. dashboard: the Jobs server's URL, "" without.
    environment: for processes that join, submit or ask (the token is in it)."""

    folder: Path
    address: str
    dashboard: str
    token: str
    cpus: float
    gpus: int
    nodes: list[Node] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if name not in _STRANGERS}
        bin_folder = str(Path(sys.executable).parent)
        return {
            **ours,
            **_PACE,
            "PATH": f"{bin_folder}{os.pathsep}{ours.get('PATH', os.defpath)}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1 stays 127.0.0.1
        }

    def add_node(
        self,
        *,
        cpus: float | None = None,
        gpus: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Starts another node, waits until it has joined, and says its index. environment: of this
        node's processes alone, on top of the others'."""
        index = len(self.nodes)
        place = ["--head", *self._head()] if not self.nodes else ["--address", self.address]
        arguments = [
            *place,
            *("--num-cpus", f"{self.cpus if cpus is None else cpus:g}"),
            *("--num-gpus", f"{self.gpus if gpus is None else gpus}"),
            *("--resources", f'{{"node-{index}": 1000}}'),
            *("--node-ip-address", "127.0.0.1", "--dashboard-agent-listen-port", str(_port())),
            *("--min-worker-port", "0", "--max-worker-port", "0"),
            # Of its own, as on another machine: two nodes delete what each other unpacked.
            *(
                "--object-store-memory",
                str(_STORE_BYTES),
                "--temp-dir",
                str(self.folder / str(index)),
            ),
            *("--include-log-monitor", "false", "--disable-usage-stats", "--block"),
        ]
        mark = f"TARGETSWEEP_TEST_NODE={secrets.token_hex(8)}"
        own = {**self.environment, **(environment or {})}
        own[mark.partition("=")[0]] = mark.partition("=")[2]
        del own["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]  # `ray start` sets it when it is up
        if not self.nodes:
            own["DASHBOARD_METRIC_PORT"] = str(_port())
            own["AUTOSCALER_METRIC_PORT"] = str(_port())
        log = self.folder / f"node-{index}.log"
        self.nodes.append(Node(index, _start(arguments, own, log), log, mark))
        self._wait_for(self.nodes[index])
        return index

    def kill_node(self, index: int) -> None:
        """The node is gone, with its raylet and all that ran on it, and never said a word."""
        self.nodes[index].kill()

    def kill_head(self) -> None:
        self.kill_node(0)

    def terminate_node(self, index: int) -> None:
        """SIGTERM to the raylet: what a scheduler sends before it takes a machine away."""
        self.nodes[index].raylet().send_signal(signal.SIGTERM)

    def drain_node(self, index: int, notice_s: int) -> None:
        """Tells the cluster that the node will be preempted in so many seconds. Ray itself ends it
        then; nothing more is placed on it."""
        arguments = ["drain-node", "--address", self.address]
        arguments += ["--node-id", self.nodes[index].node_id]
        arguments += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
        arguments += ["--deadline-remaining-seconds", str(notice_s)]
        subprocess.run(
            [Path(sys.executable).with_name("ray"), *arguments],
            env=self.environment,
            check=True,
            capture_output=True,
        )

    def trials(self) -> list[psutil.Process]:
        """The processes that Tune's trials live in."""
        return self._titled("ImplicitFunc")

    def workers(self) -> list[psutil.Process]:
        """Ray Train's workers, of distributed runs."""
        return self._titled("RayTrainWorker")

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.kill()

    def _titled(self, title: str) -> list[psutil.Process]:
        return [one for node in self.nodes if node.is_alive for one in node.processes(title)]

    def _head(self) -> list[str]:
        port = self.address.rpartition(":")[2]
        arguments = ["--port", port, "--ray-client-server-port", str(_port())]
        if not self.dashboard:
            return [*arguments, "--include-dashboard", "false"]
        port = self.dashboard.rpartition(":")[2]
        return [*arguments, "--include-dashboard", "true", "--dashboard-port", port]

    def _wait_for(self, node: Node) -> None:
        deadline = time.monotonic() + _START_S
        while not self._is_ready(node):
            if not node.is_alive or time.monotonic() > deadline:
                raise RuntimeError(f"a node does not start:\n{node.log.read_text()[-3000:]}")
            time.sleep(0.05)

    def _is_ready(self, node: Node) -> bool:
        if b"Ray runtime started" not in node.log.read_bytes():
            return False
        return not self.dashboard or node.index > 0 or self._answers("/api/version")

    def _answers(self, path: str) -> bool:
        head = {"Authorization": f"Bearer {self.token}"}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.dashboard + path, headers=head), timeout=5
            ) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def cluster(
    nodes: int = 2, cpus: float = 1, gpus: int = 0, *, dashboard: bool = False
) -> Iterator[Cluster]:
    """nodes: with the head. cpus, gpus: of each. dashboard: with the Jobs server, which costs
    a gigabyte and some seconds. All is killed at the end of the block, or with this process."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets' paths must be short
    made = Cluster(
        folder=folder,
        address=f"127.0.0.1:{_port()}",
        dashboard=f"http://127.0.0.1:{_port()}" if dashboard else "",
        token=secrets.token_hex(32),
        cpus=cpus,
        gpus=gpus,
    )
    try:
        for _ in range(nodes):
            made.add_node()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _start(
    arguments: list[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("ray_start.py")), "start", *arguments],
            stdin=subprocess.PIPE,  # held open: its end tells the node that this process died
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _port() -> int:
    """A free one, out of those that no program is given by chance."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
