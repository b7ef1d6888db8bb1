"""Ledgers of units with a few fields, and what to ask of them."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.admission import Capacity, Shape
from orchestrator.ledger import Ledger, State, Task
from orchestrator.retry import Cause, Failure

LOST = Failure(cause=Cause.WORKER_LOST, message="its process died")
BUG = Failure(cause=Cause.ERROR, message="KeyError: 'lr'")


@dataclass(frozen=True)
class Fake:
    name: str
    needs: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    cost: float = 10.0
    workers: int = 1


def ledger_of(*tasks: Fake, slots: float = 2.0, **options: object) -> Ledger:
    def shape_of(task: Task) -> Shape:
        assert isinstance(task, Fake)
        return Shape(workers=task.workers)

    return Ledger(tasks, Capacity(slots), shape_of=shape_of, **options)  # type: ignore[arg-type]


def state(ledger: Ledger, name: str) -> State:
    return ledger.entries[name].state


def names(ledger: Ledger, wanted: State) -> set[str]:
    return {entry.task.name for entry in ledger.in_state(wanted)}


def take(ledger: Ledger) -> str | None:
    task = ledger.next()
    return None if task is None else task.name


def take_all(ledger: Ledger) -> list[str]:
    taken = []
    while (name := take(ledger)) is not None:
        taken.append(name)
    return taken


TEACHER = Fake("teacher", provides=("teacher/acc-30", "teacher/acc-60"), cost=100)
TARGETS = Fake("targets", needs=("teacher/acc-60",), provides=("targets",), cost=1)
C = Fake("C", needs=("teacher/acc-60", "targets"), cost=40)
B = Fake("B", needs=("teacher/acc-30",), cost=40)
A = Fake("A", cost=40)
