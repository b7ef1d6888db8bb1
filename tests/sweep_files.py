"""Sweep files for tests, written in a few words."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import Problem, SpecError
from orchestrator.spec import Sweep, load_sweeps

BASE = """\
name: small
set:
  dataset: cifar10
  strategy: B
  teacher: {accuracy: 60}
  training: {steps: 400}
"""


def write(folder: Path, text: str, name: str = "sweep.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def sweep_of(folder: Path, text: str = "", base: str = BASE, name: str = "sweep.yaml") -> Sweep:
    """The sweep of `base` and what `text` adds to it."""
    return load_sweeps([write(folder, base + text, name)])[0]


def problems_of(folder: Path, text: str, base: str = BASE) -> list[Problem]:
    with pytest.raises(SpecError) as caught:
        sweep_of(folder, text, base)
    return caught.value.problems
