"""URIs of stores, and the file systems behind them, opened so that a server that went away is an
error within half a minute, not a hang.

pyarrow's own `from_uri` leaves S3 with the AWS SDK's legacy retries: one request to a server that
accepts and never answers took 99 s, one write 290 s (measured, pyarrow 25). Its time-outs are not
options of a URI, so S3 is opened here by hand. Everything else is `from_uri`.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow.fs as pafs

__all__ = ["child_uri", "open_filesystem"]

_ATTEMPTS = 3
"""The SDK gives up on an attempt after 1 s without a connection or 3 s without a byte: a request to
a dead server then takes 2 to 10 s, a write at most 30 s."""

_WORDS = ("region", "scheme", "endpoint_override", "tls_ca_file_path")
_FLAGS = ("allow_bucket_creation", "allow_bucket_deletion", "force_virtual_addressing", "anonymous")


def child_uri(store: str, relative: str) -> str:
    """The path or URI of something in a store; options of a URI (`?endpoint_override=…`) stay at
    its end."""
    place, mark, options = store.partition("?") if "://" in store else (store, "", "")
    return f"{place.rstrip('/')}/{relative}{mark}{options}"


def open_filesystem(uri: str) -> tuple[Any, str]:
    """(pyarrow file system, path in it). Raises ValueError, OSError, pyarrow.ArrowException."""
    if uri.startswith("s3://"):
        return _open_s3(uri)
    filesystem, base = pafs.FileSystem.from_uri(uri)
    return filesystem, str(base)


@lru_cache(maxsize=8)
def _open_s3(uri: str) -> tuple[Any, str]:
    """Shared by all who ask in this process: it keeps connections open."""
    parts = urlsplit(uri)
    if parts.username or parts.password:
        raise ValueError("an access key does not belong into a URI")
    bucket = parts.netloc
    if not bucket:
        raise ValueError("it names no bucket")
    options = _options(parts.query)
    endpoint = options.get("endpoint_override") or _own_endpoint()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if "region" not in options and (region or not endpoint):
        options["region"] = region or pafs.resolve_s3_region(bucket)
    filesystem = pafs.S3FileSystem(
        **options,
        # A small file is one PUT instead of three requests.
        allow_delayed_open=True,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    )
    return filesystem, f"{bucket}{unquote(parts.path)}".rstrip("/")


def _options(query: str) -> dict[str, Any]:
    """Those of the URI, as S3FileSystem takes them."""
    options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in _WORDS:
            options[name] = value
        elif name in _FLAGS and value in ("true", "false"):
            options[name] = value == "true"
        else:
            raise ValueError(f"unknown option {name!r} (known: {', '.join(_WORDS + _FLAGS)})")
    return options


def _own_endpoint() -> str | None:
    """An endpoint that the SDK takes from the environment; it needs no region of Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
