"""The scripts of `benchmarks/`, as tests import them, and what they write."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["module", "read"]


def module(name: str) -> ModuleType:
    __import__(name)
    return sys.modules[name]


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    assert found["machine"]["torch"]
    return found
