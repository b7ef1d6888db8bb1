"""The driver's side of a sweep: turns what trials report into ledger moves, and tells everybody.

Runs in the driver's main thread, inside Tune's loop; the screen reads from another thread, and a
third one looks for silent trials, hence the lock. It writes each run's request before handing it
out and its failure after giving it up. What it cannot write stops the sweep: nothing of the store
is ever an exception to Tune.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from orchestrator.errors import StoreError
from orchestrator.faults import failure_report
from orchestrator.ledger import Entry, Ledger, State
from orchestrator.listener import Listener, Live
from orchestrator.orders import attempt_name, write_orders
from orchestrator.rayprocesses import Process
from orchestrator.repairs import classify, record_failure, set_aside, store_answers
from orchestrator.retry import Cause, Decision, Failure
from orchestrator.silence import Silences
from orchestrator.stopping import ask_to_stop
from orchestrator.store import Store
from orchestrator.timebox import Timebox
from orchestrator.trial import LEAST_REPORT_S, TrialConfig
from orchestrator.units import Unit
from trainers.spec import Runtime

__all__ = ["Conductor", "Conducts", "TrialSettings"]


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """What all trials share. driver: whose stop flag they look at. hang_after_s: seconds without a
    step, or without a word, after which a trial counts as hung."""

    store_uri: str
    scratch: str
    use_gpu: bool
    runtime: Runtime
    driver: str = ""
    hang_after_s: float = 900.0


class Conducts(Protocol):
    """What Tune's searcher drives; a `Conductor` is one."""

    def next_trial(self) -> TrialConfig | None: ...
    @property
    def finished(self) -> bool: ...
    def on_report(self, report: dict[str, Any]) -> None: ...
    def on_end(self, unit: str, *, lost: bool, said: str = "") -> None: ...


class Conductor:
    """has_asked: what runs was asked to end, whoever wanted it.

    kill: asks the cluster to kill a process, without waiting (`rayprocesses.end_process`).
    is_node_gone: whether a Ray node has left (`ClusterView.is_gone`). clock: seconds, of a
    clock that never jumps. timebox: the limit of its time, on the same clock."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        settings: TrialSettings,
        listeners: list[Listener],
        lost: threading.Event | None = None,
        *,
        kill: Callable[[Process], object] = lambda process: None,
        is_node_gone: Callable[[str], bool] = lambda node_id: False,
        clock: Callable[[], float] = time.monotonic,
        timebox: Timebox | None = None,
    ) -> None:
        self.lock = threading.RLock()
        self.ledger = ledger
        self.live: dict[str, Live] = {}
        self.steps_trained = 0
        self.has_asked = False
        self._store = store
        self._settings = settings
        self._listeners = listeners
        self._lost = threading.Event() if lost is None else lost
        self._kill = kill
        self._is_node_gone = is_node_gone
        self._clock = clock
        self._timebox = timebox
        self._silences = Silences(settings.hang_after_s, clock)
        self._wakes: dict[str, float] = {}
        self._tell_blocked()

    # -- for the searcher --------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        with self.lock:
            self._heed_loss()
            self._spend_if_useless()
            return self.ledger.finished

    def next_trial(self) -> TrialConfig | None:
        with self.lock:
            self._wake()
            box = self._timebox
            task = self.ledger.next(None if box is None else box.admit(self._clock()))
            if task is None:
                return None
            entry = self.ledger.entries[task.name]
            unit = _unit(entry)
            config = self._config(entry, unit)
            self.live[unit.name] = Live(unit, config["attempt"])
            self._silences.begin(unit.name)
            if box is not None:
                box.taken(unit.name, self._clock())
            try:
                write_orders(self._store, unit, config["attempt"])
            except StoreError as error:
                self.on_report({"unit": unit.name, **failure_report(error)})
                self.on_end(unit.name, lost=False)
                return None
            return config

    def on_report(self, report: dict[str, Any]) -> None:
        with self.lock:
            live = self.live.get(report["unit"])
            if live is None:
                return
            self._silences.heard(live.unit.name)
            processes = [Process.parse(one) for one in report.get("processes") or ()]
            live.processes.update(processes)
            if processes and not report.get("is_host"):
                live.workers = set(processes)
            self.ledger.lies(live.unit.name, (process.node_id for process in processes))
            live.step = max(live.step, int(report.get("step") or 0))
            if report.get("top1") is not None:
                live.top1 = float(report["top1"])
            if self._timebox is not None:
                self._timebox.at(live.unit.name, live.step, self._clock())
            if report["event"] in ("finished", "failed"):
                if live.final is None or not report.get("assumed"):
                    live.final = report
            else:
                self._hear(live, report)
            for warning in report.get("warnings") or []:
                for listener in self._listeners:
                    listener.warned(warning)

    def on_end(self, unit: str, *, lost: bool, said: str = "") -> None:
        """A trial is over: with a last word, or, when its process died, without one. said: by Ray,
        of such a death."""
        with self.lock:
            live = self.live.pop(unit)
            silent_s = self._silences.end(unit)
            self.steps_trained += live.steps_trained
            final = live.final
            if self._timebox is not None:
                reason = (final or {}).get("reason")
                self._timebox.ended(unit, live.step, self._clock(), reason=reason)
            if final is None or final["event"] == "failed":
                failure = classify(
                    self._store, live, final, lost, said, silent_s, self._is_node_gone
                )
                self._fail(live, final, replace(failure, where=live.where, node=live.node))
            else:
                self._finish(live, final)
            self._tell_blocked()

    def stop(self) -> None:
        """Starts nothing more and asks what runs to checkpoint and end."""
        with self.lock:
            self.ledger.stopping = self.has_asked = True
        try:
            ask_to_stop(self._store, self._settings.driver)
        except StoreError as error:
            self._warn(f"what runs goes on to its end: {error.problem}")

    # -- for the thread that looks -----------------------------------------------------------

    def heed_limit(self) -> bool:
        """Stops what runs once the time limit says so; whether it did so now."""
        with self.lock:
            box = self._timebox
            if box is None or self.has_asked or not box.is_over(now := self._clock()):
                return False
            box.spent, box.asked_at = True, now
            self.stop()
            return True

    @property
    def must_leave(self) -> bool:
        """Whether the time limit leaves no more time to wait for trials."""
        return self._timebox is not None and self._timebox.must_leave(self._clock())

    def look(self) -> None:
        """Has silent trials killed, about once a second. Their end is then told like any other."""
        with self.lock:
            silent = [self.live[name] for name in self._silences.look()]
        for live in silent:
            if not live.processes:
                self._warn(f"{live.unit.label} has not said a word yet; its trial may be frozen")
            for process in live.processes:
                try:
                    self._kill(process)
                except Exception as error:
                    self._warn(f"{live.unit.label}: process {process.pid} stays: {error}")

    # -- inside ------------------------------------------------------------------------------

    def _heed_loss(self) -> bool:
        """Whether the store is another driver's: nothing is begun then, what runs is asked to end
        (by a flag of this driver's, which stops none of the other's), no failure is recorded."""
        if self._lost.is_set() and not self.has_asked:
            self.stop()
        return self._lost.is_set()

    def _spend_if_useless(self) -> None:
        """Ends a limited sweep early where nothing runs and nothing that is ready could do anything
        useful before its end."""
        box, ledger = self._timebox, self.ledger
        if box is None or ledger.stopping or ledger.count(State.RUNNING):
            return
        if ledger.count(State.READY) and not ledger.is_of_use(box.admit(self._clock())):
            box.spent = ledger.stopping = True

    def _wake(self) -> None:
        now = self._clock()
        for name in [name for name, due in self._wakes.items() if due <= now]:
            del self._wakes[name]
            self.ledger.wake(name)

    def _config(self, entry: Entry, unit: Unit) -> TrialConfig:
        settings = self._settings
        return {
            "store": settings.store_uri,
            "unit": unit.name,
            "attempt": attempt_name(len(entry.attempts.failures)),
            "workers": entry.shape.workers,
            "devices_per_worker": entry.shape.devices_per_worker,
            "avoid": sorted(entry.avoids),
            "use_gpu": settings.use_gpu,
            "runtime": asdict(settings.runtime),
            "scratch": settings.scratch,
            "driver": settings.driver,
            "hang_after_s": settings.hang_after_s,
            "report_every_s": self._report_every_s(entry),
        }

    def _report_every_s(self, entry: Entry) -> float:
        """Seconds between two reports of how far a run is: each costs this process about 10 ms, and
        all that may run beside it take half a core of it at most."""
        at_once = min(self.ledger.capacity.most_at_once(entry.shape), len(self.ledger.entries))
        return max(LEAST_REPORT_S, 0.02 * at_once)

    def _hear(self, live: Live, report: dict[str, Any]) -> None:
        event = report["event"]
        if event in ("snapshot", "weights", "checkpoint"):
            live.save()
        if event == "started":
            live.first_step = int(report["first_step"])
            live.step = max(0, live.first_step - 1)
            if self._timebox is not None:
                self._timebox.began(live.unit, live.first_step, self._clock())
            self._tell(lambda one: one.started(live.unit, live.first_step))
        elif event == "snapshot":
            preset = float(report["preset"])
            self.ledger.provide(live.unit.snapshot_token(preset))
            accuracy, step = float(report["accuracy"]), int(report["step"])
            self._tell(lambda one: one.snapshot(live.unit, preset, step, accuracy))
            self._changed(live.unit)
        elif event == "weights":
            self.ledger.provide(live.unit.weights_token(int(report["step"])))
            self._changed(live.unit)
        elif event == "checkpoint":
            self._changed(live.unit)
        elif event == "evaluation":
            live.images_per_s = float(report.get("images_per_s") or 0.0)

    def _finish(self, live: Live, final: dict[str, Any]) -> None:
        unit = live.unit
        if final["reason"] == "stopped":
            self.ledger.interrupt(unit.name)
        elif final["reason"] == "exhausted" and not unit.measures:
            self._exhaust(live, [float(preset) for preset in final["missing"]])
        else:
            self.ledger.done(unit.name, node=live.node)
            self._tell(lambda one: one.finished(unit, live))
        self._changed(unit)

    def _exhaust(self, live: Live, missing: list[float]) -> None:
        unit = live.unit
        names = ", ".join(f"{preset:g}%" for preset in missing)
        failure = Failure(
            cause=Cause.UNREACHABLE,
            message=f"accuracy never reached: {names} within teacher.max_steps = "
            f"{unit.request.horizon}",
        )
        self.ledger.done(
            unit.name,
            missing=[unit.snapshot_token(preset) for preset in missing],
            failure=failure,
            node=live.node,
        )
        self._record_failure(unit, failure)
        self._tell(lambda one: one.failed(unit, failure, Decision.GIVE_UP))

    def _fail(self, live: Live, final: dict[str, Any] | None, failure: Failure) -> None:
        unit, final = live.unit, final or {}
        if failure.cause is Cause.SUPERSEDED:
            self._lost.set()
        if self._heed_loss():
            self.ledger.interrupt(unit.name)
            return
        if self.ledger.stopping and failure.cause in _STOPPED:
            self.ledger.interrupt(unit.name)  # a second Ctrl-C took it; it did nothing wrong
            return
        if final.get("begun") is False:  # a warm process of a node that is about to leave
            self.ledger.interrupt(unit.name)
            return
        if failure.cause is Cause.STORE and not store_answers(self._store, final.get("errno")):
            self.ledger.interrupt(unit.name)
            self._store_is_lost(failure)
            return
        for line in set_aside(self._store, final.get("damaged") or (), unit.label):
            self._warn(line)
        was_early, were_aside = self.ledger.stopped_early, len(self.ledger.aside)
        decision = self.ledger.fail(unit.name, failure, worked_s=live.worked_s, rest=True)
        entry = self.ledger.entries[unit.name]
        if entry.resting:
            self._wakes[unit.name] = self._clock() + entry.attempts.wait_s()
        if decision is Decision.GIVE_UP:
            self._record_failure(unit, failure)
            self._changed(unit)
        self._tell(lambda one: one.failed(unit, failure, decision))
        if len(self.ledger.aside) > were_aside:
            self._warn(
                f"{failure.where} is set aside: runs there all fail alike ({failure.cause}: "
                f"{failure.message}); they are tried again elsewhere, and what else runs there "
                "saves a checkpoint and goes on elsewhere, too"
            )
        early = self.ledger.stopped_early
        if early is not None and early is not was_early:
            self._warn(
                f"runs all fail alike{early.place} ({early.cause}: {early.message}): nothing more "
                "is begun; what runs goes on to its end"
            )

    def _store_is_lost(self, failure: Failure) -> None:
        """Every run would fail the same way, through no fault of its own: they are left as they
        are, ready for the next `run`."""
        if self.ledger.stopped_early is None:
            self.ledger.stop_early(failure)
            self.stop()  # before any word: the screen's file may be on the same full disk
            self._warn(f"the store cannot be written any more: {failure.message}")

    def _record_failure(self, unit: Unit, failure: Failure) -> None:
        try:
            record_failure(self._store, unit, failure, self.ledger.entries[unit.name].attempts)
        except StoreError as error:
            if store_answers(self._store):
                self._warn(f"{unit.label}: its failure is not recorded: {error.problem}")
            else:
                report = failure_report(error)
                self._store_is_lost(Failure(cause=Cause.STORE, message=report["message"]))

    def _tell_blocked(self) -> None:
        for entry in self.ledger.take_newly_blocked():
            for listener in self._listeners:
                listener.blocked(_unit(entry), entry.blocked_by or "")

    def _changed(self, unit: Unit) -> None:
        """The store's next driver tells of what is its own by now."""
        if not self._lost.is_set():
            self._tell(lambda one: one.changed(unit))

    def _warn(self, message: str) -> None:
        self._tell(lambda one: one.warned(message))

    def _tell(self, message: Callable[[Listener], None]) -> None:
        for listener in self._listeners:
            message(listener)


_STOPPED = frozenset({Cause.WORKER_LOST, Cause.PREEMPTED, Cause.STORE})
"""Ends that are nobody's fault once a sweep is stopping."""


def _unit(entry: Entry) -> Unit:
    assert isinstance(entry.task, Unit)
    return entry.task
