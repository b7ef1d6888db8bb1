"""Words that cannot be written end nothing, and keep no exit status from being what it is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.tuning import repeating

PROGRAM = """\
import sys
from orchestrator.lasting import lasting_screen
console = lasting_screen()
for number in range(20_000):
    console.print(f"line {number}", soft_wrap=True)
print("done", file=sys.stderr)
open(sys.argv[1], "w").write("worked to its end")
raise SystemExit(3)
"""


def run(target: Path, stdout: int) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", PROGRAM, str(target)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, timeout=120, check=False)


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def reader_that_has_left() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


HAS_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")


@pytest.mark.parametrize("opened", [pytest.param(full_disk, marks=HAS_FULL), reader_that_has_left])
def test_the_work_goes_on_to_its_end(tmp_path: Path, opened: Callable[[], int]) -> None:
    stdout = opened()
    try:
        ended = run(tmp_path / "out", stdout)
    finally:
        os.close(stdout)
    assert (tmp_path / "out").read_text() == "worked to its end"
    assert (ended.returncode, ended.stderr) == (3, b"done\n")


def test_a_watch_that_fails_goes_on_and_tells_once() -> None:
    enough, told, calls = threading.Event(), list[str](), list[int]()

    def call() -> None:
        calls.append(1)
        if len(calls) == 4:
            enough.set()
        raise OSError("a stale handle")

    with repeating(call, told.append, 0.01):
        assert enough.wait(60)
    assert told == ["a watch of the driver failed, and goes on: OSError: a stale handle"]
