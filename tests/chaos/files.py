"""Damaged files: truncated, or with bits flipped; between two commands, and while one runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.chaos.command import Command, OutOfTime
from tests.chaos.kinds import Kind
from tests.chaos.scene import Scene

__all__ = ["BETWEEN", "damage", "damaged_between", "damaged_meanwhile", "spoilt"]

BETWEEN = (Kind.CHECKPOINT, Kind.METRICS, Kind.RESULT, Kind.SNAPSHOT, Kind.TARGETS)


def damaged_between(scene: Scene) -> Iterator[None]:
    """The driver dies in the middle, and then the disk turns out to be bad. One file of each kind,
    of runs that have nothing to do with each other where there are enough."""
    run = scene.run()
    while (flight := scene.training(run, 20)) is not None:
        if flight.saved >= flight.first and sum(map(_is_student, scene.finished)) >= 3:
            break
        scene.note_finished()
    if flight is not None:
        scene.inject(Kind.DRIVER, f"{flight.unit} at step {flight.last}")
        run.kill()
        scene.leave_nobody()
    scene.note_finished()
    for kind in BETWEEN:
        damage(scene, kind)
    yield


def damaged_meanwhile(scene: Scene) -> Iterator[None]:
    """What a finished run left, while others still read it: snapshots and soft targets at once,
    results and metrics when the next command looks at them."""
    run = scene.run()
    for kind in (Kind.SNAPSHOT, Kind.TARGETS, Kind.RESULT, Kind.METRICS):
        if scene.training(run, scene.random.randint(1, 60), lambda one: _is_student(one.unit)):
            _until_there(scene, run, kind)
            damage(scene, kind)
    run.wait()
    yield


def _until_there(scene: Scene, run: Command, kind: Kind) -> None:
    scene.note_finished()
    with suppress(OutOfTime):
        while run.is_running and not list(_candidates(scene, kind)):
            run.until("done at step")
            scene.note_finished()


def _is_student(name: str) -> bool:
    return name.startswith("student")


def damage(scene: Scene, kind: Kind) -> None:
    """Damages one file of a kind that is not damaged yet, and remembers what its bytes are now."""
    scene.note_finished()
    found = sorted(_candidates(scene, kind))
    if not found:
        return
    file = scene.random.choice(found)
    content, how = spoilt(file.read_bytes(), scene.random)
    rel = file.relative_to(scene.folder / "store").as_posix()
    scene.inject(kind, f"{rel}, {how}")
    scene.damaged[rel] = content
    with file.open("r+b") as stream:  # in place, as a disk does it
        stream.write(content)
        stream.truncate(len(content))


def spoilt(content: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Other bytes, and what was done: cut off somewhere, or a bit flipped in up to three bytes."""
    if draw.random() < 0.5:
        return content[: draw.randrange(len(content))], "truncated"
    flipped = bytearray(content)
    for place in draw.sample(range(len(content)), min(draw.randint(1, 3), len(content))):
        flipped[place] ^= 1 << draw.randrange(8)
    return bytes(flipped), "bits flipped"


def _candidates(scene: Scene, kind: Kind) -> Iterator[Path]:
    """Files of a kind that nothing will replace, or only the run itself when it goes on."""
    store, done = scene.folder / "store", scene.finished
    hit = {rel.split("/")[1] for rel in scene.damaged if rel.startswith("runs/")}
    students = [store / "runs" / name for name in sorted(done) if _is_student(name)]
    students = [folder for folder in students if folder.name not in hit]
    if kind is Kind.RESULT:
        yield from (folder / "result.json" for folder in students)
    elif kind is Kind.METRICS:
        yield from (folder / "metrics.parquet" for folder in students)
    elif kind is Kind.TARGETS:
        yield from (store / "targets").glob("*.arrow")
    elif kind is Kind.SNAPSHOT:
        for name in done:
            if name.startswith("teacher"):
                yield from (store / "runs" / name / "snapshots").glob("acc-*")
    else:
        # The latest of a run: a kill between write and delete leaves an older one beside it, which
        # is deleted at the next save, and which nobody reads.
        for folder in (store / "runs").glob("student-*"):
            if folder.name not in done:
                yield from sorted(folder.glob("checkpoint/step-*.ckpt"))[-1:]
