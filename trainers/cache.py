"""Where a node keeps what can be made again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """`TARGETSWEEP_CACHE`, or ~/.cache/targetsweep; it may be deleted at any time."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "targetsweep"
    return Path(os.environ.get("TARGETSWEEP_CACHE") or default).expanduser()
