"""A scene: one store, one sweep, commands that are given again and again, and faults in between."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from orchestrator import paths
from orchestrator.store import Store
from tests.chaos.command import Command, OutOfTime, wait_for
from tests.chaos.flights import Flight, flights
from tests.chaos.kinds import Fault, Kind
from tests.chaos.sweeps import Reference
from tests.driving import digits_store

__all__ = ["Scene", "Stamp", "environment_of"]

INTERVAL_S = 0.3
"""Seconds between checkpoints: runs of a second or two have several."""
_INJECT = str(Path(__file__).with_name("inject"))
_OURS = ("MLFLOW_TRACKING_URI", "TARGETSWEEP_STORE", "RAY_ADDRESS", "CHAOS_FOLDER", "PYTHONPATH")
_RETRIES = 3
"""How often one run may lose a process within one command (`retry`)."""


@dataclass(frozen=True)
class Stamp:
    """A finished run: what its result is, and when it was last given out and last written."""

    result: bytes
    times: tuple[int, int]


def environment_of(folder: Path) -> dict[str, str]:
    """Of a process under test: `inject/` is imported, and its folder tells it what to do."""
    inherited = {name: value for name, value in os.environ.items() if name not in _OURS}
    path = os.pathsep.join(filter(None, [_INJECT, os.environ.get("PYTHONPATH", "")]))
    return inherited | {"CHAOS_FOLDER": str(folder), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@dataclass
class Scene:
    """hits: how often a run lost a process within one command. damaged: what damaged files hold
    now. extra: variables for the commands' environment. options: theirs."""

    name: str
    folder: Path
    reference: Reference
    random: random.Random
    deadline_s: float
    options: list[str] = field(default_factory=list)
    tracking_uri: str | None = None
    extra: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    finished: dict[str, Stamp] = field(default_factory=dict)
    damaged: dict[str, bytes] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    _orders: dict[str, Fault] = field(default_factory=dict)
    _given: dict[str, Fault] = field(default_factory=dict)
    hits: Counter[str] = field(default_factory=Counter)
    logs: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        for part in ("flights", "orders", "spent"):
            (self.folder / part).mkdir(parents=True)
        self.set_clock(0)
        digits_store(self.folder / "store")

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    @property
    def environment(self) -> dict[str, str]:
        return environment_of(self.folder) | self.extra

    @contextmanager
    def inherited(self) -> Iterator[None]:
        """Processes that the harness itself starts meanwhile (Ray's nodes) are under test too."""
        before = dict(os.environ)
        os.environ.update(environment_of(self.folder))
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    # -- commands ------------------------------------------------------------------------------

    def run(self, *options: object) -> Command:
        """`targetsweep run` of the scene's sweep and store, begun."""
        self.note_finished()
        self._settle()
        self.hits.clear()
        tracking = ["--tracking-uri", self.tracking_uri] if self.tracking_uri else []
        every = ["--checkpoint-every", INTERVAL_S]
        return self.command(
            *("run", self.reference.file, "--store", self.folder / "store", *every),
            *(*tracking, *self.options, *options),
        )

    def command(self, *arguments: object) -> Command:
        log = self.folder / f"command-{len(self.logs) + 1}.log"
        self.logs.append(log)
        return Command(
            *arguments, log=log, environment=self.environment, deadline_s=self.deadline_s
        )

    def finish(self, *options: object) -> None:
        """The same command, undisturbed: it must end well. Where files were damaged that no run
        needed any more, nobody looked at them: then `store check` does, and the same once more."""
        self._undisturbed(*options)
        if self.damaged:
            check = self.command("store", "check", "--repair", "--store", self.folder / "store")
            status = check.wait()
            if status not in (0, 1):
                self.problems.append(f"`store check --repair` ended with {status}")
            self._undisturbed(*options)

    def _undisturbed(self, *options: object) -> None:
        status = self.run(*options).wait()
        if status != 0:
            self.problems.append(f"undisturbed, the command ended with {status}")

    @property
    def text(self) -> str:
        """All that the scene's commands wrote."""
        return "".join(log.read_text(errors="replace") for log in self.logs)

    # -- moments -------------------------------------------------------------------------------

    def flights(self) -> list[Flight]:
        return flights(self.folder)

    def training(
        self, run: Command, at_least: int, wanted: Callable[[Flight], bool] = lambda one: True
    ) -> Flight | None:
        """A process that just now trains and has done so many steps since it began; None once the
        command has ended. Runs that this command has lost often enough are left alone."""

        def look() -> Flight | bool | None:
            ended = not run.is_running
            now = time.monotonic()
            for one in self.flights():
                if (
                    one.steps >= at_least
                    and now - one.last_s < 2.0
                    and self.hits[one.unit] < _RETRIES
                    and wanted(one)
                    and not self.is_finished(one.unit)
                    and one.is_alive
                ):
                    return one
            return ended or None

        found = wait_for(look, self.deadline_s, f"step {at_least} of a run")
        return found if isinstance(found, Flight) else None

    def is_finished(self, unit: str) -> bool:
        return (self.folder / "store" / paths.result(unit)).exists()

    def note_finished(self) -> None:
        """Remembers which runs are complete: nothing may train them again."""
        for folder in (self.folder / "store" / "runs").glob("*-*"):
            if folder.name not in self.finished:
                with suppress(OSError):
                    result, request = folder / "result.json", folder / "request.json"
                    times = (result.stat().st_mtime_ns, request.stat().st_mtime_ns)
                    self.finished[folder.name] = Stamp(result.read_bytes(), times)

    def pause(self, most_s: float) -> None:
        """A random while, so that faults hit between events too."""
        time.sleep(self.random.uniform(0.0, most_s))

    # -- faults --------------------------------------------------------------------------------

    def inject(self, kind: Kind, what: str) -> Fault:
        """Writes down a fault that is about to happen."""
        self.note_finished()
        fault = Fault(kind, time.monotonic(), what, in_ddp=self._trains_in_ddp())
        self.faults.append(fault)
        return fault

    def _trains_in_ddp(self) -> bool:
        now = time.monotonic()
        return any(
            one.rank > 0 and now - one.last_s < 2.0 and not self.is_finished(one.unit)
            for one in self.flights()
        )

    def kill_process(self, kind: Kind, flight: Flight) -> None:
        self.inject(kind, f"{flight.unit} at step {flight.last}")
        self.hits[flight.unit] += 1
        with suppress(ProcessLookupError):
            os.kill(flight.pid, signal.SIGKILL)

    def order(self, kind: Kind, fault: str, unit: str, step: int) -> None:
        """What a process of `unit` is to do to itself at a step, once."""
        name = f"{len(list((self.folder / 'orders').iterdir())) + 1:03d}"
        content = {"id": name, "fault": fault, "unit": unit, "step": step}
        self._orders[name] = Fault(kind, 0.0, f"{fault}: {unit} from step {step}")
        (self.folder / "orders" / f"{name}.json").write_text(json.dumps(content))

    def _settle(self) -> None:
        """A command begins: the orders that the one before carried out are written down, its others
        taken back; those given since are for this one."""
        shift_s = time.monotonic() - time.time()
        for name, fault in self._given.items():
            (self.folder / "orders" / f"{name}.json").unlink()
            with suppress(FileNotFoundError):
                fault.at_s = (self.folder / "spent" / name).stat().st_mtime + shift_s
                self.faults.append(fault)
        self._given, self._orders = self._orders, {}

    def set_clock(self, offset_s: float) -> None:
        """How far the wall clock of all processes under test is off."""
        mode = "r+b" if (self.folder / "clock").exists() else "w+b"
        with (self.folder / "clock").open(mode) as file:
            file.write(struct.pack("<q", int(offset_s * 1e9)))

    # -- the end -------------------------------------------------------------------------------

    def processes(self, title: str = "") -> list[psutil.Process]:
        """All that still live of what the scene started."""
        mark = f"CHAOS_FOLDER={self.folder}\0".encode()
        found = []
        for one in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if mark in Path(f"/proc/{one.pid}/environ").read_bytes() and (
                    not title or title in " ".join(one.cmdline())
                ):
                    found.append(one)
        return [one for one in found if one.pid != os.getpid()]

    def leave_nobody(self, patience_s: float = 20.0) -> list[str]:
        """Waits for the scene's processes to end; whatever is left is named and killed."""
        with suppress(OutOfTime):
            wait_for(lambda: not self.processes(), time.monotonic() + patience_s, "the end")
        left = self.processes()
        names = [" ".join(one.cmdline())[:80] for one in left]
        for one in left:
            with suppress(psutil.Error):
                one.kill()
        return names

    def unmount(self) -> None:
        """If the store is a file system of its own."""
        if (self.folder / "store").is_mount():
            subprocess.run(["umount", "-l", self.folder / "store"], check=False)

    def units(self) -> Mapping[str, str]:
        """The reference's runs: name by label."""
        store = Store(self.reference.store)
        names = store.list("runs")
        return {(store.read_json(paths.run_json(name)) or {})["label"]: name for name in names}

    def students(self) -> list[str]:
        return sorted(name for name in self.units().values() if name.startswith("student"))
