"""Everything that needs a GPU, in one command and within a time box.

    python benchmarks/gpu_session.py --out FOLDER --minutes 25 [--data PARQUET…]
                                     [--images PARQUET] [--only NAME…]

Runs one benchmark after the other, the most telling first, each in a process of its own with a
limit of its own; one that fails or hangs is ended and the next one begins. Nothing is begun that
could not be of use in the time that is left. FOLDER gets `results.json`, written after every
stage, `log.txt` with all that they printed, and `summary.txt`. Given again with the same folder, it
goes on where its time was over, so a session of several short calls works too; `--only` does the
named ones again.

    runs        does the code run there: precisions, strategies, compile, CUDA graphs
    tests       pytest, the tests that need a GPU
    step        the whole step against its floor and others' stacks; validation's share; a profile
    sharing     how many runs one GPU takes, in fp32, as the paper's sweeps ask (then, at home:
                benchmarks/sharing.py --record)
    resnet50    images on the device, and from shards
    compiled    the step and its floor under torch.compile
    precision   bf16 against fp32, final accuracy by seed (needs --data)
    validation  a teacher's validation after every step, screened and not (needs --data)
    fp32        the step in fp32, and whether its floor is faster in NCHW than channels-last
    sharing-bf16 the same in bf16
    checkpoints what one a minute costs (needs what the store needs besides)

The machine needs torch, torchvision, NumPy, Pillow, pyarrow, safetensors and rich; pytest for
`tests`, and what decodes JPEGs for shards.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe
from rich.console import Console
from rich.table import Table
from rich.text import Text

HERE = Path(__file__).parent
ROOT = HERE.parent
TAIL_LINES = 15
ENOUGH = 0.9
"""Of its limit: a stage that gives itself a time box ends by itself before it is ended."""

_OURS = ("--device", "{device}", "--json", "{json}")

LEFT_OUT, CUT_SHORT = "left out", "cut short"
"""What the next session does (again)."""

console = Console()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """script: in this folder; None is pytest. arguments: `{device}`, `{json}`, `{profile}`,
    `{seconds}` and `{folder}` (of the data) are filled in. least_s: with less time left it is not
    begun. limit_s: then it is ended. takes_data, takes_images: gets `--data`, `--images` where they
    are given; needs_data: is left out where there is none."""

    name: str
    script: str | None
    arguments: tuple[str, ...] = _OURS
    least_s: float
    limit_s: float
    takes_data: bool = False
    needs_data: bool = False
    takes_images: bool = False


_PYTEST = ("-v", "-m", "gpu", "-o", "addopts=", "-p", "no:cacheprovider", "-W", "default")
"""Each test has its line in the log, so that one that hangs is known; without the options of the
project's own runs, whose plugins a lent machine may lack."""

_STEP = (*_OURS, "--profile", "{profile}")

STAGES = (
    Stage(name="runs", script="runs_here.py", least_s=40, limit_s=180),
    Stage(name="tests", script=None, arguments=(), least_s=40, limit_s=400),
    Stage(
        name="step", script="step.py", arguments=(*_STEP, "--precision", "bf16"),
        least_s=60, limit_s=300, takes_data=True,
    ),
    Stage(
        name="sharing", script="sharing.py", arguments=(*_OURS, "--precision", "fp32"),
        least_s=90, limit_s=360,
    ),
    Stage(name="resnet50", script="resnet50.py", least_s=60, limit_s=240, takes_images=True),
    Stage(
        name="compiled", script="step.py",
        arguments=(*_STEP, "--precision", "bf16", "--compile", "--baselines"),
        least_s=60, limit_s=240, takes_data=True,
    ),
    Stage(
        name="precision", script="precision_check.py", arguments=(*_OURS, "--seconds", "{seconds}"),
        least_s=90, limit_s=500, takes_data=True, needs_data=True,
    ),
    Stage(
        name="validation", script="teacher_validation.py",
        arguments=(*_OURS, "--width", "64", "--precision", "bf16", "--data", "{folder}"),
        least_s=90, limit_s=300, needs_data=True,
    ),
    Stage(
        name="fp32", script="step.py",
        arguments=(*_OURS, "--precision", "fp32", "--nchw", "--baselines"),
        least_s=60, limit_s=240, takes_data=True,
    ),
    Stage(
        name="sharing-bf16", script="sharing.py", arguments=(*_OURS, "--precision", "bf16"),
        least_s=90, limit_s=360,
    ),
    Stage(name="checkpoints", script="checkpointing.py", least_s=60, limit_s=120),
)  # fmt: skip


@dataclass(frozen=True)
class Session:
    """out: the folder of results. ends: when the time is over, by time.monotonic()."""

    out: Path
    device: str
    data: tuple[Path, ...]
    images: Path | None
    ends: float

    @property
    def left_s(self) -> float:
        return self.ends - time.monotonic()

    def run(self, stage: Stage) -> dict[str, Any]:
        """How the stage went, and what it wrote."""
        refusal = self._refusal(stage)
        if refusal is not None:
            return {"state": LEFT_OUT, "why": refusal}
        with tempfile.TemporaryDirectory() as folder:
            found = self._run(stage, Path(folder))
            return found | _written(Path(folder))

    def _refusal(self, stage: Stage) -> str | None:
        if stage.script is not None and not (HERE / stage.script).exists():
            return f"{stage.script} is not there"
        if stage.needs_data and not self.data:
            return "no --data"
        if self.left_s < stage.least_s:
            return f"{self.left_s:.0f} s left, {stage.least_s:.0f} s are the least"
        return None

    def _run(self, stage: Stage, folder: Path) -> dict[str, Any]:
        began, limit_s = time.monotonic(), min(stage.limit_s, self.left_s)
        command = self._command(stage, folder, limit_s)
        log = self.out / "log.txt"
        with log.open("ab") as sink:
            sink.write(f"\n===== {stage.name}: {' '.join(command)}\n".encode())
            sink.flush()
            start = sink.tell()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "110"},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                process_group=0,  # so that its own processes end with it
            )
            status = _wait(process, limit_s)
        said = log.read_bytes()[start:].decode(errors="replace")
        return {
            "state": _state(status, is_cut=limit_s < stage.limit_s),
            "status": status,
            "seconds": round(time.monotonic() - began, 1),
            "tail": said.splitlines()[-TAIL_LINES:],
        }

    def _command(self, stage: Stage, folder: Path, limit_s: float) -> list[str]:
        if stage.script is None:
            return [sys.executable, "-m", "pytest", *_PYTEST, *gpu_tests()]
        places = {
            "device": self.device,
            "json": str(folder / "result.json"),
            "profile": str(folder / "profile.json"),
            "seconds": f"{ENOUGH * limit_s:.0f}",
            "folder": str(self._data_folder),
        }
        arguments = [argument.format(**places) for argument in stage.arguments]
        if stage.takes_data and self.data:
            arguments += ["--data", *map(str, self.data)]
        if stage.takes_images and self.images is not None:
            arguments += ["--images", str(self.images)]
        return [sys.executable, str(HERE / stage.script), *arguments]

    @property
    def _data_folder(self) -> Path | None:
        first = self.data[0] if self.data else None
        return first.parent if first is not None and first.is_file() else first


def gpu_tests() -> list[str]:
    """Files of tests that need a GPU and nothing but `trainers`, the training step's first."""
    texts = {path: path.read_text() for path in sorted((ROOT / "tests").glob("test_*.py"))}
    found = [
        str(path.relative_to(ROOT))
        for path, text in texts.items()
        if "mark.gpu" in text and "orchestrator" not in text
    ]
    return sorted(found, key=lambda name: ("benchmarks" in name, name))


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> int | None:
    """Its exit status; None where it had to be ended. What it started ends with it, also where
    this session is interrupted. One that hangs in the driver is left behind after a while."""
    status = None
    try:
        with suppress(subprocess.TimeoutExpired):
            status = process.wait(limit_s)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
    return status


def _state(status: int | None, *, is_cut: bool) -> str:
    """is_cut: the session's time was over before the stage's own."""
    if status is None:
        return CUT_SHORT if is_cut else "out of time"
    return "failed" if status else "done"


def _written(folder: Path) -> dict[str, Any]:
    """The JSON files of a stage, in part where it was ended before its end."""
    found = {}
    for name in ("result", "profile"):
        path = folder / f"{name}.json"
        try:
            found[name] = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
    return found


# -- what has been found so far --------------------------------------------------------------------


def read_results(out: Path) -> dict[str, Any]:
    path = out / "results.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"stages": {}}
    return found


def write_results(out: Path, results: Mapping[str, Any]) -> None:
    """By rename: a session that is ended in the middle leaves the last whole file."""
    temporary = out / ".results.json"
    temporary.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    temporary.replace(out / "results.json")
    with (out / "summary.txt").open("w") as file:
        show(Console(file=file, width=140), results)


def is_due(stage: Stage, results: Mapping[str, Any], only: Sequence[str]) -> bool:
    """What the time did not suffice for; what failed would fail again."""
    if only:
        return stage.name in only
    return results["stages"].get(stage.name, {}).get("state", LEFT_OUT) in (LEFT_OUT, CUT_SHORT)


def show(console: Console, results: Mapping[str, Any]) -> None:
    table = Table("stage", "state", "seconds", "found")
    for stage in STAGES:
        found = results["stages"].get(stage.name)
        if found is not None:
            seconds = f"{found.get('seconds', '')}"
            # Text: what a stage printed may look like markup.
            table.add_row(stage.name, found["state"], seconds, Text("\n".join(headlines(found))))
    console.print(table)


def headlines(found: Mapping[str, Any]) -> Iterator[str]:
    """What a stage found, in lines; of one that found nothing, why."""
    result = found.get("result", {})
    lines = [*result.get("headline", ()), *_of_steps(result)]
    yield from lines
    if not lines:
        yield found.get("why") or next(reversed(found.get("tail") or [""]))


def _of_steps(result: Mapping[str, Any]) -> Iterator[str]:
    """Of `step.py`."""
    for one in result.get("results", ()):
        for row in one["measures"]:
            goal = f" (goal {row['goal']})" if row["goal"] else ""
            yield f"{row['measure']}: {row['median']:,.4g}{goal}, n = {row['n']}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the results")
    add("--minutes", type=float, default=25.0, help="for everything")
    add("--device", default="cuda")
    add("--data", type=Path, nargs="+", default=[], help="CIFAR-10: Parquet files of both splits")
    add("--images", type=Path, default=None, help="pictures for shards: a Parquet file or folder")
    add("--only", nargs="+", choices=[stage.name for stage in STAGES], default=[])
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    data = tuple(path.absolute() for path in options.data)
    images = None if options.images is None else options.images.absolute()
    session = Session(
        options.out, options.device, data, images, time.monotonic() + 60 * options.minutes
    )
    results = read_results(options.out)
    results["machine"] = describe("torch")
    for stage in STAGES:
        if not is_due(stage, results, options.only):
            continue
        console.print(f"{stage.name}: begins, {session.left_s:.0f} s left")
        found = session.run(stage)
        if found["state"] != LEFT_OUT or stage.name not in results["stages"]:
            results["stages"][stage.name] = found  # what was cut short keeps what it has found
        write_results(options.out, results)
        console.print(f"{stage.name}: {found['state']}, {found.get('seconds', 0)} s")
    show(console, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
