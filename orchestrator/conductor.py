"""The driver's side of a sweep: turns what trials report into ledger moves, and tells everybody.

Runs in the driver's main thread, inside Tune's loop; the screen reads from another thread, hence
the lock. It writes each run's request before handing it out and its failure after giving it up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator import paths
from orchestrator.errors import StoreError
from orchestrator.identity import canonical
from orchestrator.ledger import Entry, Ledger
from orchestrator.retry import Cause, Decision, Failure
from orchestrator.store import Store
from orchestrator.trial import TrialConfig
from orchestrator.units import Unit
from trainers.spec import SEMANTICS, Runtime

__all__ = ["Conductor", "Listener", "Live", "TrialSettings"]


class Listener:
    """What a screen, a log and MLflow may want to hear. Every method may be left as it is."""

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
    """A running trial as the screen shows it."""

    unit: Unit
    started: float = field(default_factory=time.monotonic)
    first_step: int = 1
    step: int = 0
    top1: float | None = None
    images_per_s: float = 0.0
    final: dict[str, Any] | None = None

    @property
    def steps_trained(self) -> int:
        """By this attempt."""
        return max(0, self.step - self.first_step + 1)


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """What all trials share."""

    store_uri: str
    scratch: str
    use_gpu: bool
    runtime: Runtime


class Conductor:
    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        settings: TrialSettings,
        listeners: list[Listener],
        lost: threading.Event | None = None,
    ) -> None:
        self.lock = threading.RLock()
        self.ledger = ledger
        self.live: dict[str, Live] = {}
        self.steps_trained = 0
        self._store = store
        self._settings = settings
        self._listeners = listeners
        self._lost = lost
        self._tell_blocked()

    # -- for the searcher --------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        with self.lock:
            if self._lost is not None and self._lost.is_set():
                self.ledger.stopping = True  # no flag: it would stop the other driver's trials
            return self.ledger.finished

    def next_trial(self) -> TrialConfig | None:
        with self.lock:
            task = self.ledger.next()
            if task is None:
                return None
            entry = self.ledger.entries[task.name]
            unit = _unit(entry)
            config = self._config(entry, unit)
            self._write_orders(unit, config["attempt"])
            self.live[unit.name] = Live(unit)
            return config

    def on_report(self, report: dict[str, Any]) -> None:
        with self.lock:
            live = self.live.get(report["unit"])
            if live is None:
                return
            live.step = max(live.step, int(report.get("step") or 0))
            if report.get("top1") is not None:
                live.top1 = float(report["top1"])
            if report["event"] in ("finished", "failed"):
                if live.final is None or not report.get("assumed"):
                    live.final = report
            else:
                self._hear(live, report)
            for warning in report.get("warnings") or []:
                for listener in self._listeners:
                    listener.warned(warning)

    def on_end(self, unit: str, *, lost: bool) -> None:
        """A trial is over: with a last word, or, when its process died, without one."""
        with self.lock:
            live = self.live.pop(unit)
            self.steps_trained += live.steps_trained
            final = live.final
            if final is None:
                final = {
                    "event": "failed",
                    "cause": Cause.WORKER_LOST.value,
                    "message": "its process died" if lost else "it ended without a word",
                }
            if final["event"] == "failed":
                self._fail(live, final)
            else:
                self._finish(live, final)
            self._tell_blocked()

    def stop(self) -> None:
        """Starts nothing more and asks what runs to checkpoint and end."""
        with self.lock:
            self.ledger.stopping = True
        self._store.write_bytes(paths.stop_flag(), b"stop\n")

    # -- inside ------------------------------------------------------------------------------

    def _write_orders(self, unit: Unit, attempt: str) -> None:
        """run.json once; request.json before every attempt, which takes the run away from a worker
        of an earlier one that should be dead and is not (its driver or its network died)."""
        if not self._is_described(unit):
            self._store.write_json(
                paths.run_json(unit.name),
                {
                    "key": unit.key,
                    "kind": unit.kind,
                    "semantics": SEMANTICS,
                    "spec": canonical(unit.spec),
                    "label": unit.label,
                },
            )
        request = asdict(unit.request) | {
            "keep_checkpoint": unit.keep_checkpoint,
            "workers": unit.workers,
            "attempt": attempt,
        }
        if unit.measures:  # for whoever judges the result: what it did not reach is no failure
            request["measures"] = True
        self._store.write_json(paths.request_json(unit.name), request)

    def _is_described(self, unit: Unit) -> bool:
        """Whether run.json is there and can be read; a damaged one is written anew."""
        try:
            return self._store.read_json(paths.run_json(unit.name)) is not None
        except StoreError:
            return False

    def _config(self, entry: Entry, unit: Unit) -> TrialConfig:
        settings = self._settings
        return {
            "store": settings.store_uri,
            "unit": unit.name,
            "attempt": f"{len(entry.attempts.failures)}-{time.time_ns()}",
            "workers": entry.shape.workers,
            "devices_per_worker": entry.shape.devices_per_worker,
            "use_gpu": settings.use_gpu,
            "runtime": asdict(settings.runtime),
            "scratch": settings.scratch,
        }

    def _hear(self, live: Live, report: dict[str, Any]) -> None:
        event = report["event"]
        if event == "started":
            live.first_step = int(report["first_step"])
            live.step = max(0, live.first_step - 1)
            self._tell(lambda one: one.started(live.unit, live.first_step))
        elif event == "snapshot":
            preset = float(report["preset"])
            self.ledger.provide(live.unit.snapshot_token(preset))
            accuracy, step = float(report["accuracy"]), int(report["step"])
            self._tell(lambda one: one.snapshot(live.unit, preset, step, accuracy))
            self._tell(lambda one: one.changed(live.unit))
        elif event == "weights":
            self.ledger.provide(live.unit.weights_token(int(report["step"])))
            self._tell(lambda one: one.changed(live.unit))
        elif event == "checkpoint":
            self._tell(lambda one: one.changed(live.unit))
        elif event == "evaluation":
            live.images_per_s = float(report.get("images_per_s") or 0.0)

    def _finish(self, live: Live, final: dict[str, Any]) -> None:
        unit = live.unit
        if final["reason"] == "stopped":
            self.ledger.interrupt(unit.name)
        elif final["reason"] == "exhausted" and not unit.measures:
            self._exhaust(live, [float(preset) for preset in final["missing"]])
        else:
            self.ledger.done(unit.name)
            self._tell(lambda one: one.finished(unit, live))
        self._tell(lambda one: one.changed(unit))

    def _exhaust(self, live: Live, missing: list[float]) -> None:
        unit = live.unit
        names = ", ".join(f"{preset:g}%" for preset in missing)
        failure = Failure(
            cause=Cause.UNREACHABLE,
            message=f"accuracy never reached: {names} within teacher.max_steps = "
            f"{unit.request.horizon}",
        )
        self.ledger.done(
            unit.name, missing=[unit.snapshot_token(preset) for preset in missing], failure=failure
        )
        self._record_failure(unit, failure)
        self._tell(lambda one: one.failed(unit, failure, Decision.GIVE_UP))

    def _fail(self, live: Live, final: dict[str, Any]) -> None:
        failure = Failure(
            cause=Cause(final["cause"]),
            message=str(final["message"]),
            traceback=str(final.get("traceback") or ""),
        )
        if self.ledger.stopping and failure.cause is Cause.WORKER_LOST:
            self.ledger.interrupt(live.unit.name)  # a second Ctrl-C took it; it did nothing wrong
            return
        decision = self.ledger.fail(live.unit.name, failure)
        if decision is Decision.GIVE_UP:
            self._record_failure(live.unit, failure)
            self._tell(lambda one: one.changed(live.unit))
        self._tell(lambda one: one.failed(live.unit, failure, decision))

    def _record_failure(self, unit: Unit, failure: Failure) -> None:
        self._store.write_json(
            paths.failure(unit.name),
            {
                "key": unit.key,
                "cause": failure.cause.value,
                "message": failure.message,
                "traceback": failure.traceback,
                "attempts": len(self.ledger.entries[unit.name].attempts.failures),
            },
        )

    def _tell_blocked(self) -> None:
        for entry in self.ledger.take_newly_blocked():
            for listener in self._listeners:
                listener.blocked(_unit(entry), entry.blocked_by or "")

    def _tell(self, message: Callable[[Listener], None]) -> None:
        for listener in self._listeners:
            message(listener)


def _unit(entry: Entry) -> Unit:
    assert isinstance(entry.task, Unit)
    return entry.task
