"""What a person sees while a sweep runs: a live screen in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.text import Text

from orchestrator.conductor import Conductor
from orchestrator.estimate import Pace
from orchestrator.glance import Glance, Going, duration
from orchestrator.ledger import State
from orchestrator.listener import Listener, Live
from orchestrator.pacing import Pacing
from orchestrator.rates import Rates, shipped_rates
from orchestrator.retry import Decision, Failure
from orchestrator.timeleft import Left, TimeLeft
from orchestrator.units import Unit
from trainers.data.info import DatasetInfo

__all__ = ["Progress"]

_RECKON_S = 1.0
_RECKON_SHARE = 0.02
"""The time left is reckoned once a second at most, and takes so much of the time at most: the
paper's 4,556 units take 0.2 s."""

_THEN = {
    Decision.RETRY: "tried again",
    Decision.GIVE_UP: "given up",
    Decision.REDO: "what it needs is made again",
}


class Progress(Listener):
    """Listens to the conductor. `with progress: …` shows the live part while trials run."""

    def __init__(self, console: Console, *, done_before: int) -> None:
        self._console = console
        self._done_before = done_before
        self._conductor: Conductor | None = None
        self._began = time.monotonic()
        self._pace: tuple[Pace, Mapping[str, DatasetInfo]] = (Pace(Rates(), {}), {})
        self._time_left: TimeLeft | None = None
        self._left: tuple[float, Left | None] | None = None
        """When it is to be reckoned again, and what came of it."""
        self._live: RichLive | None = None
        self._picture: RenderableType = Text("")

    def expect(self, pace: Pace, infos: Mapping[str, DatasetInfo]) -> None:
        """By what was measured before, on what data sets; to be told before `watch`."""
        self._pace = (pace, infos)

    def watch(self, conductor: Conductor) -> None:
        self._conductor = conductor
        ledger, (pace, infos) = conductor.ledger, self._pace
        costs = {name: entry.cost for name, entry in ledger.entries.items()}
        compare = Pace(shipped_rates(), infos)
        self._time_left = TimeLeft(ledger, Pacing(pace, infos, costs, compare))

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self._console.is_terminal:
            self._live = RichLive(
                get_renderable=self._render, console=self._console, refresh_per_second=4,
                transient=True,
            )  # fmt: skip
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    # -- lines that stay ---------------------------------------------------------------------

    def started(self, unit: Unit, first_step: int) -> None:
        if self._conductor is not None and self._time_left is not None:
            self._time_left.started(self._conductor.live[unit.name], time.monotonic())
        if first_step > 1:
            self._say(f"{unit.label}: continues at step {first_step:,}")
        elif not self._console.is_terminal:
            self._say(f"{unit.label}: starts at step {first_step:,}")

    def snapshot(self, unit: Unit, preset: float, step: int, accuracy: float) -> None:
        if preset in unit.request.presets:
            self._say(f"{unit.label}: reached {preset:g}% ({accuracy:.2f}%) at step {step:,}")

    def finished(self, unit: Unit, live: Live) -> None:
        if self._time_left is not None:
            self._time_left.finished(live, time.monotonic())
        if not self._console.is_terminal:
            top1 = "" if live.top1 is None else f", top-1 {live.top1:.2f}%"
            spent = duration(time.monotonic() - live.started)
            assert self._conductor is not None
            tally = self._glance(self._conductor).tally()
            self._say(f"{unit.label}: done at step {live.step:,}{top1}, {spent} [{tally}]")

    def failed(self, unit: Unit, failure: Failure, decision: Decision) -> None:
        then = _THEN[decision]
        self._say(f"{unit.label}: {failure.cause}: {failure.message} ({then})", style="red")

    def blocked(self, unit: Unit, token: str) -> None:
        self._say(f"{unit.label}: blocked, {token} will not come", style="yellow")

    def noted(self, message: str) -> None:
        """What a person may like to know, and need not act on."""
        self._say(message)

    def warned(self, message: str) -> None:
        self._say(f"warning: {message}", style="yellow")

    def told(self, glance: Glance) -> None:
        """A line on where the sweep stands, for a log: a terminal shows it anyway."""
        if not self._console.is_terminal:
            self._say(glance.summary())

    def _say(self, text: str, style: str | None = None) -> None:
        stamp = time.strftime("%H:%M:%S")
        self._console.print(Text(f"{stamp} {text}", style=style or ""), soft_wrap=True)

    # -- the live part -----------------------------------------------------------------------

    def glance(self) -> Glance | None:
        """Where the sweep stands; None before anything could begin. Waits for the conductor's lock,
        so it is not for a thread that holds the console's (`_render`)."""
        if self._conductor is None:
            return None
        with self._conductor.lock:
            return self._glance(self._conductor)

    def _glance(self, conductor: Conductor) -> Glance:
        left = self.left()
        return Glance(
            counts=self._counts(conductor),
            going=tuple(map(_going, conductor.live.values())),
            elapsed_s=time.monotonic() - self._began,
            left_s=None if left is None else left.seconds,
            stopping=conductor.has_asked,
            at_least=left is not None and left.at_least,
            is_early=conductor.ledger.stopped_early is not None,
            aside=tuple(failure.where for failure in conductor.ledger.aside.values()),
        )

    def _counts(self, conductor: Conductor) -> dict[str, int]:
        ledger = conductor.ledger
        return {
            "done": self._done_before + ledger.count(State.DONE),
            "running": ledger.count(State.RUNNING),
            "ready": ledger.count(State.READY),
            "waiting for a teacher": ledger.count(State.WAITING),
            "blocked": ledger.count(State.BLOCKED),
            "failed": ledger.count(State.FAILED),
        }

    def left(self) -> Left | None:
        """What is left; None while no pace is known. Under the conductor's lock."""
        if self._conductor is None or self._time_left is None:
            return None
        now = time.monotonic()
        self._time_left.look(self._conductor.live, now)
        if self._left is None or now >= self._left[0]:
            began, found = time.perf_counter(), self._time_left.left(now)
            spent = time.perf_counter() - began
            self._left = (now + max(_RECKON_S, spent / _RECKON_SHARE), found)
        return self._left[1]

    def _render(self) -> RenderableType:
        if self._conductor is None:
            return Text("starting Ray …")
        # Rich holds its own lock here, and whoever holds the conductor's may be waiting for that
        # one, to print a line: never wait, show the last picture again.
        if self._conductor.lock.acquire(blocking=False):
            try:
                glance = self._glance(self._conductor)
            finally:
                self._conductor.lock.release()
            self._picture = Group(glance.table(), Text(glance.summary(), style="bold"))
        return self._picture


def _going(live: Live) -> Going:
    is_search = live.unit.kind not in ("student", "probe")
    return Going(
        label=live.unit.label,
        step=live.step,
        horizon=None if is_search else live.unit.request.horizon,
        top1=live.top1,
        images_per_s=live.images_per_s,
        for_s=time.monotonic() - live.started,
    )
