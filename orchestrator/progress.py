"""What a person sees while a sweep runs: a live screen in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.table import Table
from rich.text import Text

from orchestrator.conductor import Conductor, Listener, Live
from orchestrator.ledger import State
from orchestrator.retry import Decision, Failure
from orchestrator.units import Unit

__all__ = ["Progress", "duration"]

_ROWS = 20
"""Running trials shown: a screen has some forty lines."""


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`, `3 d 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


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
        self._live: RichLive | None = None
        self._picture: RenderableType = Text("")
        self.stopping = False

    def watch(self, conductor: Conductor) -> None:
        self._conductor = conductor

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
        if first_step > 1:
            self._say(f"{unit.label}: continues at step {first_step:,}")
        elif not self._console.is_terminal:
            self._say(f"{unit.label}: starts at step {first_step:,}")

    def snapshot(self, unit: Unit, preset: float, step: int, accuracy: float) -> None:
        if preset in unit.request.presets:
            self._say(f"{unit.label}: reached {preset:g}% ({accuracy:.2f}%) at step {step:,}")

    def finished(self, unit: Unit, live: Live) -> None:
        if not self._console.is_terminal:
            top1 = "" if live.top1 is None else f", top-1 {live.top1:.2f}%"
            spent = duration(time.monotonic() - live.started)
            self._say(f"{unit.label}: done at step {live.step:,}{top1}, {spent} [{self._tally()}]")

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

    def _say(self, text: str, style: str | None = None) -> None:
        stamp = time.strftime("%H:%M:%S")
        self._console.print(Text(f"{stamp} {text}", style=style or ""), soft_wrap=True)

    # -- the live part -----------------------------------------------------------------------

    def _counts(self) -> dict[str, int]:
        assert self._conductor is not None
        ledger = self._conductor.ledger
        return {
            "done": self._done_before + ledger.count(State.DONE),
            "running": ledger.count(State.RUNNING),
            "ready": ledger.count(State.READY),
            "waiting for a teacher": ledger.count(State.WAITING),
            "blocked": ledger.count(State.BLOCKED),
            "failed": ledger.count(State.FAILED),
        }

    def _tally(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self._counts().items() if count)

    def eta_s(self) -> float | None:
        """Seconds left at the pace so far, by estimated steps; None while nothing is known."""
        assert self._conductor is not None
        ledger = self._conductor.ledger
        running = sum(live.steps_trained for live in self._conductor.live.values())
        trained = self._conductor.steps_trained + running
        left = ledger.cost_left - running
        elapsed = time.monotonic() - self._began
        return None if trained < 1 else max(left, 0.0) * elapsed / trained

    def _render(self) -> RenderableType:
        if self._conductor is None:
            return Text("starting Ray …")
        # Rich holds its own lock here, and whoever holds the conductor's may be waiting for that
        # one, to print a line: never wait, show the last picture again.
        if self._conductor.lock.acquire(blocking=False):
            try:
                self._picture = Group(self._trials(), self._summary())
            finally:
                self._conductor.lock.release()
        return self._picture

    def _summary(self) -> Text:
        eta = self.eta_s()
        elapsed = duration(time.monotonic() - self._began)
        left = "" if eta is None else f", about {duration(eta)} left"
        state = "stopping: running trials save a checkpoint … " if self.stopping else ""
        return Text(f"{state}{self._tally()} · {elapsed}{left}", style="bold")

    def _trials(self) -> Table:
        assert self._conductor is not None
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("running")
        for name in ("step", "of", "top-1 %", "images/s", "for"):
            table.add_column(name, justify="right")
        for live in list(self._conductor.live.values())[:_ROWS]:
            is_search = live.unit.kind not in ("student", "probe")
            goal = "–" if is_search else f"{live.unit.request.horizon:,}"
            table.add_row(
                live.unit.label,
                f"{live.step:,}",
                goal,
                "" if live.top1 is None else f"{live.top1:.2f}",
                f"{live.images_per_s:,.0f}" if live.images_per_s else "",
                duration(time.monotonic() - live.started),
            )
        if len(self._conductor.live) > _ROWS:
            table.add_row(f"… and {len(self._conductor.live) - _ROWS} more")
        return table
