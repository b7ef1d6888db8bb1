"""Joins a Ray cluster, or starts one on this machine that nobody else can reach or use."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from orchestrator.errors import MachineError
from orchestrator.raylean import without_helpers

__all__ = ["check_address", "connect"]

_DRIVER = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the store keeps the metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's gives a trial no moment to save
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",  # Tune's own resume is never used
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a question that comes too late must not start another Ray
    "RAY_COLOR_PREFIX": "0",  # its remarks on dead workers go to logs too
    "RAY_USAGE_STATS_ENABLED": "0",
}

_TRIALS = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""What trials read at their start. Those of a Ray of our own inherit it; to another cluster's it
is sent."""

_PATIENCE_S = "600"
"""Ray ends a process on the spot that has not heard of the cluster's head for a minute; the driver
notices before that, and then needs time to write reports and its last words."""

_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's name for "this machine may be part of a cluster". With 0 a node's address is 127.0.0.1, and
then, and only then, everything of it listens there alone (seen with Ray 2.60)."""

_KNOCK_S = 10.0
_SHUTDOWN_S = 10.0


def check_address(address: str | None) -> None:
    """Raises MachineError for an address that a driver cannot use."""
    if address is not None and address.startswith("ray://"):
        raise MachineError(
            f"{address} would put the searcher into another process",
            "from outside of a cluster, `targetsweep submit` hands the sweep over to it; on a "
            "machine of the cluster give --ray-address auto or host:port",
        )


@contextmanager
def connect(address: str | None, slots: int) -> Iterator[None]:
    """The cluster at the address, until the block ends; without an address, a Ray of this machine
    with so many CPU slots, which ends with the block.

    Raises MachineError where there is none or where it refuses us.
    """
    check_address(address)
    _set_environment(address)
    import ray

    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        arguments |= {"num_cpus": slots, "include_dashboard": False}
    else:
        arguments |= {"runtime_env": {"env_vars": _for_trials(os.environ)}}
    terminate, hook = signal.getsignal(signal.SIGTERM), sys.excepthook
    lean: AbstractContextManager[None] = nullcontext() if address else without_helpers()
    try:
        if address is not None:
            _knock(address)
        # "local": without an address Ray would join any cluster that it finds on this machine.
        with lean:
            ray.init(address=address or "local", **arguments)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        ray.shutdown()
        problem = str(error).strip().partition("\n")[0]
        raise MachineError(
            f"no Ray cluster at {address or 'this machine'}: {problem}", _remedy(error)
        ) from error
    signal.signal(signal.SIGTERM, terminate)  # Ray's own ends the process without a word
    sys.excepthook = hook  # Ray's own tells the head first, and waits for ever when that is gone
    try:
        yield
    finally:
        _shutdown()


def _knock(address: str) -> None:
    """Whether somebody listens there and takes our token: Ray itself would ask again and again.
    Raises OSError or AuthenticationError."""
    from ray._private.authentication import authentication_token_setup
    from ray._private.services import canonicalize_bootstrap_address
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    logging.getLogger(authentication_token_setup.__name__).setLevel(logging.ERROR)
    authentication_token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    found = canonicalize_bootstrap_address(address) or ""
    host, _, port = found.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), _KNOCK_S).close()
    GcsClient(address=found)


def _remedy(error: Exception) -> str:
    if "uthenti" in f"{type(error).__name__} {error}":
        return "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"
    return "check the address (`targetsweep doctor --ray-address …`)"


def _set_environment(address: str | None) -> None:
    """Before Ray is loaded, which reads most of it then."""
    for name, value in {**_DRIVER, **_TRIALS}.items():
        os.environ.setdefault(name, value)
    os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = _PATIENCE_S
    if address is None:
        os.environ[_LOOPBACK] = "0"
        if sys.platform == "linux":  # else gloo listens where the host's name points
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    _set_token(is_ours=address is None)
    if "ray" in sys.modules:  # it read the environment already
        _tell_ray(is_ours=address is None)


def _set_token(*, is_ours: bool) -> None:
    """Token authentication, for whatever this process starts or joins. A person's own settings
    stand. The token of a Ray of ours lives in the environment alone, which its processes inherit:
    on no command line, in no file."""
    if "RAY_AUTH_MODE" in os.environ and os.environ["RAY_AUTH_MODE"].lower() != "token":
        return
    if not any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        if not is_ours:
            return  # Ray looks for ~/.ray/auth_token itself
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ["RAY_AUTH_MODE"] = "token"


def _tell_ray(*, is_ours: bool) -> None:
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    if is_ours:
        ray_constants.ENABLE_RAY_CLUSTER = False
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _for_trials(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that trials on another cluster's machines are to have. A Ray Job that has set one
    already keeps its own: Ray refuses to be told twice."""
    import json

    job = json.loads(environment.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    given = ((job.get("runtime_env") or {}).get("env_vars") or {}).keys()
    return {name: environment[name] for name in _TRIALS if name not in given}


def _shutdown() -> None:
    """Without a head Ray may wait for it long: then the rest is left to the end of the process."""
    import ray

    thread = threading.Thread(target=ray.shutdown, name="ray-shutdown", daemon=True)
    with _nothing_is_freed():
        thread.start()
        thread.join(_SHUTDOWN_S)
    if thread.is_alive():
        atexit.unregister(ray.shutdown)


@contextmanager
def _nothing_is_freed() -> Iterator[None]:
    """Tune leaves references to Ray's objects in cycles. Ray hears of each that is freed, and ends
    the process, status 1, if that is while it shuts down (seen with Ray 2.60): whichever thread
    the garbage collector came up in."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
