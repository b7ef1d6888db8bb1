"""Hangs: what counts as standing still, what is left of a process that hung, and that the trainers
show that they go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import paths
from orchestrator.rayprocesses import Process, kill_here, this_process
from orchestrator.store import Store
from orchestrator.watchdog import FIRST_TIMES, Stillness, Watchdog, hang_dump, stacks
from tests.driving import digits_store
from trainers.control import Control
from trainers.data.prepared import load
from trainers.distributed import World
from trainers.evaluate import evaluation_set, teacher_heads
from trainers.models import build_teacher
from trainers.pulse import PULSE, Pulse
from trainers.spec import Backbone
from trainers.targets import compute_targets


def seconds_until_still(stillness: Stillness, beats: list[int], step_s: float = 1.0) -> float:
    """Looks every `step_s` at a count that goes as in `beats`, the last of them for ever."""
    now = 0.0
    for number in range(100_000):
        now += step_s
        if stillness.look(beats[min(number, len(beats) - 1)], now):
            return now
    raise AssertionError("never still")


def test_a_loop_that_stops_is_still_after_so_long() -> None:
    assert seconds_until_still(Stillness(10, 1), [0, 1, 2, 3]) == 4 + 10


def test_the_first_beat_may_take_longer() -> None:
    """Data sets are read and models compiled before it."""
    assert seconds_until_still(Stillness(10, 1), [5]) == 1 + 10 * FIRST_TIMES


def test_a_loop_that_goes_on_is_never_still() -> None:
    stillness = Stillness(10, 1)
    assert not any(stillness.look(second // 9, float(second)) for second in range(1000))


def test_a_machine_that_slept_is_no_hang() -> None:
    """A look that comes an hour late says nothing of the loop, which slept as well."""
    stillness = Stillness(10, 1)
    assert not stillness.look(1, 0.0)
    assert not stillness.look(2, 1.0)
    assert not stillness.look(2, 3600.0)
    assert not stillness.look(3, 3601.0)


def test_a_watchdog_barks_once_with_the_seconds() -> None:
    heard: list[float] = []
    barked = threading.Event()

    def bark(still_s: float) -> None:
        heard.append(still_s)
        barked.set()

    watchdog = Watchdog(0.02, bark, Pulse())
    try:
        assert barked.wait(60)
    finally:
        watchdog.close()
    assert len(heard) == 1
    assert heard[0] >= 0.02 * FIRST_TIMES


def test_stacks_name_where_every_thread_stands() -> None:
    standing, end = threading.Event(), threading.Event()

    def where_it_hangs() -> None:
        standing.set()
        end.wait(60)

    thread = threading.Thread(target=where_it_hangs)
    thread.start()
    try:
        assert standing.wait(60)
        assert "where_it_hangs" in stacks()
        assert "test_stacks_name_where_every_thread_stands" in stacks()
    finally:
        end.set()
        thread.join()


HANGING = """\
    import sys, time
    from functools import partial
    from orchestrator.store import Store
    from orchestrator.watchdog import Watchdog, die_of_hang

    def waiting_for_nobody():
        time.sleep(600)

    store = Store(sys.argv[1])
    Watchdog(0.1, partial(die_of_hang, store, "student-0", "2-abc", 1))
    waiting_for_nobody()
"""


@pytest.mark.parametrize("is_writable", [True, False])
def test_a_process_that_hangs_leaves_its_stacks_and_ends(tmp_path: Path, is_writable: bool) -> None:
    """It ends as well where the store takes nothing; Ray's log has the stacks then."""
    root = tmp_path / "store"
    if not is_writable:
        root.write_text("a file where the store should be")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HANGING), str(root)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 75
    assert "waiting_for_nobody" in done.stderr
    if is_writable:
        found = hang_dump(Store(root), "student-0", "2-abc")
        assert found is not None
        assert found.startswith("worker 1 of student-0 did nothing for")
        assert "waiting_for_nobody" in found
        assert hang_dump(Store(root), "student-0", "1-abc") is None


def test_stacks_of_several_workers_are_one_text(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for rank, attempt in enumerate(("0-a", "1-b", "1-b")):
        store.write_bytes(paths.hang("student-0", rank), f"{attempt}\nrank {rank}".encode())
    assert hang_dump(store, "student-0", "1-b") == "rank 1\nrank 2"
    assert hang_dump(store, "student-1", "1-b") is None


# -- processes -------------------------------------------------------------------------------------


def test_a_stopped_process_is_killed_and_its_namesake_is_not() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        os.kill(child.pid, signal.SIGSTOP)
        began = _began_of(child.pid)
        assert not kill_here(child.pid, began + 1)
        assert child.poll() is None
        assert kill_here(child.pid, began)
        assert child.wait(60) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()
    assert not kill_here(child.pid, began)


def _began_of(pid: int) -> float:
    from orchestrator.rayprocesses import _began

    return _began(pid)


def test_a_process_says_who_it_is() -> None:
    process = Process.parse(this_process())
    assert process.pid == os.getpid()
    assert process.node_id == ""
    assert process == Process.parse(this_process())


# -- signs that the trainers give ------------------------------------------------------------------


def beats_of(act: Any) -> int:
    before = PULSE.beats
    act()
    return PULSE.beats - before


def test_every_step_is_a_beat() -> None:
    control = Control(None, 60.0, World(), torch.device("cpu"))
    assert beats_of(lambda: [control.ask(step) for step in range(7)]) == 7


def test_evaluations_and_soft_targets_beat_batch_by_batch(tmp_path: Path) -> None:
    """One of them may take longer than a step is allowed to."""
    store = digits_store(tmp_path)
    data = load(store.local(paths.dataset_dir("digits")))
    model = build_teacher(
        Backbone(name="resnet18", width=4), image_size=data.info.image_size, num_classes=10, seed=0
    )
    tests = evaluation_set(data, device=torch.device("cpu"), world=World(), precision="fp32")
    assert beats_of(lambda: tests.correct(model, teacher_heads)) >= 1
    cpu = torch.device("cpu")
    assert beats_of(lambda: compute_targets(model, data, temperature=2.0, device=cpu)) >= 2
