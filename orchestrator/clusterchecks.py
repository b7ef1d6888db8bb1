"""What doctor asks a Ray cluster, at its head (host:6379) or at its job server (http://host:8265):
whether it answers, whether strangers may use it, and whether it runs the Ray and Python of here.

Every question ends within a few seconds. Ray itself is imported only for a head that answers.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Finding", "ask_head", "ask_job_server"]

_TIMEOUT_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    is_good: bool
    detail: str
    remedy: str = ""


def ask_job_server(address: str, own_ray: str) -> Iterator[Finding]:
    """own_ray: the version of Ray here."""
    status, _ = _get(f"{address}/api/version", None)
    if status not in (200, 401, 403):
        yield Finding(
            is_good=False,
            detail=f"{address} is no job server of Ray (HTTP {status})",
            remedy="give the address of the cluster's dashboard, http://HEAD:8265",
        )
        return
    yield _about_tokens(is_open=status == 200)
    status, content = _get(f"{address}/api/v0/cluster_metadata", _token())
    if status in (401, 403):
        yield _no_token()
    else:
        found = content.get("data", content)
        yield from _versions({_snake(name): value for name, value in found.items()}, own_ray)


def ask_head(address: str, own_ray: str) -> Iterator[Finding]:
    """Asks the way that every driver asks first; a stranger's question is sent without a token."""
    is_open = _strangers_may_ask(address)
    if is_open is None:
        remedy = "give the address of the cluster's head, HEAD:6379"
        yield Finding(is_good=False, detail=f"{address} is no head of Ray", remedy=remedy)
        return
    yield _about_tokens(is_open=is_open)
    if not is_open and _token() is None:
        yield _no_token()
        return
    found, problem = _metadata(address)
    if problem:
        yield Finding(is_good=False, detail=problem, remedy="check the address and the token")
    else:
        yield from _versions(found, own_ray)


def _about_tokens(*, is_open: bool) -> Finding:
    if is_open:
        return Finding(
            is_good=False,
            detail="takes commands from everybody who reaches it",
            remedy="start the cluster with RAY_AUTH_MODE=token and a secret RAY_AUTH_TOKEN",
        )
    return Finding(is_good=True, detail="token authentication is on")


def _no_token() -> Finding:
    return Finding(
        is_good=False,
        detail="refuses this machine's token, or there is none",
        remedy="set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token",
    )


def _versions(found: Mapping[str, Any], own_ray: str) -> Iterator[Finding]:
    """Ray must be the same, Python in its first two numbers: jobs are pickled for it."""
    ray, python = str(found.get("ray_version", "?")), str(found.get("python_version", "?"))
    own_python = platform.python_version()
    detail = f"the cluster runs Ray {ray}, Python {python}; here {own_ray}, {own_python}"
    same_python = python.split(".")[:2] == own_python.split(".")[:2]
    if ray == own_ray and same_python:
        yield Finding(is_good=True, detail=detail)
    else:
        yield Finding(is_good=False, detail=detail, remedy="install the same versions here")


def _token() -> str | None:
    """As Ray finds it: the variable, a file that a variable names, the file in the home."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"]
    named = os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    try:
        return Path(named).expanduser().read_text().strip() or None
    except OSError:
        return None


def _get(url: str, token: str | None) -> tuple[int, dict[str, Any]]:
    """HTTP status (0: no answer) and the JSON object that came."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:
            found = json.loads(reply.read())
            return reply.status, found if isinstance(found, dict) else {}
    except urllib.error.HTTPError as error:
        return error.code, {}
    except (OSError, ValueError):
        return 0, {}


def _snake(name: str) -> str:
    return re.sub("[A-Z]", lambda match: "_" + match[0].lower(), name)


def _strangers_may_ask(address: str) -> bool | None:
    """None: nothing there speaks as a head does."""
    grpc: Any = importlib.import_module("grpc")
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            ask(b"", timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return None
            return bool(error.code() is not grpc.StatusCode.UNAUTHENTICATED)
    return True


def _metadata(address: str) -> tuple[dict[str, Any], str]:
    """What the head says of itself, and why it does not."""
    from orchestrator.jobserver import use_token

    use_token()
    raylet: Any = importlib.import_module("ray._raylet")
    try:
        value = raylet.GcsClient(address=address).internal_kv_get(
            b"CLUSTER_METADATA", b"cluster", timeout=_TIMEOUT_S
        )
    except Exception as error:  # Ray's own kinds, which change
        return {}, f"{address}: {(str(error).strip().splitlines() or ['?'])[0][:200]}"
    return json.loads(value or b"{}"), ""
