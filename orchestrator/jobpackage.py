"""What a job on a cluster needs of this machine's files: the sweep files and what they name.

Sweep files name others by relative paths (`include:`, `scale:`, `reference:`), so all of them are
copied in one tree, below one folder. Its name is no module's: Ray puts a job's folder on the path
that Python imports from.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.yamlsource import read_yaml

__all__ = ["absolute", "files_of", "pack"]

FOLDER = "sweep-files"


def files_of(files: Sequence[str | Path], scale: str | Path | None = None) -> list[Path]:
    """Absolute paths of the sweep files, of the scale file and of everything they name, each once.
    The files are those of sweeps that were read already: nothing is checked again. Raises UserError
    where one is named by an absolute path, which other machines do not have."""
    found: dict[Path, None] = {}
    waiting = [absolute(file) for file in (*files, *([scale] if scale else []))]
    while waiting:
        file = waiting.pop(0)
        if file not in found:
            found[file] = None
            waiting += _named_by(file)
    return list(found)


def pack(files: Iterable[Path], out: Path) -> dict[Path, str]:
    """Copies the files below `out`, as they lie to each other; where each is now, relative to
    `out`."""
    files = list(files)
    root = Path(os.path.commonpath([file.parent for file in files]))
    placed = {file: f"{FOLDER}/{file.relative_to(root).as_posix()}" for file in files}
    for file, rel in placed.items():
        (out / rel).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, out / rel)
    return placed


def absolute(file: str | Path) -> Path:
    """Not resolved: what a link stands beside is what its content is relative to."""
    return Path(os.path.abspath(Path(file)))


def _named_by(file: Path) -> Iterator[Path]:
    if file.suffix.lower() not in (".yaml", ".yml"):
        return
    for named in _names(read_yaml(file).data):
        if Path(named).is_absolute():
            raise UserError(
                f"{file} names {named}, which other machines do not have",
                "name it relative to the file, so that it can go along",
            )
        yield absolute(file.parent / named)


def _names(data: Mapping[str, Any]) -> Iterator[str]:
    """Files that a sweep file, a group or a scale names."""
    include = data.get("include")
    yield from include if isinstance(include, list) else []
    if isinstance(data.get("scale"), str):
        yield data["scale"]
    for item in data.get("report") or []:
        if isinstance(item, Mapping) and isinstance(item.get("reference"), str):
            yield item["reference"]
