"""A disk that is full, a store that is read-only: a small tmpfs of the scene's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.chaos.command import OutOfTime, wait_for
from tests.chaos.kinds import Kind
from tests.chaos.scene import Scene
from tests.driving import digits_store

__all__ = ["Unable", "full_disk", "read_only"]

_SIZE = "48m"


class Unable(Exception):
    """This machine does not let the harness do that; the scene is skipped with this reason."""


@contextmanager
def _own_disk(scene: Scene) -> Iterator[Path]:
    """The store's folder as a file system of 48 MB."""
    place = scene.folder / "store"
    shutil.rmtree(place)
    place.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", place)
    digits_store(place / "made")
    for part in (place / "made").iterdir():
        part.rename(place / part.name)
    (place / "made").rmdir()
    yield place  # the harness unmounts it, once nobody is in there


def _mount(*arguments: object) -> None:
    if os.geteuid() != 0:
        raise Unable("only root may mount a small file system")
    made = subprocess.run(
        ["mount", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise Unable(f"mount refused: {made.stderr.strip()}")


def full_disk(scene: Scene) -> Iterator[None]:
    """The disk fills up while runs train, three times; each time the sweep ends and says so."""
    with _own_disk(scene) as place:
        for _ in range(3):
            run = scene.run()
            if scene.training(run, scene.random.randint(1, 100)) is None:
                break
            scene.inject(Kind.DISK_FULL, "the store's file system")
            filler = place / "datasets" / "filler"
            _fill(filler)
            status = run.wait()
            if status == 0 or "full" not in run.text[-2000:]:
                scene.problems.append(f"on a full disk the command ended with {status}")
            filler.unlink()
        yield


def _fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(bytes(1 << 16))
    with filler.open("ab", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(bytes(512))


def read_only(scene: Scene) -> Iterator[None]:
    """The store turns read-only while runs train. MLflow is elsewhere: SQLite would keep the file
    system busy, and it could not be remounted."""
    scene.tracking_uri = f"sqlite:///{scene.folder}/mlflow.db"
    with _own_disk(scene) as place:
        for _ in range(3):
            run = scene.run()
            if scene.training(run, scene.random.randint(1, 100)) is None:
                break
            wait_for(lambda: _remounted(place, "ro"), scene.deadline_s, "a read-only store")
            scene.inject(Kind.READ_ONLY, "the store's file system")
            try:
                status = run.wait()
            except OutOfTime:
                status = -1
                scene.problems.append("on a read-only store the command does not end")
            finally:
                _mount("-o", "remount,rw", place)
            if status == 0 or "read-only" not in run.text[-2000:].lower():
                scene.problems.append(f"on a read-only store the command ended with {status}")
        yield


def _remounted(place: Path, mode: str) -> bool:
    """Refused while a file is open for writing; then once more."""
    done = subprocess.run(
        ["mount", "-o", f"remount,{mode}", place], capture_output=True, check=False
    )
    return done.returncode == 0
