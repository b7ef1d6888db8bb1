"""Keeps secrets out of everything that is written or shown.

Secrets reach a driver in URIs (`http://user:password@host`, `s3://bucket?access_key=…`) and in the
environment (MLFLOW_TRACKING_PASSWORD, RAY_AUTH_TOKEN, AWS_SECRET_ACCESS_KEY, …). They leave it by
few doors, and each of them calls this module: `Store.write_json` (every JSON of a store), the
screen (`redacting_screen`), what is sent to MLflow (`tracking_client`), reports of failures.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TextIO
from urllib.parse import unquote

__all__ = [
    "has_secret",
    "is_secret_name",
    "redact",
    "redact_all",
    "redacted",
    "redacting_screen",
]

_MARK = "***"

_NAME = r"(?:passw(?:or)?d|secret|token|access_?key|api_?key|private_?key|credentials?|signature)"

_USER = re.compile(
    # user:password@, also where the password holds a slash; a port is no password.
    r"""(?P<scheme>\b[a-z][a-z0-9+.-]*://)"""
    r"""(?:[^/?#\s'"<>]*@|[^/?#\s'"<>@:]+:(?!\d+(?:[/?#\s'"<>]|$))[^\s'"<>]*@)""",
    re.IGNORECASE,
)
_OPTION = re.compile(rf"""([?&;][^=&;\s'"<>]*{_NAME}[^=&;\s'"<>]*=)[^&;\s'"<>]*""", re.IGNORECASE)
_VARIABLE = re.compile(_NAME, re.IGNORECASE)
_NO_SECRET = re.compile(r"(?:_(?:PATH|FILE|DIR|MODE|EXPIRATION|URI|URL))$", re.IGNORECASE)
"""Variables that say where a secret lies."""

_SHORTEST = 8
"""A shorter value, or one of letters or digits alone, may stand anywhere: replacing it would change
names and numbers. In a URI it is removed all the same."""

_PLAIN = re.compile(r"[a-z]+|[A-Z]+|[0-9]+")
_IN_URI = re.compile(r"://[^/?#\s:@]*:([^\s]+)@")


def redacted(uri: str) -> str:
    """`uri` without user, password and options that are secrets."""
    return _OPTION.sub(rf"\1{_MARK}", _USER.sub(r"\g<scheme>", uri))


def has_secret(uri: str) -> bool:
    return redacted(uri) != uri


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds a secret."""
    return bool(_VARIABLE.search(name)) and not _NO_SECRET.search(name)


def redact(text: str) -> str:
    """Any text: URIs in it as `redacted`, and the values of secret environment variables gone."""
    return _clean(text, _secrets())


def redact_all(value: Any) -> Any:
    """A JSON value with every string in it redacted, keys too."""
    return _clean_all(value, _secrets())


def _clean(text: str, secrets: re.Pattern[str] | None) -> str:
    if secrets is not None:
        text = secrets.sub(_MARK, text)
    return redacted(text) if "://" in text else text


def _clean_all(value: Any, secrets: re.Pattern[str] | None) -> Any:
    if isinstance(value, str):
        return _clean(value, secrets)
    if isinstance(value, Mapping):
        return {_clean_all(k, secrets): _clean_all(v, secrets) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean_all(inner, secrets) for inner in value]
    return value


def redacting_screen() -> None:
    """From now on nothing this process prints, logs or ends with shows a secret. What a terminal
    or a file in another encoding than UTF-8 cannot take (a ±, an arrow) becomes a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.stdout = _Redacting(sys.stdout)
    sys.stderr = _Redacting(sys.stderr)


class _Redacting:
    """A text stream with a look at what goes through. A secret that is written in two pieces would
    pass; lines of ours and of logging come whole."""

    def __init__(self, stream: TextIO | Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _secrets() -> re.Pattern[str] | None:
    """Values of this process's environment that nobody may see, the longest first."""
    found = set()
    for name, value in os.environ.items():
        if is_secret_name(name) and not value.startswith("/"):
            found.add(value)
        if "://" in value and (match := _IN_URI.search(value)):
            found |= {match[1], unquote(match[1])}
    return _pattern(
        frozenset(one for one in found if len(one) >= _SHORTEST and not _PLAIN.fullmatch(one))
    )


@lru_cache(maxsize=4)
def _pattern(secrets: frozenset[str]) -> re.Pattern[str] | None:
    longest_first = sorted(secrets, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if secrets else None
