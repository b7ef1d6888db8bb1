"""`targetsweep run --budget` as a person gives it, with Ray: it ends by itself, and the same goes
on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import paths
from orchestrator.lease import holder
from orchestrator.store import Store
from tests.commands import Command, running
from tests.driving import digits_store
from tests.sweep_files import write

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

LONG = """\
name: long
title: More than a minute has room for
set:
  dataset: digits
  backbone: {name: resnet18, width: 8}
  strategy: A
  training: {steps: 9000, batch_size: 64, lr: 0.005}
  augmentation: none
grids:
  - axes: {seed: [0, 1]}
  - axes: {seed: [2]}
    set: {training.steps: 20}
    priority: 1
"""


def limited(file: Path, store: Store, bundle: Path) -> Command:
    """The command, to its end, however far that is: on a busy machine it may be nowhere."""
    arguments = ("--store", store.root, "--concurrency", 1, "--budget", "60s", "--export", bundle)
    with running("run", file, *arguments) as command:
        assert command.end() == 3, command.text
    assert "Traceback" not in command.text, command.text
    assert "the time is over (--budget 60s); nothing is lost" in command.text
    assert "report: " in command.text
    assert holder(store) is None
    assert not [name for name in store.list(paths.control_dir()) if name.startswith("stop")]
    return command


def ended(store: Store) -> dict[str, float]:
    """When each complete run came to its result."""
    runs = store.list(paths.runs_dir())
    there = [name for name in runs if store.exists(paths.result(name))]
    return {name: store.modified(paths.result(name)) for name in there}


def test_a_budget_ends_it_and_all_that_was_begun_goes_on(tmp_path: Path) -> None:
    file, store, bundle = write(tmp_path, LONG), digits_store(tmp_path / "store"), tmp_path / "b"
    first = limited(file, store, bundle)
    done = ended(store)
    assert bundle.exists() == bool(done)
    begun = set(store.list(paths.runs_dir())) - done.keys()
    saved = {name for name in begun if store.list(paths.checkpoint_dir(name))}
    assert first.count("cut off, saved: ") <= len(saved)

    second = limited(file, store, bundle)
    assert done.items() <= ended(store).items()
    labels = {(store.read_json(paths.run_json(name)) or {})["label"] for name in saved}
    assert not [one for one in second.trained if one.endswith(" @1") and one[:-3] in labels]
