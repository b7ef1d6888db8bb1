"""What a training process may do to itself: a NaN, no memory, a hang, a freeze. And its clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from tests.chaos.command import OutOfTime
from tests.chaos.kinds import Kind
from tests.chaos.scene import Scene

__all__ = ["HANG_AFTER_S", "clocks", "hangs", "jump", "memory", "nans", "spoil"]

HANG_AFTER_S = 3
_FAULTS = {
    Kind.NAN: ("nan",),
    Kind.MEMORY: ("no memory", "no device memory"),
    Kind.HANG: ("hang",),
    Kind.FROZEN: ("freeze",),
}


def spoil(scene: Scene, kind: Kind, units: list[str]) -> None:
    """One order for each unit, at a random step of whoever trains it next."""
    for unit in units:
        step = scene.random.randint(2, 110)
        scene.order(kind, scene.random.choice(_FAULTS[kind]), unit, step)


def _some(scene: Scene, number: int) -> list[str]:
    return scene.random.sample(scene.students(), number)


def nans(scene: Scene) -> Iterator[None]:
    """A loss that is not finite is nobody's bad luck: the run fails at once, the others go on."""
    spoil(scene, Kind.NAN, _some(scene, 3))
    run = scene.run()
    if run.wait() != 1 or run.text.count("diverged") < 3:
        scene.problems.append("a NaN was not reported as such")
    yield


def memory(scene: Scene) -> Iterator[None]:
    spoil(scene, Kind.MEMORY, _some(scene, 4))
    run = scene.run()
    if run.wait() != 0 or run.text.count("out of memory") < 4:
        scene.problems.append("out of memory was not retried")
    yield


def hangs(scene: Scene) -> Iterator[None]:
    """Asleep for ever inside a step, and stopped as a whole: found, dumped, tried again."""
    units = _some(scene, 4)
    spoil(scene, Kind.HANG, units[:2])
    spoil(scene, Kind.FROZEN, units[2:])
    run = scene.run("--hang-after", HANG_AFTER_S)
    if run.wait() != 0 or run.text.count("hung") < 4:
        scene.problems.append("a hanging trial was not found")
    yield


def jump(scene: Scene) -> None:
    """The wall clock of all processes under test, by hours or days, forth or back."""
    days = scene.random.choice([-400.0, -3.0, -0.1, 0.1, 3.0, 400.0])
    scene.inject(Kind.CLOCK, f"{days:+g} days")
    scene.set_clock(days * 86400)


def clocks(scene: Scene) -> Iterator[None]:
    """Jumps at random moments; in between the driver dies, so that every time that it wrote down is
    strange to the next."""
    for is_last in (False, True):
        run = scene.run()
        for _ in range(4):
            if scene.training(run, scene.random.randint(1, 80)) is None:
                break
            jump(scene)
            with suppress(OutOfTime):
                run.until("done at step")
        if is_last or not run.is_running:
            run.wait()
        else:
            scene.inject(Kind.DRIVER, "after clock jumps")
            run.kill()
    yield
