"""Somebody who listens to a conductor, and trials that say what a test has them say."""

from __future__ import annotations

from typing import Any

from orchestrator.conductor import Conductor
from orchestrator.ledger import State
from orchestrator.listener import Listener, Live
from orchestrator.retry import Decision, Failure
from orchestrator.units import Unit


class Ear(Listener):
    """Writes down all it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def started(self, unit: Unit, first_step: int) -> None:
        self.heard.append(("started", unit.label, first_step))

    def changed(self, unit: Unit) -> None:
        self.heard.append(("changed", unit.label))

    def snapshot(self, unit: Unit, preset: float, step: int, accuracy: float) -> None:
        self.heard.append(("snapshot", preset, step, accuracy))

    def finished(self, unit: Unit, live: Live) -> None:
        self.heard.append(("finished", unit.label, live.step, live.top1))

    def failed(self, unit: Unit, failure: Failure, decision: Decision) -> None:
        self.heard.append(("failed", unit.label, failure.cause, decision))

    def blocked(self, unit: Unit, token: str) -> None:
        self.heard.append(("blocked", unit.label, token))

    def warned(self, message: str) -> None:
        self.heard.append(("warned", message))

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [one for one in self.heard if one[0] == kind]


def begin(conductor: Conductor) -> str:
    config = conductor.next_trial()
    assert config is not None
    return str(config["unit"])


def tell(conductor: Conductor, unit: str, event: str, **facts: Any) -> None:
    conductor.on_report({"unit": unit, "event": event, **facts})


def finish(conductor: Conductor, unit: str, reason: str = "done", **facts: Any) -> None:
    tell(conductor, unit, "finished", reason=reason, step=20, **facts)
    conductor.on_end(unit, lost=False)


def break_with(conductor: Conductor, unit: str, message: str = "KeyError: 'x'") -> None:
    tell(conductor, unit, "failed", cause="error", message=message, traceback="Traceback …")
    conductor.on_end(unit, lost=False)


def state(conductor: Conductor, unit: str) -> State:
    return conductor.ledger.entries[unit].state
