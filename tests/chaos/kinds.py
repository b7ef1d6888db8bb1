"""The kinds of faults, and one fault that was injected."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["BOUNDED", "DAMAGE", "KILLS", "Fault", "Kind"]


class Kind(StrEnum):
    DRIVER = "kill -9 the driver"
    TRIAL = "kill -9 a trial"
    WORKER = "kill -9 a DDP worker"
    NODE = "kill -9 a whole Ray node"
    HEAD = "kill -9 the head node"
    MLFLOW = "MLflow server away"
    POSTGRES = "PostgreSQL away"
    DISK_FULL = "disk full"
    READ_ONLY = "store read-only"
    CHECKPOINT = "damaged checkpoint"
    METRICS = "damaged metrics file"
    RESULT = "damaged result"
    SNAPSHOT = "damaged snapshot"
    TARGETS = "damaged soft targets"
    SECOND_DRIVER = "second driver"
    NAN = "NaN in the loss"
    MEMORY = "out of memory in a trial"
    HANG = "hanging trial"
    FROZEN = "SIGSTOPped trial"
    CLOCK = "clock jump"
    SIGTERM = "SIGTERM, 30 s notice"
    DRAIN = "node drained, 30 s notice"


KILLS = frozenset({Kind.DRIVER, Kind.TRIAL, Kind.WORKER, Kind.NODE, Kind.HEAD})
DAMAGE = frozenset({Kind.CHECKPOINT, Kind.METRICS, Kind.RESULT, Kind.SNAPSHOT, Kind.TARGETS})
NOTICED = frozenset({Kind.SIGTERM, Kind.DRAIN})
"""With time to save: not a step may be lost."""
BOUNDED = frozenset(Kind) - DAMAGE
"""No more than a checkpoint interval may be lost. A damaged file takes what was in it along."""


@dataclass
class Fault:
    """at_s: monotonic. what: the run, process or file that it hit. in_ddp: while a distributed run
    trained. lost_steps: trained again because of it, the most of any run; lost_s: how long those
    had taken, since their last checkpoint."""

    kind: Kind
    at_s: float
    what: str
    in_ddp: bool = False
    lost_steps: int = 0
    lost_s: float = 0.0
