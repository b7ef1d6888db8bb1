"""A teacher's snapshot in several forms: its own weights, and a copy of them in 16 bits. Pure.

A snapshot is what its digest says, the SHA-256 of its weights, and students record the digest they
learnt from. A bundle carries the very weights where they fit. Where only 16-bit floats do, what
arrives is another teacher: almost the same function, other weights. So a copy has a digest and a
measured accuracy of its own, and its record says whose copy it is:

    acc-60.json   {"preset": 60, "step", "alpha", "teacher",
                   "digest": of the weights that lie here, "accuracy": measured with them,
                   "of": digest of the original (copies only),
                   "also": {digest: accuracy} of the other forms that are known}

Reports tell students by digest, so that an average over an original and its copy is never silent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from orchestrator import paths

__all__ = [
    "SHA256",
    "Snapshot",
    "as_copy",
    "disagreement",
    "forms",
    "is_kin",
    "joined",
    "snapshot_fault",
]

SHA256 = re.compile(r"[0-9a-f]{64}")

Snapshot = Mapping[str, Any]
"""The content of a snapshot's JSON."""


def forms(record: Snapshot) -> dict[str, float]:
    """Measured accuracy (percent) by digest, of all forms that the record knows."""
    return {**record.get("also", {}), record["digest"]: record["accuracy"]}


def is_kin(one: Snapshot, other: Snapshot) -> bool:
    """Whether the records are of one snapshot, in whatever form."""
    return bool(forms(one).keys() & forms(other).keys())


def as_copy(original: Snapshot, digest: str, accuracy: float) -> dict[str, Any]:
    """The record of a copy whose weights have `digest` and were measured at `accuracy`."""
    record = {name: value for name, value in original.items() if name not in ("of", "also")}
    return record | {
        "digest": digest,
        "accuracy": accuracy,
        "of": original.get("of", original["digest"]),
        "also": forms(original),
    }


def joined(ours: Snapshot, theirs: Snapshot) -> dict[str, Any]:
    """Ours, with the forms that only theirs knows."""
    also = {d: a for d, a in {**forms(theirs), **forms(ours)}.items() if d != ours["digest"]}
    return {**ours, "also": also} if also else dict(ours)


def disagreement(ours: Snapshot, theirs: Snapshot) -> str:
    """What the two say differently of one snapshot, or empty."""
    fields = ("step", "alpha") if is_kin(ours, theirs) else ("step", "accuracy", "alpha", "digest")
    for field in fields:
        if ours[field] != theirs[field]:
            return f"{field}: here {ours[field]}, there {theirs[field]}"
    here, there = forms(ours), forms(theirs)
    for digest in sorted(here.keys() & there.keys()):
        if here[digest] != there[digest]:
            return f"accuracy of {digest[:16]}: here {here[digest]}, there {there[digest]}"
    return ""


def snapshot_fault(key: str, preset: str, content: Snapshot) -> str | None:
    """Why this is no snapshot of the teacher with `key` under the name `preset`."""
    try:
        sound = (
            paths.preset_name(float(content["preset"])) == preset
            and content["teacher"] == key
            and isinstance(content["step"], int)
            and float(content["accuracy"]) >= 0
            and float(content["alpha"]) >= 0
            and all(SHA256.fullmatch(one) and float(a) >= 0 for one, a in forms(content).items())
            and content.get("of", content["digest"]) in forms(content)
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    return None if sound else f"snapshot {preset} is not one of its snapshots"
