"""Plays scene after scene within a time box, whatever becomes of each, and keeps the books."""

from __future__ import annotations

import random
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from _pytest.outcomes import Skipped

from orchestrator.store import Store
from tests.chaos.acts import ACTS, PENDING, Act
from tests.chaos.command import Command, OutOfTime
from tests.chaos.disks import Unable
from tests.chaos.scene import INTERVAL_S, Scene, environment_of
from tests.chaos.sweeps import Reference, Sweep
from tests.chaos.table import Played, totals
from tests.chaos.verdict import Verdict, judge
from tests.commands import tables
from tests.driving import digits_store

__all__ = ["GOALS", "Harness", "are_reached", "passes"]

GOALS = {"faults": 100, "kills": 40}
"""Beside these: three of every kind, and half of the kills during distributed training."""
_MARGIN_S = 30.0


def are_reached(played: list[Played]) -> bool:
    summed = totals(played)
    return (
        all(summed[name] >= least for name, least in GOALS.items())
        and 2 * summed["kills_in_ddp"] >= summed["kills"]
        and summed["kinds_three_times"] == summed["kinds"]
    )


def passes(seed: int) -> Iterator[tuple[int, Act]]:
    """(round, scene) for ever: each pass has all of them, in an order of its own."""
    number = 0
    while True:
        acts = [act for act in ACTS for _ in range(act.times)]
        random.Random(f"order {seed} {number}").shuffle(acts)
        yield from ((number, act) for act in acts)
        number += 1


class Harness:
    """folder: where stores and logs lie; those of clean scenes are removed. say:
    gets lines for people; noted: all scenes so far, after each."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        say: Callable[[str], None] = print,
        noted: Callable[[list[Played]], None] = lambda played: None,
    ) -> None:
        self.folder = folder
        self.seed = seed
        self.say = say
        self.noted = noted
        self.played: list[Played] = []
        self._references: dict[str, Reference] = {}

    def reference(self, sweep: Sweep) -> Reference:
        """The sweep undisturbed, played once."""
        if sweep.name not in self._references:
            self.say(f"{sweep.name}: undisturbed, for its tables")
            self._references[sweep.name] = self._undisturbed(sweep)
        return self._references[sweep.name]

    def _undisturbed(self, sweep: Sweep) -> Reference:
        folder, began = self.folder / f"reference-{sweep.name}", time.monotonic()
        file = folder / f"{sweep.name}.yaml"
        if file.exists() and file.read_text() == sweep.text:  # of a harness before this one
            return self._known(sweep, folder, file)
        shutil.rmtree(folder, ignore_errors=True)
        for part in ("flights", "orders", "spent"):
            (folder / part).mkdir(parents=True)
        (folder / "clock").write_bytes(bytes(8))
        digits_store(folder / "store")
        file.write_text(sweep.text)
        run = Command(
            *("run", file, "--store", folder / "store", "--checkpoint-every", INTERVAL_S),
            log=folder / "command.log",
            environment=environment_of(folder),
            deadline_s=began + 900.0,
        )
        if run.wait() != 0:
            file.unlink()
            raise RuntimeError(f"the undisturbed sweep failed:\n{run.text}")
        return self._known(sweep, folder, file)

    def _known(self, sweep: Sweep, folder: Path, file: Path) -> Reference:
        return Reference(sweep, file, folder / "store", tables(Store(folder / "store"), sweep.name))

    def play(self, act: Act, round_: int = 0) -> Played:
        """One scene; never raises but for a KeyboardInterrupt, after which it is cleaned up too."""
        label = f"{len(self.played) + 1:02d} {act.name}"
        if act.name in PENDING:
            return self._note(Played(act.name, round_, act.sweep.name, 0, [], Verdict(),
                                     skipped=PENDING[act.name]))  # fmt: skip
        reference = self.reference(act.sweep)
        self.say(f"{label} …")
        began, folder = time.monotonic(), self.folder / label.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        scene = Scene(
            act.name,
            folder,
            reference,
            random.Random(f"{act.name} {self.seed} {round_} {len(self.played)}"),
            began + act.limit_s,
        )
        played = Played(act.name, round_, act.sweep.name, 0, scene.faults, Verdict())
        played.folder = str(scene.folder)
        try:
            self._play(act, scene, played)
        except (Unable, Skipped) as error:
            played.skipped = str(error)
        except OutOfTime as error:
            played.error = f"{error} (limit {act.limit_s:g} s)"
        except Exception:
            played.error = traceback.format_exc()
        except KeyboardInterrupt:
            scene.leave_nobody(0.0)
            played.skipped = "interrupted"
            raise
        finally:
            left = scene.leave_nobody(20.0 if not played.error else 0.0)
            played.verdict.left_behind += [f"process: {name}" for name in left]
            scene.unmount()
            played.seconds = round(time.monotonic() - began, 1)
            self._note(played)
        if played.is_clean:
            shutil.rmtree(scene.folder, ignore_errors=True)
        return played

    def _play(self, act: Act, scene: Scene, played: Played) -> None:
        with contextmanager(act.play)(scene):
            scene.finish()
            played.verdict = judge(scene)

    def _note(self, played: Played) -> Played:
        self.played.append(played)
        self.noted(self.played)
        if played.skipped:
            self.say(f"   skipped: {played.skipped}")
            return played
        state = "clean" if played.is_clean else "NOT CLEAN"
        self.say(f"   {len(played.faults)} faults, {played.seconds:.0f} s, {state}")
        for line in complaints(played):
            self.say(f"   ! {line}")
        return played

    def play_all(self, acts: Iterable[tuple[int, Act]], until_s: float) -> None:
        """Until the goals are reached after a whole pass, or a scene would not end in time
        (monotonic). Skips what the last pass showed to be impossible here."""
        impossible = set()
        for round_, act in acts:
            if round_ > 0 and are_reached(self.played):
                return
            if act.name in impossible:
                continue
            if time.monotonic() + act.about_s + _MARGIN_S > until_s:
                self.say(f"no time left for: {act.name}")
                if time.monotonic() + min(one.about_s for one in ACTS) + _MARGIN_S > until_s:
                    return
                continue
            if self.play(act, round_).skipped:
                impossible.add(act.name)


def complaints(played: Played) -> list[str]:
    """What is wrong with a scene, line by line."""
    verdict = played.verdict
    lines = [f"{name}: {line}" for name in (
        "wrong_numbers", "retrained", "tracking", "lost", "unnoticed", "left_behind", "other"
    ) for line in getattr(verdict, name)]  # fmt: skip
    if played.error:
        lines.append(f"error: {played.error}")
    return lines
