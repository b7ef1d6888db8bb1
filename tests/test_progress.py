"""What a person sees: plain lines for a log, a table in a terminal."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.conductor import Conductor
from orchestrator.glance import duration
from orchestrator.plan import Plan
from orchestrator.progress import Progress
from orchestrator.store import Store
from orchestrator.timeleft import Left
from tests.driving import conductor_of, tiny_plan
from tests.test_conductor import begin, break_with, finish, tell


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return tiny_plan(tmp_path)


def screen(*, terminal: bool) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=150, color_system=None)
    return Progress(console, done_before=3), out


def watched(plan: Plan, tmp_path: Path, progress: Progress) -> Conductor:
    conductor = conductor_of(plan, Store(tmp_path / "store"), [progress], slots=2)
    progress.watch(conductor)
    return conductor


def rendered(progress: Progress) -> str:
    out = io.StringIO()
    Console(file=out, width=150, color_system=None).print(progress._render())
    return out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min"),
     (86400, "1 d 0 h"), (273600, "3 d 4 h")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plain_lines(plan: Plan, tmp_path: Path) -> None:
    progress, out = screen(terminal=False)
    conductor = watched(plan, tmp_path, progress)
    with progress:
        teacher = begin(conductor)
        tell(conductor, teacher, "started", first_step=1)
        tell(conductor, teacher, "snapshot", preset=20, step=9, accuracy=19.52)
        tell(conductor, teacher, "snapshot", preset=30, step=12, accuracy=30.2)  # nobody asked
        finish(conductor, teacher, top1=41.25)
    lines = [line[9:] for line in out.getvalue().splitlines()]  # less the clock
    label = plan.of_kind("teacher")[0].label
    assert lines[:2] == [
        f"{label}: starts at step 1",
        f"{label}: reached 20% (19.52%) at step 9",
    ]
    assert lines[2].startswith(f"{label}: done at step 20, top-1 41.25%, ")
    assert lines[2].endswith("[4 done, 5 ready, 2 waiting for a teacher]")
    assert len(lines) == 3
    assert "\x1b" not in out.getvalue()


def test_a_continued_run_says_where(plan: Plan, tmp_path: Path) -> None:
    for terminal in (False, True):
        progress, out = screen(terminal=terminal)
        conductor = watched(plan, tmp_path, progress)
        tell(conductor, begin(conductor), "started", first_step=1201)
        assert "continues at step 1,201" in out.getvalue()


def test_failures_and_what_they_block_are_lines_of_their_own(plan: Plan, tmp_path: Path) -> None:
    progress, out = screen(terminal=False)
    conductor = watched(plan, tmp_path, progress)
    conductor.on_end(begin(conductor), lost=True)
    break_with(conductor, begin(conductor), "KeyError: 'x'")
    text = out.getvalue()
    assert "worker lost: its process died (tried again)" in text
    assert "error: KeyError: 'x' (given up)" in text
    assert text.count("blocked,") == 6
    assert "B t20" in text


def test_brackets_in_a_message_are_not_markup(plan: Plan, tmp_path: Path) -> None:
    progress, out = screen(terminal=False)
    progress.warned("tensor of shape [3, 4] [/red]")
    assert "tensor of shape [3, 4] [/red]" in out.getvalue()


def test_the_table_of_a_terminal(plan: Plan, tmp_path: Path) -> None:
    progress, _ = screen(terminal=True)
    assert "starting Ray" in rendered(progress)
    conductor = watched(plan, tmp_path, progress)
    teacher, student = begin(conductor), begin(conductor)
    tell(conductor, teacher, "started", first_step=1)
    tell(conductor, student, "started", first_step=1)
    tell(conductor, student, "evaluation", step=10, top1=12.345, images_per_s=6400.0)
    text = rendered(progress)
    header, first, second, summary = text.splitlines()
    assert header.split() == ["running", "step", "of", "top-1", "%", "images/s", "for"]
    assert plan.of_kind("teacher")[0].label in first
    assert second.split()[-6:-2] == ["10", "20", "12.35", "6,400"] or "12.3" in second
    assert summary.startswith("3 done, 2 running, 6 waiting for a teacher · ")
    assert "left" not in summary
    progress._left = (time.monotonic() + 3600.0, Left(125.0))
    assert rendered(progress).splitlines()[-1].endswith(", about 2 min 05 s left")
    progress._left = (time.monotonic() + 3600.0, Left(125.0, at_least=True))
    assert rendered(progress).splitlines()[-1].endswith(", at least 2 min 05 s left")


def test_a_terminal_is_left_as_it_was(plan: Plan, tmp_path: Path) -> None:
    """Finished runs leave no lines there; the live part goes with the block."""
    progress, out = screen(terminal=True)
    with progress:
        conductor = watched(plan, tmp_path, progress)
        unit = begin(conductor)
        tell(conductor, unit, "started", first_step=1)
        finish(conductor, unit)
    assert "done at step" not in out.getvalue()
    assert "\x1b[?25h" in out.getvalue()  # the cursor is back


def test_stopping_is_said(plan: Plan, tmp_path: Path) -> None:
    progress, _ = screen(terminal=True)
    watched(plan, tmp_path, progress).stop()
    assert "stopping: running trials save a checkpoint" in rendered(progress)


def test_more_running_trials_than_rows(tmp_path: Path) -> None:
    text = (
        "name: wide\nset: {dataset: digits, backbone: {name: resnet18, width: 4}, "
        "training: {steps: 20}, strategy: A}\n"
        f"grids: [{{axes: {{seed: {list(range(50))}}}}}]\n"
    )
    progress, _ = screen(terminal=True)
    conductor = conductor_of(
        tiny_plan(tmp_path, text=text), Store(tmp_path / "store"), [progress], slots=50
    )
    progress.watch(conductor)
    for _ in range(50):
        begin(conductor)
    lines = rendered(progress).splitlines()
    assert len(lines) <= 23
    assert any("30 more" in line for line in lines)


def test_the_screen_never_waits_for_whoever_is_about_to_print(plan: Plan, tmp_path: Path) -> None:
    """Rich draws under its own lock, which a line printed under the conductor's waits for: drawing
    must not wait for the conductor's, or both wait for ever."""
    progress, _ = screen(terminal=True)
    conductor = watched(plan, tmp_path, progress)
    begin(conductor)
    before = rendered(progress)
    with conductor.lock:
        drawn: list[str] = []
        thread = threading.Thread(target=lambda: drawn.append(rendered(progress)))
        thread.start()
        thread.join(timeout=30)
        assert drawn == [before]
