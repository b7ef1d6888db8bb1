"""The sweeps under test, of runs of a second or a few, and what they give undisturbed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ALONE", "PAIR", "WIDE", "Reference", "Sweep"]


@dataclass(frozen=True)
class Sweep:
    """is_wide: its students train on two workers, whose sums differ from one worker's."""

    name: str
    text: str
    is_wide: bool


@dataclass(frozen=True)
class Reference:
    """A sweep that nobody disturbed: its file, the store and every file of its report's tables."""

    sweep: Sweep
    file: Path
    store: Path
    tables: dict[str, bytes]


_SET = """\
set:
  dataset: digits
  backbone: {name: resnet18, width: 4}
  augmentation: none
"""
_TEACHER = "  teacher: {max_steps: 400}\n"

ALONE = Sweep(
    "alone",
    f"""\
name: alone
title: Digits, one worker a run
{_SET}{_TEACHER}  training: {{steps: 120, batch_size: 64, lr: 0.005}}
grids:
  - axes:
      strategy: [A, B, C]
      teacher.accuracy: [20, 40]
      seed: [0, 1]
report:
  - table: strategies
    rows: [step, strategy]
    columns: [teacher.accuracy]
    steps: [20, 60, 120]
""",
    is_wide=False,
)
"""1 teacher, 2 soft-target files, 10 students."""

WIDE = Sweep(
    "wide",
    f"""\
name: wide
title: Digits, two workers a run
{_SET}{_TEACHER}  training: {{steps: 240, batch_size: 64, lr: 0.005}}
  scaling: {{workers: 2, teacher_workers: 1}}
grids:
  - axes: {{strategy: [A, B], teacher.accuracy: [20]}}
report:
  - table: strategies
    rows: [step]
    columns: [strategy]
    steps: [100, 200, 240]
""",
    is_wide=True,
)
"""1 teacher, 2 students, long enough to be hit in the middle."""

PAIR = Sweep(
    "pair",
    f"""\
name: pair
title: Digits, one run on two workers
{_SET}  strategy: A
  training: {{steps: 100, batch_size: 64, lr: 0.005}}
  scaling: {{workers: 2}}
report:
  - table: strategies
    rows: [step]
    columns: [strategy]
    steps: [50, 100]
""",
    is_wide=True,
)
"""1 student."""
