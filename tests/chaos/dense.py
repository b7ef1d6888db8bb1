"""Nearly every kind of fault on one sweep, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from tests.chaos.command import Command, OutOfTime
from tests.chaos.files import BETWEEN, damage
from tests.chaos.flights import Flight
from tests.chaos.kills import second_driver
from tests.chaos.kinds import Kind
from tests.chaos.scene import Scene
from tests.chaos.spoils import HANG_AFTER_S, jump, spoil

__all__ = ["dense", "one_worker"]


def dense(scene: Scene) -> Iterator[None]:
    """First: a trial dies, one has no memory, one's loss is NaN, the clock jumps, a second driver
    comes, the driver dies. Then files turn out to be damaged; trials hang and freeze, and the
    scheduler gives thirty seconds' notice."""
    first = [scene.units()[f"A none full seed{seed}"] for seed in (0, 1)]
    spoil(scene, Kind.MEMORY, first[:1])
    spoil(scene, Kind.NAN, first[1:])
    run = scene.run()
    flight = scene.training(run, scene.random.randint(1, 60))
    if flight is not None:
        scene.kill_process(Kind.TRIAL, flight)
    if scene.training(run, scene.random.randint(1, 60)) is not None:
        jump(scene)
        second_driver(scene, run)
    if _in_the_middle(scene, run) is not None:
        scene.inject(Kind.DRIVER, "in the middle")
        run.kill()
    else:
        run.wait()
    scene.leave_nobody()
    for kind in BETWEEN:
        damage(scene, kind)
    left = [unit for unit in scene.students() if not scene.is_finished(unit)]
    scene.random.shuffle(left)
    spoil(scene, Kind.HANG, left[:1])
    spoil(scene, Kind.FROZEN, left[1:2])
    run = scene.run("--hang-after", HANG_AFTER_S)
    with suppress(OutOfTime):
        for _ in left[:2]:
            run.until("hung")
    flight = scene.training(run, scene.random.randint(1, 60))
    if flight is not None:
        scene.inject(Kind.SIGTERM, f"{flight.unit} at step {flight.last}")
        run.terminate()
        if run.wait(30.0) != 130:
            scene.problems.append("SIGTERM did not stop the command")
    else:
        run.wait()
    yield


def _in_the_middle(scene: Scene, run: Command) -> Flight | None:
    """A run with a checkpoint, when there are some finished ones to damage."""
    while (flight := scene.training(run, 20, lambda one: one.saved >= one.first)) is not None:
        scene.note_finished()
        if sum(name.startswith("student") for name in scene.finished) >= 3:
            return flight
    return None


def one_worker(scene: Scene) -> Iterator[None]:
    """One of two workers dies in the middle of a distributed run."""
    run = scene.run()
    rank = scene.random.randrange(2)
    flight = scene.training(run, scene.random.randint(5, 60), lambda one: one.rank == rank)
    if flight is not None:
        scene.kill_process(Kind.WORKER, flight)
    run.wait()
    yield
