"""What a sweep tells those who listen, and what they are told about: a running trial."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.rayprocesses import Process
from orchestrator.retry import Decision, Failure
from orchestrator.units import Unit

if TYPE_CHECKING:
    from orchestrator.conductor import Conductor

__all__ = ["Listener", "Live"]


class Listener:
    """What a screen, a log and MLflow may want to hear. Every method may be left as it is."""

    def watch(self, conductor: Conductor) -> None:
        """Once, before the first trial: whose words these will be."""

    def started(self, unit: Unit, first_step: int) -> None: ...
    def changed(self, unit: Unit) -> None:
        """A checkpoint, a snapshot or a result: the store has something new of this run."""

    def snapshot(self, unit: Unit, preset: float, step: int, accuracy: float) -> None: ...
    def finished(self, unit: Unit, live: Live) -> None: ...
    def failed(self, unit: Unit, failure: Failure, decision: Decision) -> None: ...
    def blocked(self, unit: Unit, token: str) -> None: ...
    def warned(self, message: str) -> None: ...


@dataclass
class Live:
    """A running trial. attempt: its name. processes: all of its own, as far as it said so. workers:
    those that train, without the host of a distributed run; once it failed, the one that did.
    worked_s:
    seconds until it last left something in the store that the next attempt builds on; None: it has
    left nothing."""

    unit: Unit
    attempt: str = ""
    processes: set[Process] = field(default_factory=set)
    workers: set[Process] = field(default_factory=set)
    worked_s: float | None = None
    started: float = field(default_factory=time.monotonic)
    first_step: int = 1
    step: int = 0
    top1: float | None = None
    images_per_s: float = 0.0
    final: dict[str, Any] | None = None

    def save(self) -> None:
        self.worked_s = time.monotonic() - self.started

    @property
    def where(self) -> str:
        """The machine and the Ray node that all of it trains on, for people; "" as of `node`."""
        hosts = {process.host for process in self.workers}
        return f"{min(hosts)} (node {self.node[:8]})" if self.node else ""

    @property
    def node(self) -> str:
        """Id of the Ray node that all of it trains on; "" where nobody knows, or where those are
        several."""
        nodes = {process.node_id for process in self.workers}
        return nodes.pop() if len(nodes) == 1 else ""

    @property
    def steps_trained(self) -> int:
        """By this attempt."""
        return max(0, self.step - self.first_step + 1)
