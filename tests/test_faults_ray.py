"""Trials that hang, freeze and run out of memory, under the real driver and Ray: each is noticed,
ended and repeated, and the numbers are those of a run that nothing happened to.

The faults come from a sitecustomize.py of the test's own; nothing of ours knows how to fail.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator import paths
from orchestrator.store import Store
from tests.commands import targetsweep
from tests.driving import digits_store, drive_here, numbers, tiny_plan
from tests.sweep_files import write

pytestmark = pytest.mark.ray

THREE = """\
name: three
title: Students that need nobody
set:
  dataset: digits
  backbone: {name: resnet18, width: 4}
  training: {steps: 20, batch_size: 32, lr: 0.01}
  augmentation: none
grids:
  - axes: {strategy: [A], seed: [0, 1, 2]}
"""

FAULTS = """\
import os, signal, time
from trainers.pulse import Pulse

FOLDER = os.environ["FAULTS"]

def once(name):
    try:
        os.close(os.open(os.path.join(FOLDER, name), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

def hang():
    time.sleep(600)

beat = Pulse.beat

def faulty(self):
    beat(self)
    if self.beats < 5:
        return
    if once("hang"):
        hang()
    elif once("freeze"):
        os.kill(os.getpid(), signal.SIGSTOP)
    elif once("memory"):
        raise MemoryError("as if there were none left")

Pulse.beat = faulty
"""


def test_trials_that_hang_freeze_and_run_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / "sitecustomize.py").write_text(FAULTS)
    monkeypatch.setenv("FAULTS", str(faults))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(faults), str(Path.cwd())]))
    store = digits_store(tmp_path / "store")
    file = write(tmp_path, THREE)

    command = targetsweep(
        "run", file, "--store", store.uri, "--concurrency", 1, "--hang-after", 8,
        "--checkpoint-every", 0,
    )  # fmt: skip

    assert command.count(r"hung: no step: worker 0 of \S+ did nothing for .* \(tried again\)") == 1
    assert command.count(r"hung: no word: it said nothing for .* \(tried again\)") == 1
    assert command.count(r"out of memory: MemoryError: .* \(tried again\)") == 1
    plan = tiny_plan(tmp_path, text=THREE)
    dumps = [name for unit in plan.units for name in hangs(store, unit.name)]
    assert len(dumps) == 1
    assert "in hang" in dumps[0]

    undisturbed = digits_store(tmp_path / "undisturbed")
    drive_here(plan, undisturbed)
    for unit in plan.units:
        assert numbers(store, unit.name) == numbers(undisturbed, unit.name)
        assert not store.exists(paths.failure(unit.name))


def hangs(store: Store, name: str) -> list[str]:
    return [
        store.read_bytes(f"{paths.run_dir(name)}/{file}").decode()
        for file in store.list(paths.run_dir(name))
        if file.startswith("hang-")
    ]
