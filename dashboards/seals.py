"""Seals: checksums that files carry within themselves, so that damage is noticed by whoever reads.

A JSON object gets a key `sha256`: the SHA-256 of its compact canonical form (sorted keys) without
that key. It covers the values and not their spelling: what is read is what was written.

A Parquet file gets a mark and the SHA-256 of all its other bytes between the last row group and the
footer. Readers find the footer from the end of the file, and row groups by absolute offsets, so
every one of them skips the seal.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

__all__ = [
    "NO_SEAL",
    "NoSealError",
    "SealError",
    "check_parquet",
    "seal_json",
    "seal_parquet",
    "unseal_json",
]

NO_SEAL = "it has no seal"
"""What `NoSealError` says."""

_KEY = "sha256"
_MARK = b"targetsweep-seal-1\n"
_SEAL_BYTES = len(_MARK) + 32
_MAGIC = b"PAR1"
_TAIL_BYTES = 8
"""Of a Parquet file: the footer's length, then the magic."""


class SealError(ValueError):
    """A file is not what was sealed."""


class NoSealError(SealError):
    """It carries no seal at all: it was written before there were any, or is damaged just there."""


def seal_json(obj: dict[str, Any]) -> dict[str, Any]:
    """A copy with the seal, as its last key. Raises ValueError or TypeError for what JSON cannot
    say (NaN among it)."""
    # Through JSON and back: keys that are no strings would be sorted otherwise once they are.
    content = {key: value for key, value in _plain(obj).items() if key != _KEY}
    return content | {_KEY: _json_digest(content)}


def unseal_json(obj: dict[str, Any]) -> dict[str, Any]:
    """The object without its seal. Raises SealError when it has none or when it does not fit."""
    content = dict(obj)
    try:
        sealed = content.pop(_KEY)
    except KeyError:
        raise NoSealError(NO_SEAL) from None
    try:
        found = _json_digest(content)
    except ValueError as error:  # a NaN or an infinity, which nobody ever wrote
        raise SealError(f"it holds what was never written: {error}") from error
    if sealed != found:
        raise SealError("its checksum does not fit")
    return content


def _plain(obj: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(obj, allow_nan=False))
    return plain


def _json_digest(obj: dict[str, Any]) -> str:
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def seal_parquet(data: bytes) -> bytes:
    """The file with its seal; one that is sealed already as it is. Raises SealError for what is no
    Parquet file, and for a seal that does not fit."""
    try:
        check_parquet(data)
    except NoSealError:
        at = _footer_start(data)
        digest = hashlib.sha256(data).digest()
        return b"".join((data[:at], _MARK, digest, data[at:]))
    return data


def check_parquet(data: bytes) -> None:
    """Raises SealError unless every byte is the one that was sealed."""
    end = _footer_start(data)
    start = end - _SEAL_BYTES
    if start < len(_MAGIC) or data[start : start + len(_MARK)] != _MARK:
        raise NoSealError(NO_SEAL)
    view = memoryview(data)
    digest = hashlib.sha256(view[:start])
    digest.update(view[end:])
    if digest.digest() != data[start + len(_MARK) : end]:
        raise SealError("its checksum does not fit")


def _footer_start(data: bytes) -> int:
    """Where the footer begins, as its length at the end says. Raises SealError."""
    if len(data) < len(_MAGIC) + _TAIL_BYTES or not (
        data.startswith(_MAGIC) and data.endswith(_MAGIC)
    ):
        raise SealError("it is cut off or no Parquet file")
    length = int.from_bytes(data[-_TAIL_BYTES : -len(_MAGIC)], "little")
    start = len(data) - _TAIL_BYTES - length
    if start < len(_MAGIC):
        raise SealError("its footer does not fit")
    return start
