"""Words that cannot be written end nothing, and keep no exit status from being what it is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        ended = run(tmp_path / "out", full)
    finally:
        os.close(full)
    assert (tmp_path / "out").read_text() == "worked to its end"
    assert (ended.returncode, ended.stderr) == (3, b"done\n")


def test_a_reader_that_has_left(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = run(tmp_path / "out", writer)
    finally:
        os.close(writer)
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
