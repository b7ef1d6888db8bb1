"""`python -m tests.chaos --seed 0 --minutes 60 --json FILE [--only NAME …]`."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.chaos.acts import ACTS, SHORT
from tests.chaos.harness import Harness, passes
from tests.chaos.table import Played, as_table, write_json


def main() -> int:
    asked = _arguments()
    console = Console(width=None if sys.stdout.isatty() else 150)
    if asked.list:
        for act in ACTS:
            console.print(f"{act.name} ({act.sweep.name}, {act.times} a pass, {act.about_s:g} s)")
        return 0
    folder = Path(asked.folder or tempfile.mkdtemp(prefix="targetsweep-chaos-"))
    began, clock = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    keep = _Books(asked, began, clock)
    harness = Harness(
        folder,
        asked.seed,
        say=lambda line: console.print(
            f"{time.monotonic() - began:6.0f} s  {line}", markup=False, highlight=False,
            soft_wrap=True,
        ),
        noted=keep.write,
    )  # fmt: skip
    try:
        if asked.only:
            every = {act.name: act for act in (*SHORT, *ACTS)}.values()
            for act in (act for act in every if any(part in act.name for part in asked.only)):
                harness.play(act)
        else:
            harness.play_all(passes(asked.seed), began + 60 * asked.minutes)
    except KeyboardInterrupt:
        console.print("interrupted; so far:")
    console.print(as_table(harness.played))
    clean = all(one.is_clean or one.skipped for one in harness.played)
    if clean and not asked.folder:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        console.print(f"what is not clean is kept in {folder}", soft_wrap=True)
    return 0 if clean else 1


class _Books:
    """The JSON file, if one is asked for; written as results come."""

    def __init__(self, asked: argparse.Namespace, began: float, clock: str):
        self._asked, self._began, self._clock = asked, began, clock

    def write(self, played: Sequence[Played]) -> None:
        if self._asked.json:
            facts = {
                "command": "python -m tests.chaos " + " ".join(sys.argv[1:]),
                "began": self._clock,
                "seconds": round(time.monotonic() - self._began, 1),
                "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
            }
            write_json(Path(self._asked.json), played, facts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=40.0, help="time box")
    parser.add_argument("--json", help="file for the results, written after every scene")
    parser.add_argument("--only", nargs="+", help="parts of scenes' names; each once")
    parser.add_argument("--folder", help="where stores and logs go, and stay")
    parser.add_argument("--list", action="store_true", help="scenes")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
