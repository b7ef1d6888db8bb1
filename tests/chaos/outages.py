"""MLflow's server and its database go away for a while, and come back."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.chaos.kinds import Kind
from tests.chaos.scene import Scene
from tests.servers import Server, mlflow_server, postgres

__all__ = ["tracked"]

_OUTAGE_S = 60.0

Play = Callable[[Scene], Iterator[None]]


def tracked(play: Play) -> Play:
    """The same scene with MLflow's server over PostgreSQL, both away in turns while things break:
    for a minute each. At the end they are back."""

    def both(scene: Scene) -> Iterator[None]:
        with postgres() as database, mlflow_server(database.uri) as mlflow:
            scene.tracking_uri = mlflow.uri
            with _outages(scene, {Kind.MLFLOW: mlflow, Kind.POSTGRES: database}):
                acts = play(scene)
                next(acts)
            yield
            next(acts, None)

    both.__name__ = f"tracked_{play.__name__}"
    return both


@contextmanager
def _outages(scene: Scene, servers: dict[Kind, Server]) -> Iterator[None]:
    """One outage after the other; what is left of them when the block is over does not happen."""
    over = threading.Event()
    draw = random.Random(scene.random.random())

    def break_servers() -> None:
        for kind in draw.sample(sorted(servers), len(servers)):
            if over.wait(draw.uniform(5.0, 20.0)):
                return
            scene.inject(kind, f"for at most {_OUTAGE_S:g} s")
            servers[kind].stop()
            over.wait(_OUTAGE_S)
            servers[kind].start()

    thread = threading.Thread(target=break_servers, name="outages")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
