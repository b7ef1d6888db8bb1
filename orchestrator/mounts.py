"""How old a listing of the store may be: what the mount it lies on says, as Linux tells of it."""

from __future__ import annotations

import re
from pathlib import PurePath

__all__ = ["listing_age_s"]

_DEFAULTS_S = (30, 60)
"""acdirmin and acdirmax of nfs(5)."""

_ESCAPED = re.compile(r"\\([0-7]{3})")


def listing_age_s(mountinfo: str, path: PurePath) -> tuple[int, int] | None:
    """(acdirmin, acdirmax): for how many seconds an NFS client goes by what it knows of a folder,
    at least and at most; after each change of the folder it begins with the least again. None where
    the path lies on no NFS. mountinfo: as in /proc/self/mountinfo (proc_pid_mountinfo(5)). path:
    absolute, without links."""
    found, deepest = None, -1
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if not separator or len(fields) < 6 or len(kind) < 3:
            continue
        point = PurePath(_ESCAPED.sub(lambda code: chr(int(code[1], 8)), fields[4]))
        # Of two mounts at one point the later one lies above.
        if path.is_relative_to(point) and len(point.parts) >= deepest:
            found, deepest = (kind[0], f"{fields[5]},{kind[2]}"), len(point.parts)
    if found is None or found[0] not in ("nfs", "nfs4"):
        return None
    return _ages(found[1].split(","))


def _ages(options: list[str]) -> tuple[int, int]:
    given = dict(option.partition("=")[::2] for option in options)
    if "noac" in given:
        return 0, 0
    least, most = (
        int(given.get(name) or given.get("actimeo") or default)
        for name, default in zip(("acdirmin", "acdirmax"), _DEFAULTS_S, strict=True)
    )
    return least, most
