"""What Prometheus may read of a sweep while it runs, at `--metrics-port`; off by default.

Runs by state and kind, steps, devices, failures by cause, what MLflow lacks. Everything is read
from the conductor when it is asked for, so a sweep that nobody watches pays nothing.
`dashboards/grafana/targetsweep.json` shows these beside Ray's own.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from orchestrator.conductor import Conductor
from orchestrator.errors import MachineError
from orchestrator.ledger import State
from orchestrator.listener import Listener, Live
from orchestrator.retry import Cause, Decision, Failure
from orchestrator.units import KINDS, Unit

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["Metrics", "exporting"]

_RATE_S = 60.0
"""Seconds that `targetsweep_steps_per_second` looks back."""
_PATIENCE_S = 2.0
"""How long a reader waits for the conductor before it gets the last figures again."""


class Metrics(Listener):
    """Listens to one conductor after the other (teachers that are measured come first) and is a
    Prometheus collector over the present one. Counters go on from one to the next."""

    def __init__(self) -> None:
        self._conductor: Conductor | None = None
        self._done_before: Mapping[str, int] = {}
        self._backlog: Callable[[], int] | None = None
        self._steps_before = 0
        self._failures: Counter[tuple[str, str]] = Counter({(c.value, "failed"): 0 for c in Cause})
        self._heard = time.monotonic()
        self._pace = _Pace()
        self._last: list[Metric] = []
        self._reading = threading.Lock()

    # -- from the driver -----------------------------------------------------------------------

    def begin(
        self, done_before: Mapping[str, int], backlog: Callable[[], int] | None = None
    ) -> None:
        """A plan is about to be driven. done_before: units done by earlier commands, by kind.
        backlog: how many runs MLflow lacks the latest state of."""
        if self._conductor is not None:
            self._steps_before += self._conductor.steps_trained
            self._conductor = None
        self._done_before, self._backlog = dict(done_before), backlog

    def watch(self, conductor: Conductor) -> None:
        self._conductor = conductor

    def started(self, unit: Unit, first_step: int) -> None:
        self._hear()

    def changed(self, unit: Unit) -> None:
        self._hear()

    def finished(self, unit: Unit, live: Live) -> None:
        self._hear()

    def failed(self, unit: Unit, failure: Failure, decision: Decision) -> None:
        self._hear()
        then = "failed" if decision is Decision.GIVE_UP else decision.name.lower()
        self._failures[failure.cause.value, then] += 1

    def _hear(self) -> None:
        self._heard = time.monotonic()

    # -- for Prometheus ------------------------------------------------------------------------

    def collect(self) -> Iterable[Metric]:
        """Called by the thread of each request."""
        with self._reading:
            conductor = self._conductor
            if conductor is None:
                self._last = list(self._families(None))
            elif conductor.lock.acquire(timeout=_PATIENCE_S):
                try:
                    self._last = list(self._families(conductor))
                finally:
                    conductor.lock.release()
            return list(self._last)

    def _families(self, conductor: Conductor | None) -> Iterator[Metric]:
        yield self._runs(conductor)
        yield from self._steps(conductor)
        yield _devices(conductor)
        yield self._attempts()
        behind = self._backlog() if self._backlog else 0
        yield _gauge("tracking_backlog", "runs of which MLflow lacks the latest state", behind)
        yield _gauge(
            "last_report_age_seconds",
            "since a run last began, saved, ended or failed",
            time.monotonic() - self._heard,
        )

    def _runs(self, conductor: Conductor | None) -> Metric:
        from prometheus_client.core import GaugeMetricFamily

        counts: Counter[tuple[str, str]] = Counter()
        for kind, count in self._done_before.items():
            counts[kind, State.DONE.value] += count
        for entry in conductor.ledger.entries.values() if conductor else ():
            assert isinstance(entry.task, Unit)
            counts[entry.task.kind, entry.state.value] += 1
        family = GaugeMetricFamily(
            "targetsweep_runs", "runs of the plan by kind and state", labels=["kind", "state"]
        )
        for kind in KINDS:
            for state in State:
                family.add_metric([kind, state.value], counts[kind, state.value])
        return family

    def _steps(self, conductor: Conductor | None) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily

        running = sum(live.steps_trained for live in conductor.live.values()) if conductor else 0
        trained = self._steps_before + running + (conductor.steps_trained if conductor else 0)
        left = _steps_left(conductor) if conductor else 0.0
        yield CounterMetricFamily(
            "targetsweep_steps", "optimiser steps trained by this driver's runs", value=trained
        )
        rate = self._pace.of(trained, time.monotonic())
        yield _gauge("steps_per_second", "optimiser steps/s, of late, of all runs together", rate)
        yield _gauge("steps_left", "optimiser steps still to train, as estimated", left)

    def _attempts(self) -> Metric:
        from prometheus_client.core import CounterMetricFamily

        family = CounterMetricFamily(
            "targetsweep_failures",
            "failed attempts by cause and by what was decided",
            labels=["cause", "decision"],
        )
        for (cause, decision), count in sorted(self._failures.items()):
            family.add_metric([cause, decision], count)
        return family


class _Pace:
    """Steps/s over the last minute, from the counts that readers saw."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, float]] = [(time.monotonic(), 0.0)]

    def of(self, steps: float, now: float) -> float:
        self._seen.append((now, steps))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _RATE_S:
            del self._seen[0]
        then, before = self._seen[0]
        seconds = now - then
        return (steps - before) / seconds if seconds > 0 else 0.0


def _devices(conductor: Conductor | None) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(
        "targetsweep_devices", "GPUs, or CPU slots where there are none", labels=["state"]
    )
    total = conductor.ledger.capacity.total if conductor else 0.0
    free = conductor.ledger.capacity.free if conductor else 0.0
    for state, value in (("total", total), ("used", total - free), ("free", free)):
        family.add_metric([state], max(0.0, value))
    return family


def _gauge(name: str, help_: str, value: float) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"targetsweep_{name}", help_, value=value)


@contextmanager
def exporting(port: int | None, host: str = "127.0.0.1") -> Iterator[Metrics | None]:
    """Serves metrics at http://host:port/metrics until the block ends; None without a port. With
    them goes what the driver's process costs (`process_resident_memory_bytes` …).

    Raises MachineError where the port cannot be had.
    """
    if port is None:
        yield None
        return
    from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

    registry, metrics = CollectorRegistry(), Metrics()
    registry.register(metrics)
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise MachineError(
            f"metrics cannot be served at {host}:{port}: {error.strerror or error}",
            "give another --metrics-port or --metrics-host",
        ) from error
    try:
        yield metrics
    finally:
        server.shutdown()
        server.server_close()
        thread.join(_PATIENCE_S)


def _steps_left(conductor: Conductor) -> float:
    """A search that goes on beyond what it counts as takes nothing off the others' steps."""
    entries = conductor.ledger.entries
    pairs = ((live.steps_trained, entries[name].cost) for name, live in conductor.live.items())
    return conductor.ledger.cost_left - sum(min(trained, cost) for trained, cost in pairs)
