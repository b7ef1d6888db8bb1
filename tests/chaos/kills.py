"""kill -9 of the driver, of trials, of DDP workers; a second driver beside them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from orchestrator.lease import holder
from tests.chaos.command import Command, OutOfTime
from tests.chaos.flights import Flight
from tests.chaos.kinds import Kind
from tests.chaos.scene import Scene

__all__ = ["drivers", "second_driver", "trials", "wide_drivers", "wide_trials", "workers"]


def drivers(scene: Scene) -> Iterator[None]:
    """Wherever it is: while it plans, starts Ray, trains, writes the report."""
    moments: list[Callable[[Scene, Command], None]] = [
        _early, _as_a_run_starts, _in_training, _after_a_run, _in_training
    ]  # fmt: skip
    scene.random.shuffle(moments)
    for moment in (*moments, _at_the_report):
        run = scene.run()
        with suppress(OutOfTime):  # the command came to its end before
            moment(scene, run)
        if not run.is_running:
            break
        scene.inject(Kind.DRIVER, moment.__name__.strip("_").replace("_", " "))
        run.kill()
    yield


def _early(scene: Scene, run: Command) -> None:
    scene.pause(4.0)


def _as_a_run_starts(scene: Scene, run: Command) -> None:
    run.until(r"(starts|continues) at step")
    scene.pause(0.3)


def _in_training(scene: Scene, run: Command) -> None:
    scene.training(run, scene.random.randint(1, 110))


def _after_a_run(scene: Scene, run: Command) -> None:
    for _ in range(scene.random.randint(1, 4)):
        run.until("done at step")


def _at_the_report(scene: Scene, run: Command) -> None:
    run.until("### strategies")


def trials(scene: Scene) -> Iterator[None]:
    """The processes that train, at random steps of random runs."""
    run = scene.run()
    for _ in range(7):
        most = scene.random.randint(1, 110)
        flight = scene.training(run, most, lambda one: scene.hits[one.unit] < 2)
        if flight is None:
            break
        scene.kill_process(Kind.TRIAL, flight)
        if scene.random.random() < 0.5:
            with suppress(OutOfTime):
                run.until("done at step")
    run.wait()
    yield


def _is_student(flight: Flight) -> bool:
    return flight.unit.startswith("student")


def workers(scene: Scene) -> Iterator[None]:
    """Now the first, now the second worker of distributed runs; and a second driver meanwhile."""
    run = scene.run()
    for number in range(5):
        rank = scene.random.randrange(2)
        flight = scene.training(
            run,
            scene.random.randint(1, 200),
            lambda one, rank=rank: _is_student(one) and one.rank == rank,  # type: ignore[misc]
        )
        if flight is None:
            break
        scene.kill_process(Kind.WORKER, flight)
        if number == 2:
            second_driver(scene, run)
    run.wait()
    yield


def wide_trials(scene: Scene) -> Iterator[None]:
    """The trial's own process, which looks after the workers of a distributed run."""
    run = scene.run()
    for _ in range(4):
        flight = scene.training(run, scene.random.randint(1, 200), _is_student)
        if flight is None:
            break
        for process in scene.processes("ImplicitFunc"):
            scene.inject(Kind.TRIAL, f"{flight.unit}'s controller")
            scene.hits[flight.unit] += 1
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            break
        _until_gone(scene, flight)
    run.wait()
    yield


def _until_gone(scene: Scene, flight: Flight) -> None:
    """The workers of a killed trial live on for a moment."""
    while flight.is_alive and time.monotonic() < scene.deadline_s:
        time.sleep(0.05)


def wide_drivers(scene: Scene) -> Iterator[None]:
    """While distributed runs train."""
    for _ in range(3):
        run = scene.run()
        flight = scene.training(run, scene.random.randint(1, 200), _is_student)
        if flight is None:
            break
        scene.inject(Kind.DRIVER, f"{flight.unit} at step {flight.last}")
        run.kill()
    yield


def second_driver(scene: Scene, first: Command) -> None:
    """It is refused by name, and the first does not notice."""
    owner = holder(scene.store)
    if owner is None or not first.is_running:
        return
    scene.inject(Kind.SECOND_DRIVER, str(owner))
    refused = scene.command(
        "run", scene.reference.file, "--store", scene.folder / "store", *scene.options
    )
    status = refused.wait()
    if status != 2 or f"process {owner.pid}" not in refused.text:
        scene.problems.append(f"a second driver ended with {status}: {refused.text[-300:]}")
    if not first.is_running:
        return
    if holder(scene.store) is None:
        scene.problems.append("a second driver took the lease away")
