"""A bundle as bytes: a few files and `bundle.json`, which has the SHA-256 of every one of them.

A bundle is a folder (or any place that a store may be), good to commit, or one `.zip` file, good to
carry. Nothing of it is ever unpacked: its members are read by the names below and checked before
anybody looks into them, so a hostile archive has no path to choose. Weights and checkpoints are
read one at a time, whatever their number.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.errors import StoreError, UserError
from orchestrator.store import Store, store_errors
from trainers.spec import SEMANTICS

__all__ = [
    "MANIFEST",
    "Member",
    "Packed",
    "bundle_error",
    "check_zip",
    "is_free",
    "is_zip",
    "parse_json",
    "read_pack",
    "write_pack",
    "zip_place",
]

_PLAIN, _WITH_WEIGHTS = 1, 2
"""Formats. A bundle without weights or checkpoints is one that older versions read."""

Member = bytes | Callable[[], bytes]
"""A file's content, or what reads it when its turn comes."""

MANIFEST = "bundle.json"
_MEMBER = re.compile(r"[a-z][a-z0-9-]{0,60}\.(?:jsonl|parquet|safetensors|ckpt)")
_LARGE = (".safetensors", ".ckpt")
_STAGED = ".targetsweep-bundle"
"""Folder in a bundle's that holds the next one while it is written."""
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip's own zero: the time of packing is no content


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A bundle whose every byte is what its manifest says. place: as the user named it. files: its
    records; weights and checkpoints are named in `large` and read by `read`, which checks them
    again. digest: SHA-256 of bundle.json, and so of everything."""

    place: str
    manifest: Mapping[str, Any]
    files: Mapping[str, bytes]
    digest: str
    large: frozenset[str] = frozenset()
    read: Callable[[str], bytes] = field(default=lambda name: b"", repr=False, compare=False)


def bundle_error(place: str, problem: str) -> UserError:
    """A bundle that cannot be trusted."""
    return UserError(
        f"{place}: {problem}", "nothing was taken from it: copy the bundle again, or export it anew"
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


def write_pack(out: str, files: Mapping[str, Member], about: Mapping[str, Any]) -> str:
    """Writes a bundle and returns its digest. An older bundle at `out` is replaced once the new one
    is whole.

    Raises UserError where something else is: a folder with other files in it, another file.
    """
    is_plain = not any(name.endswith(_LARGE) for name in files)
    stated = dict(about) | {
        "format": _PLAIN if is_plain else _WITH_WEIGHTS,
        "semantics": SEMANTICS,
    }
    members = _Members(files, stated)
    if is_zip(out):
        _write_zip(out, members)
    else:
        _write_folder(out, members)
    return members.digest


class _Members:
    """The files of a bundle, one at a time, and at last the manifest, which has their checksums."""

    def __init__(self, files: Mapping[str, Member], about: Mapping[str, Any]) -> None:
        self.names = frozenset(files)
        self.digest = ""
        self._files = files
        self._about = about

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        stated = {}
        for name, content in sorted(self._files.items()):
            data = content if isinstance(content, bytes) else content()
            stated[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            yield name, data
        manifest = {**self._about, "files": stated}
        text = json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False) + "\n"
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        yield MANIFEST, text.encode()


def _write_folder(out: str, members: _Members) -> None:
    """In a local folder the new bundle is written beside the old one's files, and moved over them
    when it is whole, its manifest last: whatever ends it before leaves the old one. In a bucket
    files are replaced one by one."""
    place = Store(out)
    if not place.is_local:
        for name, data in members:
            place.write_bytes(name, data)
        return
    if not is_free(place.root):
        raise UserError(f"{out} holds other files", "give --out a new folder, or a bundle's")
    place.delete_tree(_STAGED)
    for name, data in members:
        place.write_bytes(f"{_STAGED}/{name}", data)
    before = _stated(place.root)
    place.delete(MANIFEST)  # a folder without one is no bundle
    for name in before - members.names:
        place.delete(name)
    for name in (*sorted(members.names), MANIFEST):
        place.move(f"{_STAGED}/{name}", name)
    place.delete_tree(_STAGED)


def is_free(folder: Path) -> bool:
    """Whether a bundle may be written to a local folder: there is none, nothing in it, a bundle, or
    what an interrupted export left. Raises UserError for a file, StoreError where nobody may
    look."""
    with store_errors("read", str(folder)):
        if not folder.exists():
            return True
        if not folder.is_dir():
            raise UserError(f"{folder} is a file", "give a folder, or a name ending in .zip")
        there = {path.name for path in folder.iterdir()}
    return not there or _STAGED in there or bool(_stated(folder))


def _stated(folder: Path | zipfile.Path) -> set[str]:
    """Files that the folder's manifest names; none where that is not one of ours."""
    try:
        manifest = parse_json((folder / MANIFEST).read_bytes())
        names = {*manifest["files"]} if {"format", "semantics"} <= manifest.keys() else set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
    return {name for name in names if _MEMBER.fullmatch(name)}


def is_zip(place: str) -> bool:
    """Whether the place names a .zip file. Options of a URI (`?region=…`) come after the name."""
    return (place.partition("?")[0] if "://" in place else place).endswith(".zip")


def zip_place(place: str) -> tuple[Store, str]:
    """Folder or bucket of a .zip file, and its name there. Raises UserError for a URI of a bucket
    alone."""
    if "://" not in place:
        path = Path(place).expanduser().absolute()
        return Store(path.parent), path.name
    uri, mark, options = place.partition("?")
    parent, _, name = uri.rpartition("/")
    if "://" not in parent:
        raise UserError(f"{place} names no folder or bucket", f"give one: {parent}/bucket/{name}")
    return Store(f"{parent}{mark}{options}"), name


def check_zip(place: str) -> None:
    """Raises UserError where a file is that is no bundle."""
    store, name = zip_place(place)
    if store.exists(name) and not _is_bundle(store.local(name)):
        raise UserError(f"{place} is there and is no bundle", "give another name")


def _is_bundle(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return bool(_stated(zipfile.Path(archive)))
    except (OSError, zipfile.BadZipFile):
        return False


def _write_zip(out: str, members: _Members) -> None:
    check_zip(out)

    def fill(stream: BinaryIO) -> None:
        with zipfile.ZipFile(stream, "w") as archive:
            for name, data in members:
                info = zipfile.ZipInfo(name, _EPOCH)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = 0o644 << 16
                archive.writestr(info, data)

    store, name = zip_place(out)
    store.write_stream(name, fill)


# -- reading ------------------------------------------------------------------------------------


def read_pack(place: str) -> Packed:
    """A bundle, verified. UserError names the file that is damaged, missing or foreign."""
    read = _zip_reader(place) if _is_file(place) else _folder_reader(place)
    text = read(MANIFEST)
    manifest = _manifest(place, text)
    stated = manifest["files"]

    def checked(name: str) -> bytes:
        data = read(name)
        there = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        if there != {key: stated[name][key] for key in there}:
            raise bundle_error(place, f"{name} is damaged: its SHA-256 is not that of {MANIFEST}")
        return data

    files = {}
    for name in stated:
        if not _MEMBER.fullmatch(name):
            raise bundle_error(place, f"{MANIFEST} names {name!r}, which no bundle has")
        data = checked(name)
        if not name.endswith(_LARGE):
            files[name] = data
    return Packed(
        place=place,
        manifest=manifest,
        files=files,
        digest=hashlib.sha256(text).hexdigest(),
        large=frozenset(stated) - frozenset(files),
        read=checked,
    )


def _manifest(place: str, text: bytes) -> dict[str, Any]:
    try:
        manifest = parse_json(text)
        stated = [manifest["format"], manifest["semantics"]]
        for entry in manifest["files"].values():
            stated += [entry["bytes"], entry["sha256"]]
        for machine in manifest.get("hardware", []):
            if not all(isinstance(machine[n], int | float) for n in ("runs", "wall_time_s")):
                raise ValueError("hardware: runs and wall_time_s are numbers")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise bundle_error(place, f"{MANIFEST} is damaged ({error!r})") from error
    if manifest["format"] not in (_PLAIN, _WITH_WEIGHTS):
        raise UserError(
            f"{place}: a bundle of format {manifest['format']}; this version reads {_PLAIN} and "
            f"{_WITH_WEIGHTS}",
            "use the version of targetsweep that wrote it",
        )
    if manifest["semantics"] != SEMANTICS:
        raise UserError(
            f"{place}: results of semantics {manifest['semantics']}; this version's are "
            f"{SEMANTICS}: equal settings train other weights there",
            "use the version of targetsweep that wrote it, and another store",
        )
    return dict(manifest)


def _is_file(place: str) -> bool:
    return is_zip(place) or ("://" not in place and Path(place).expanduser().is_file())


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
        store, name = zip_place(place)
        archive = zipfile.ZipFile(store.local(name))
    except (OSError, StoreError, zipfile.BadZipFile) as error:
        raise bundle_error(place, f"it is no zip file ({error})") from error

    def read(name: str) -> bytes:
        try:
            return archive.read(name)
        # Damaged streams raise whatever their decoder does.
        except Exception as error:
            raise bundle_error(place, f"{name} cannot be read ({error})") from error

    return read
