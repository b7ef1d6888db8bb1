"""A Ray cluster's job server, with errors a person can act on and requests that end.

Ray's client waits for ever on a server that accepts and does not answer, and an address in the
environment goes before the one it is given: both are put right here.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import MachineError, UserError
from orchestrator.redaction import redacted

__all__ = ["DEFAULT_ADDRESS", "Job", "JobServer", "checked_address"]

DEFAULT_ADDRESS = "http://127.0.0.1:8265"

_TIMEOUT_S = 10.0
_UPLOAD_S = 120.0
_OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_TOKEN_FILE = Path("~/.ray/auth_token")  # Ray's own default


@dataclass(frozen=True, kw_only=True)
class Job:
    """state: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED, in Ray's words. exit_code: of its
    command, None while there is none (or Ray does not know)."""

    id: str
    state: str
    message: str
    exit_code: int | None

    @property
    def has_ended(self) -> bool:
        return self.state in ("STOPPED", "SUCCEEDED", "FAILED")

    @property
    def exit_status(self) -> int:
        """What its command would have ended with in a terminal."""
        if self.exit_code is not None and self.exit_code >= 0:
            return self.exit_code
        return {"SUCCEEDED": 0, "STOPPED": 130}.get(self.state, 1)


def checked_address(address: str | None) -> str:
    """The job server's URL. Raises MachineError for what is no such address."""
    address = (address or DEFAULT_ADDRESS).rstrip("/")
    if address in ("auto", "local") or address.startswith("ray://"):
        raise MachineError(
            f"{address} is not a job server's address",
            "give --ray-address http://HEAD:8265, where the cluster's dashboard answers",
        )
    if "://" not in address:
        address = f"http://{address}"
    if not address.startswith(("http://", "https://")) or redacted(address) != address:
        raise MachineError(
            f"{redacted(address)} is not a job server's address",
            "write http://HOST:PORT; a token comes from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH",
        )
    return address


class JobServer:
    """The one at `address`. Every method raises MachineError when it does not answer, refuses, or
    knows no such job."""

    def __init__(self, address: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        self.address = address
        with self._errors():
            self._client = _client(address, timeout_s)

    def submit(self, id: str, entrypoint: str, folder: Path, variables: Mapping[str, str]) -> None:
        """Ships `folder` and starts the command in it, with these environment variables."""
        environment = {"working_dir": str(folder), "env_vars": dict(variables)}
        with self._errors():
            self._client.submit_job(
                entrypoint=entrypoint, submission_id=id, runtime_env=environment
            )

    def job(self, id: str) -> Job:
        with self._errors():
            info = self._client.get_job_info(id)
        return Job(
            id=id,
            state=str(getattr(info.status, "value", info.status)),
            message=str(info.message or ""),
            exit_code=getattr(info, "driver_exit_code", None),
        )

    def stop(self, id: str) -> None:
        """Asks the job to end: SIGTERM, and SIGKILL some seconds later. Does not wait."""
        with self._errors():
            self._client.stop_job(id)

    def logs(self, id: str, skip: int = 0) -> Iterator[str]:
        """What the job writes, from character `skip` on, until it ends or the connection does."""
        loop = asyncio.new_event_loop()
        try:
            with self._errors():
                tail = aiter(self._client.tail_job_logs(id))
                while (text := loop.run_until_complete(_next(tail))) is not None:
                    if len(text) > skip:
                        yield text[skip:]
                    skip = max(0, skip - len(text))
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import aiohttp
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise MachineError(
                f"the job server at {self.address} refuses this token, or there is none",
                "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token",
            ) from error
        except (ConnectionError, OSError, TimeoutError, aiohttp.ClientError) as error:
            raise MachineError(
                f"no job server answers at {self.address}: {_first_line(error)}",
                "check --ray-address (http://HEAD:8265) and that the cluster has its dashboard: "
                "ray start --head --include-dashboard true",
            ) from error
        except RuntimeError as error:
            raise MachineError(
                f"the job server at {self.address} refuses: {_first_line(error)}",
                "its Ray must be this one's version, with `ray[default]`; `targetsweep doctor "
                f"--ray-address {self.address}` compares",
            ) from error


async def _next(tail: AsyncIterator[str]) -> str | None:
    return await anext(tail, None)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def use_token() -> None:
    """Ray sends a token only where RAY_AUTH_MODE says so; having one says it too."""
    has_one = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if has_one or _TOKEN_FILE.expanduser().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _client(address: str, timeout_s: float) -> Any:
    use_token()
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise _incomplete() from error

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> Any:
            kwargs.setdefault("timeout", _UPLOAD_S if method == "PUT" else timeout_s)
            return super()._do_request(method, endpoint, **kwargs)

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    with _without(_OVERRIDES):
        try:
            return Client(address)
        except RuntimeError as error:
            if "ray[default]" in str(error):
                raise _incomplete() from error
            raise


def _incomplete() -> UserError:
    return UserError(
        "this machine's Ray cannot talk to job servers", "pip install 'targetsweep[cluster]'"
    )


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
