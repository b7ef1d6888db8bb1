"""The `targetsweep` command as a person gives it: another process, its lines read as they come."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from orchestrator import paths
from orchestrator.store import Store
from orchestrator.tracking import tracking_uri
from orchestrator.tracking_view import is_kept, units
from tests.tracking_helpers import Seen

PROGRAM = str(Path(sys.executable).with_name("targetsweep"))


def own_environment() -> dict[str, str]:
    """This process's, less what would point our commands elsewhere."""
    ours = ("MLFLOW_TRACKING_URI", "TARGETSWEEP_STORE", "RAY_ADDRESS")
    return {name: value for name, value in os.environ.items() if name not in ours}


@dataclass
class Command:
    """A running command. text: all it wrote so far."""

    process: subprocess.Popen[str]
    text: str = ""
    lines: list[str] = field(default_factory=list)

    def read(self) -> str | None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            return None
        self.text += line
        self.lines.append(line.rstrip())
        return line

    def until(self, pattern: str) -> re.Match[str]:
        """Reads on until a line matches; the end of the output is a failure."""
        while (line := self.read()) is not None:
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"no line matches {pattern!r} in:\n{self.text}")

    def end(self) -> int:
        while self.read() is not None:
            pass
        return self.process.wait()

    def interrupt(self) -> None:
        """Ctrl-C in a terminal: the signal goes to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        self.process.kill()

    def trials(self) -> list[psutil.Process]:
        """The processes that Tune's trials live in."""
        return self._named("ImplicitFunc")

    def workers(self) -> list[psutil.Process]:
        """Ray Train's workers, of distributed runs."""
        return self._named("RayTrainWorker")

    def _named(self, actor: str) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if actor in "".join(_cmdline(child))]

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.text, re.MULTILINE))

    @property
    def trained(self) -> list[str]:
        """Labels of what was begun, in order, with the first step."""
        found = re.findall(r"^[\d:]+ (.*): (?:starts|continues) at step ([\d,]+)", self.text, re.M)
        return [f"{label} @{step}" for label, step in found]

    @property
    def started_ray(self) -> bool:
        return "units to do" in self.text


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@contextmanager
def running(*arguments: object, environment: Mapping[str, str] | None = None) -> Iterator[Command]:
    """Starts the command; whatever it leaves behind is killed. environment: of another cluster's
    driver."""
    process = subprocess.Popen(
        [PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=own_environment() if environment is None else dict(environment),
        start_new_session=True,
    )
    try:
        yield Command(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def targetsweep(
    *arguments: object, status: int = 0, environment: Mapping[str, str] | None = None
) -> Command:
    """The command, to its end; asserts its exit status."""
    with running(*arguments, environment=environment) as command:
        ended = command.end()
    assert ended == status, command.text
    assert "Traceback" not in command.text, command.text
    return command


# -- what a store and MLflow then hold -------------------------------------------------------------


def tables(store: Store, sweep: str) -> dict[str, bytes]:
    """Every file of report/tables by name."""
    folder = store.root / paths.report_dir(sweep) / "tables"
    found = {file.name: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
    assert found
    return found


def check_tracking(store: Store, sweep: str, uri: str | None = None) -> None:
    """No run twice or missing; no point twice, missing or other than its stored row; all closed."""
    seen = Seen(tracking_uri(store, uri), sweep)
    plan = store.read_json(paths.plan_json(sweep)) or {}
    names = units(store, plan)
    runs = [*seen.runs("student"), *seen.runs("teacher")]
    named = [paths.run_name(r.data.tags["targetsweep.kind"], r.data.tags["run_key"]) for r in runs]
    assert sorted(named) == sorted(names)
    for name, run in zip(named, runs, strict=True):
        _check_points(store, seen, name, run)
    (parent,) = seen.runs("sweep")
    assert parent.info.status == "FINISHED"
    cells = [run.info.run_name for run in seen.runs("aggregate")]
    assert cells
    assert len(cells) == len(set(cells))


def _check_points(store: Store, seen: Seen, name: str, run: Any) -> None:
    rows = pq.read_table(store.local(paths.metrics(name))).to_pylist()
    request = store.read_json(paths.request_json(name)) or {}
    result = store.read_json(paths.result(name))
    expected = "FINISHED" if result is not None else "FAILED"
    assert run.info.status == expected, name
    always = {*request["evaluate_at"], request["horizon"], (result or {}).get("step")}
    for metric in ("top1", "train_ce") if name.startswith("teacher") else ("top1_h", "train_kl"):
        history = seen.client.get_metric_history(run.info.run_id, metric)
        points = sorted((point.step, point.timestamp, point.value) for point in history)
        wanted = [
            (row["step"], row["timestamp_ms"], row[metric])
            for row in rows
            if is_kept(row["step"], always) and row[metric] == row[metric]  # no NaN
        ]
        assert points == wanted, (name, metric)
