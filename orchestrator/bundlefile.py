"""A bundle as bytes: a few files and `bundle.json`, which has the SHA-256 of every one of them.

A bundle is a folder (or any place that a store may be), good to commit, or one `.zip` file, good to
carry. Nothing of it is ever unpacked: its members are read by the names below and checked before
anybody looks into them, so a hostile archive has no path to choose.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import StoreError, UserError
from orchestrator.store import Store
from trainers.spec import SEMANTICS

__all__ = ["FORMAT", "MANIFEST", "Packed", "bundle_error", "parse_json", "read_pack", "write_pack"]

FORMAT = 1
"""Raised when an older version could not read a bundle."""

MANIFEST = "bundle.json"
_MEMBER = re.compile(r"[a-z][a-z0-9-]{0,60}\.(?:jsonl|parquet)")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip's own zero: the time of packing is no content


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A bundle whose every byte is what its manifest says. place: as the user named it. digest:
    SHA-256 of bundle.json, and so of everything."""

    place: str
    manifest: Mapping[str, Any]
    files: Mapping[str, bytes]
    digest: str


def bundle_error(place: str, problem: str) -> UserError:
    """A bundle that cannot be trusted."""
    return UserError(
        f"{place}: {problem}", "nothing was imported: copy the bundle again, or export it anew"
    )


def parse_json(data: bytes | str) -> Any:
    """Strict JSON: NaN and infinity, which Python would take, are a ValueError."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    def finite(text: str) -> float:
        if not math.isfinite(number := float(text)):
            refuse(text)
        return number

    return json.loads(data, parse_constant=refuse, parse_float=finite)


# -- writing ------------------------------------------------------------------------------------


def write_pack(out: str, files: Mapping[str, bytes], about: Mapping[str, Any]) -> str:
    """Writes a bundle and returns its digest. An older bundle at `out` is replaced.

    Raises UserError where something else is: a folder with other files in it, another file.
    """
    manifest = dict(about) | {
        "format": FORMAT,
        "semantics": SEMANTICS,
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in sorted(files.items())
        },
    }
    text = json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False) + "\n"
    members = {**dict(sorted(files.items())), MANIFEST: text.encode()}
    if out.endswith(".zip"):
        _write_zip(Path(out).expanduser(), members)
    else:
        _write_folder(out, members)
    return hashlib.sha256(text.encode()).hexdigest()


def _write_folder(out: str, members: Mapping[str, bytes]) -> None:
    """The manifest goes first and comes last: a folder without one is no bundle."""
    place = Store(out)
    there = _local_names(place) if place.is_local else []  # a bucket has no folder to look into
    if there and MANIFEST not in there:
        raise UserError(f"{out} holds other files", "give --out a new folder, or a bundle's")
    if there:
        place.delete(MANIFEST)
    for name in there:
        if _MEMBER.fullmatch(name) and name not in members:
            place.delete(name)
    for name, data in members.items():
        place.write_bytes(name, data)


def _local_names(place: Store) -> list[str]:
    if place.root.exists() and not place.root.is_dir():
        raise UserError(f"{place.root} is a file", "give --out a folder, or a name ending in .zip")
    return [path.name for path in place.root.iterdir()] if place.root.is_dir() else []


def _write_zip(out: Path, members: Mapping[str, bytes]) -> None:
    if out.exists() and not zipfile.is_zipfile(out):
        raise UserError(f"{out} is there and is no bundle", "give --out another name")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
    Store(out.absolute().parent).write_bytes(out.name, buffer.getvalue())


# -- reading ------------------------------------------------------------------------------------


def read_pack(place: str) -> Packed:
    """A bundle, verified. UserError names the file that is damaged, missing or foreign."""
    read = _zip_reader(place) if _is_zip(place) else _folder_reader(place)
    text = read(MANIFEST)
    manifest = _manifest(place, text)
    files = {}
    for name, stated in manifest["files"].items():
        if not _MEMBER.fullmatch(name):
            raise bundle_error(place, f"{MANIFEST} names {name!r}, which no bundle has")
        data = read(name)
        if len(data) != stated["bytes"] or hashlib.sha256(data).hexdigest() != stated["sha256"]:
            raise bundle_error(place, f"{name} is damaged: its SHA-256 is not that of {MANIFEST}")
        files[name] = data
    digest = hashlib.sha256(text).hexdigest()
    return Packed(place=place, manifest=manifest, files=files, digest=digest)


def _manifest(place: str, text: bytes) -> dict[str, Any]:
    try:
        manifest = parse_json(text)
        stated = [manifest["format"], manifest["semantics"]]
        for entry in manifest["files"].values():
            stated += [entry["bytes"], entry["sha256"]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise bundle_error(place, f"{MANIFEST} is damaged ({error!r})") from error
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{place}: a bundle of format {manifest['format']}; this version reads {FORMAT}",
            "use the version of targetsweep that wrote it",
        )
    if manifest["semantics"] != SEMANTICS:
        raise UserError(
            f"{place}: results of semantics {manifest['semantics']}; this version's are "
            f"{SEMANTICS}: equal settings train other weights there",
            "use the version of targetsweep that wrote it, and another store",
        )
    return dict(manifest)


def _is_zip(place: str) -> bool:
    return place.endswith(".zip") or ("://" not in place and Path(place).expanduser().is_file())


def _folder_reader(place: str) -> Callable[[str], bytes]:
    store = Store(place)

    def read(name: str) -> bytes:
        try:
            return store.read_bytes(name)
        except StoreError as error:
            if name == MANIFEST:
                remedy = "give the folder or .zip file that `targetsweep store export` wrote"
                raise UserError(f"{place} is no bundle: it has no {MANIFEST}", remedy) from error
            raise bundle_error(place, f"{name} cannot be read ({error.problem})") from error

    return read


def _zip_reader(place: str) -> Callable[[str], bytes]:
    try:
        archive = zipfile.ZipFile(Path(place).expanduser())
    except (OSError, zipfile.BadZipFile) as error:
        raise bundle_error(place, f"it is no zip file ({error})") from error

    def read(name: str) -> bytes:
        try:
            return archive.read(name)
        # Damaged streams raise whatever their decoder does.
        except Exception as error:
            raise bundle_error(place, f"{name} cannot be read ({error})") from error

    return read
