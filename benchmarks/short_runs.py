"""The runs of sweep_efficiency.py: what one is, how it trains and when it did.

    python benchmarks/short_runs.py --data FOLDER --seed 3 --steps 400    # one run and no more
    python benchmarks/short_runs.py --data FOLDER --steps 400 --repeats 3 # solo times, JSON

As a program it is what a shell loop runs: it loads torch, trains one student and prints its rows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

STAMPS = "SHORT_RUNS_STAMPS"
"""Environment variable: the file to which runs append their moments."""

SWEEP = """\
name: short
set:
  dataset: digits
  backbone: {name: resnet18, width: %d}
  training: {steps: %d, batch_size: 64, lr: 1.0e-3}
  augmentation: std
grids:
  - axes: {strategy: [A], seed: [%s]}
"""


def sweep_text(width: int, steps: int, runs: int) -> str:
    """The sweep file of the same runs."""
    return SWEEP % (width, steps, ", ".join(map(str, range(runs))))


def spec_of(seed: int, width: int) -> Any:
    """The StudentSpec that the sweep file stands for."""
    from trainers.data.catalogue import OFFICIAL
    from trainers.spec import AUGMENTATIONS, AdamW, Backbone, Dataset, StudentSpec

    return StudentSpec(
        dataset=Dataset(name="digits", fingerprint=OFFICIAL["digits"].fingerprint),
        backbone=Backbone(name="resnet18", width=width),
        augmentation=AUGMENTATIONS["std"],
        strategy="A",
        optimizer=AdamW(lr=1e-3, weight_decay=0.01),
        batch_size=64,
        seed=seed,
    )


def rows(data: Any, seed: int, width: int, steps: int, device: str) -> Iterator[dict[str, Any]]:
    """The evaluations of one run, by the trainers' own loop, with nothing around it."""
    from trainers.events import Evaluation
    from trainers.spec import Request, Runtime
    from trainers.student import train_student

    watch_steps()
    train = stamping(train_student)
    request, runtime = Request(horizon=steps), Runtime(device=device, checkpoint_every_s=1e9)
    for event in train(spec_of(seed, width), data, request, runtime):
        if isinstance(event, Evaluation):
            yield event.row


def load_data(folder: str, device: str) -> Any:
    """With its images on the device, as a trial keeps them."""
    import dataclasses

    from trainers.data.prepared import load

    data = load(Path(folder))
    return dataclasses.replace(
        data, train_images=data.train_images.to(device), test_images=data.test_images.to(device)
    )


# -- when ----------------------------------------------------------------------------------------


def stamp(name: str, seed: int) -> None:
    if STAMPS in os.environ:
        line = {"name": name, "seed": seed, "at": time.time(), "pid": os.getpid()}
        with open(os.environ[STAMPS], "a") as file:
            file.write(json.dumps(line) + "\n")


def watch_steps() -> None:
    """Has every run of this process stamp the moment at which its first step begins."""
    from trainers.engine import Engine

    engine: Any = Engine
    if hasattr(engine.update, "plain"):
        return
    plain = engine.update

    def update(self: Any) -> None:
        if self.step == 0:
            stamp("first", self._seed)
        plain(self)

    update.plain = plain  # type: ignore[attr-defined]
    engine.update = update


def stamping(train: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """`train_student`, with a stamp after the evaluation of its last step."""
    from trainers.events import Evaluation

    def stamped(spec: Any, data: Any, request: Any, *rest: Any, **named: Any) -> Iterator[Any]:
        for event in train(spec, data, request, *rest, **named):
            if isinstance(event, Evaluation) and event.row["step"] == request.horizon:
                stamp("last", spec.seed)
            yield event

    return stamped


def solo(data: Any, width: int, steps: int, repeats: int, device: str) -> list[float]:
    """Seconds of runs one after the other in this warm process, first step to last evaluation; one
    more, which warms it, is left out."""
    import tempfile

    found = []
    with tempfile.NamedTemporaryFile("r") as file:
        os.environ[STAMPS] = file.name
        for seed in range(repeats + 1):
            for _ in rows(data, seed, width, steps, device):
                pass
            first, last = map(json.loads, file.read().splitlines())
            found.append(last["at"] - first["at"])
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of the prepared data set")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=None, help="measure solo times instead")
    asked = parser.parse_args()
    data = load_data(asked.data, asked.device)
    if asked.repeats is not None:
        print(json.dumps(solo(data, asked.width, asked.steps, asked.repeats, asked.device)))
        return
    for row in rows(data, asked.seed, asked.width, asked.steps, asked.device):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
