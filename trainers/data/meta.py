"""meta.json of a prepared data set: what it is, with a checksum. Means and standard deviations in
it reach every image: a flipped digit must not pass.

Its key `sha256` is the SHA-256 of the compact canonical JSON (sorted keys) of all others, as in
every JSON file of a store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from trainers.data.info import DatasetInfo
from trainers.errors import DataError

__all__ = ["META", "load_info", "meta_text", "read_meta"]

META = "meta.json"
_KEY = "sha256"
_REMEDY = "delete the folder and prepare the data set again"


def meta_text(meta: Mapping[str, Any]) -> str:
    """The file's content."""
    plain = json.loads(json.dumps(dict(meta), allow_nan=False))
    return json.dumps(plain | {_KEY: _digest(plain)}, indent=2) + "\n"


def load_info(folder: Path) -> DatasetInfo:
    """What a prepared data set is. Raises DataError if `folder` holds none."""
    meta = read_meta(folder)
    values: dict[str, Any] = {field.name: meta[field.name] for field in fields(DatasetInfo)}
    values |= {key: tuple(values[key]) for key in ("mean", "std")}  # JSON has lists only
    return DatasetInfo(**values)


def read_meta(folder: Path) -> dict[str, Any]:
    """Raises DataError when there is none, or one that is not what was written."""
    try:
        meta: dict[str, Any] = json.loads((folder / META).read_text())
        sealed = meta.pop(_KEY, None)
        found = _digest(meta)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{folder} holds no prepared data set: {error}", _REMEDY) from error
    if sealed is None:
        raise DataError(
            f"{folder / META} has no checksum: an older version wrote it, or it is damaged",
            f"of an older store: targetsweep store check --seal; else {_REMEDY}",
        )
    if sealed != found:
        raise DataError(f"{folder / META} is damaged: its checksum does not fit", _REMEDY)
    return meta


def _digest(meta: Mapping[str, Any]) -> str:
    text = json.dumps(meta, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
