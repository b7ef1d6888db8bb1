"""What a Ray that is nobody's but ours goes without.

Beside what runs tasks, the head of a cluster starts an autoscaler, a log monitor, the server of its
dashboard, and an agent that serves metrics and jobs to that. On one machine that never changes,
with logs that nobody forwards and no dashboard, they do nothing, and starting them costs about
three seconds of a core, one of which Ray waits for (2.60). It has no option for that. Where Ray is
installed without its `default` extra, the agent serves nothing; so it does here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["without_helpers"]

_HELPERS = ("start_monitor", "start_log_monitor", "start_api_server")
"""Methods of Ray's `Node`, each of which starts one process."""


@contextmanager
def without_helpers() -> Iterator[None]:
    """What the block starts of Ray is without them. A Ray that names them otherwise starts them."""
    from ray._private import utils
    from ray._private.node import Node

    replaced: list[tuple[Any, str, Any]] = [
        (Node, name, _start_nothing) for name in _HELPERS if hasattr(Node, name)
    ]
    if hasattr(utils, "get_dashboard_dependency_error"):
        replaced.append((utils, "get_dashboard_dependency_error", _not_installed))
    kept = [(place, name, getattr(place, name)) for place, name, _ in replaced]
    for place, name, ours in replaced:
        setattr(place, name, ours)
    try:
        yield
    finally:
        for place, name, theirs in kept:
            setattr(place, name, theirs)


def _start_nothing(*arguments: Any, **named: Any) -> None:
    return None


def _not_installed() -> ImportError:
    """Ray's word for an installation without the `default` extra."""
    return ImportError("not needed here")
