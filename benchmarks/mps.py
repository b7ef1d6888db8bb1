"""NVIDIA's Multi-Process Service, where it can be started: kernels of several processes then run
side by side, not in turn.

It is a pair of processes of this user's, in a folder of its own; no setting of the GPU changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

__all__ = ["serving"]

_CONTROL = "nvidia-cuda-mps-control"
_FOLDERS = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
_TRY = "import torch; torch.zeros(1, device='cuda').add_(1).item()"


@contextmanager
def serving() -> Iterator[str | None]:
    """Yields None while processes that are started in the block share the GPU by MPS, or in words
    why they do not. This process, which has its CUDA context already, is no part of it."""
    program = shutil.which(_CONTROL)
    if program is None:
        yield f"{_CONTROL} is not there"
        return
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: folder for name in _FOLDERS}
        before = {name: os.environ[name] for name in _FOLDERS if name in os.environ}
        refusal = _start(program, os.environ | environment)
        try:
            if refusal is None:
                os.environ.update(environment)
            yield refusal
        finally:
            for name in _FOLDERS:
                os.environ.pop(name, None)
            os.environ.update(before)
            _quit(program, os.environ | environment)


def _start(program: str, environment: Mapping[str, str]) -> str | None:
    """Why it does not serve; None where it does, which a first process has tried. A file takes what
    they say: the daemon keeps its output open, and a pipe would be waited for."""
    for command, limit_s in (([program, "-d"], 20.0), ([sys.executable, "-c", _TRY], 90.0)):
        with tempfile.TemporaryFile("w+") as output:
            try:
                subprocess.run(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                    stderr=subprocess.STDOUT, timeout=limit_s, check=True,
                )  # fmt: skip
            except subprocess.CalledProcessError as error:
                output.seek(0)
                said = output.read().strip().splitlines() or ["no word"]
                return f"{command[0]} ended with {error.returncode}: {said[-1]}"
            except (OSError, subprocess.TimeoutExpired) as error:
                return f"{command[0]}: {error}"
    return None


def _quit(program: str, environment: Mapping[str, str]) -> None:
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [program], input="quit\n", env=environment, capture_output=True, text=True, timeout=20,
            check=False,
        )  # fmt: skip
