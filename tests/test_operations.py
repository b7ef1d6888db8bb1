"""docs/operations.md is true: plain blocks are run word for word, the others name their tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commands import own_environment
from tests.test_documents import all_commands

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "operations.md"

TINY = """\
name: demo
title: The demo in seconds
set:
  dataset: digits
  backbone: {name: resnet18, width: 4}
  training: {steps: 20, batch_size: 64, lr: 0.005}
  teacher: {max_steps: 300}
  augmentation: none
grids:
  - axes: {strategy: [A, B], teacher.accuracy: [20], seed: [0]}
report:
  - {table: strategies, rows: [step, strategy], columns: [teacher.accuracy], steps: [20]}
"""


COMMAND = re.compile(r"targetsweep ([a-z]+(?: (?:check|export|import|cache|prepare))?)")


@dataclass(frozen=True)
class Block:
    """note: what stands after `sh`, empty for what this test runs."""

    note: str
    text: str


def blocks() -> list[Block]:
    found = re.findall(r"^```sh *(.*?)\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S)
    return [Block(note.strip("() "), text) for note, text in found]


def test_every_block_says_how_it_is_known_to_work() -> None:
    assert any(not block.note for block in blocks())
    for block in blocks():
        if file := re.fullmatch(r"tested by (tests/[\w/]+\.py)", block.note):
            assert (ROOT / file[1]).exists(), block.note
        else:
            assert not block.note or block.note.startswith("not run here: "), block.note


def test_every_command_and_option_exists() -> None:
    known = all_commands()
    for block in blocks():
        for line in block.text.replace("\\\n", " ").splitlines():
            if match := re.match(
                r"targetsweep ([a-z]+(?: (?:check|export|import|prepare))?)", line
            ):
                options = set(re.findall(r"(?<= )--[a-z-]+", line))
                assert options <= set(known[match[1]]), line


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_plain_blocks_run(tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "demo.yaml").write_text(TINY)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in blocks():
        if block.note:
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text],
            cwd=tmp_path, env=own_environment() | {"PATH": path}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
    assert (tmp_path / "store/sweeps/demo/report/tables/strategies.csv").read_bytes() == (
        tmp_path / "merged/sweeps/demo/report/tables/strategies.csv"
    ).read_bytes()
