"""SIGTERM with thirty seconds' notice, as schedulers send it: time enough to lose nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.chaos.kinds import Kind
from tests.chaos.scene import Scene

__all__ = ["notices", "wide_notices"]

_NOTICE_S = 30.0


def notices(scene: Scene) -> Iterator[None]:
    _terminate(scene, 3, 110)
    yield


def wide_notices(scene: Scene) -> Iterator[None]:
    """While a distributed run trains."""
    _terminate(scene, 2, 200)
    yield


def _terminate(scene: Scene, times: int, most_steps: int) -> None:
    for _ in range(times):
        run = scene.run()
        flight = scene.training(
            run,
            scene.random.randint(1, most_steps),
            lambda one: not scene.reference.sweep.is_wide or one.unit.startswith("student"),
        )
        if flight is None:
            break
        scene.inject(Kind.SIGTERM, f"{flight.unit} at step {flight.last}")
        began = time.monotonic()
        run.terminate()
        status = run.wait()
        if status != 130 or time.monotonic() - began > _NOTICE_S:
            scene.problems.append(
                f"after SIGTERM the command ended with {status} in {time.monotonic() - began:.1f} s"
            )
