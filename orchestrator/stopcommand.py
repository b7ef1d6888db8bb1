"""`targetsweep stop`: needs nothing but the store, wherever the driver is."""

from __future__ import annotations

import shlex
import time

from rich.console import Console

from orchestrator import paths
from orchestrator.errors import TargetsweepError, UserError
from orchestrator.invocation import command
from orchestrator.jobrecord import JobRecord, read_job
from orchestrator.jobserver import JobServer, checked_address
from orchestrator.lease import HEARTBEAT_S, Holder, holder
from orchestrator.stopping import ask_to_stop
from orchestrator.store import Store, refuse_absent

__all__ = ["stop_driver"]

_LOOK_S = 0.5
_SAY_S = 15.0
_SILENT_S = 4 * HEARTBEAT_S
"""A holder that this machine cannot see and that renews nothing for so long is gone."""


def stop_driver(
    console: Console,
    store: Store,
    *,
    wait: bool,
    timeout_s: float | None,
    now: bool,
    address: str | None,
) -> None:
    """Asks who drives the store to stop; with `now` also the Ray job to end.

    Raises UserError where there is no store or its holder cannot be asked, TargetsweepError when it
    still drives after `timeout_s`, MachineError for a job server that does not answer.
    """
    refuse_absent(store)
    found, job = holder(store), read_job(store)
    if found is None:
        _say_nobody(console, store, None if now else job)
    elif not _can_be_asked(found):
        raise UserError(f"{found} does not stop on demand", "end it there with Ctrl-C")
    else:
        ask_to_stop(store, found.id)
        console.print(f"asked to stop: {found}", soft_wrap=True, highlight=False, markup=False)
    if now:
        _end_job(console, store, job, address)
    if found is not None and wait:
        _wait(console, store, found, timeout_s)
        store.delete(paths.stop_flag(found.id))
        again = job.command if job is not None else found.command
        console.print(f"stopped; nothing is lost. To go on:\n  {again}", soft_wrap=True)


def _say_nobody(console: Console, store: Store, job: JobRecord | None) -> None:
    text = f"nobody drives {store.uri}"
    if job is not None:
        text += f"; if job {job.id} still waits for its turn, --now ends it"
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _can_be_asked(found: Holder) -> bool:
    """Only a driver looks at the flag; `sync` and `data prepare` hold the store too."""
    try:
        words = shlex.split(found.command)
    except ValueError:  # an older version quoted nothing
        words = found.command.split()
    return len(words) < 2 or words[1] in ("run", "resume")


def _end_job(console: Console, store: Store, job: JobRecord | None, address: str | None) -> None:
    if job is None:
        raise UserError(
            f"{store.uri} is driven by no Ray job", "press Ctrl-C twice where it was started"
        )
    server = JobServer(checked_address(address or job.address))
    if not server.job(job.id).has_ended:
        server.stop(job.id)
        console.print(f"asked Ray to end job {job.id}", soft_wrap=True, highlight=False)


def _wait(console: Console, store: Store, asked: Holder, timeout_s: float | None) -> None:
    """Until the lease is somebody else's, nobody's, or of a machine that no longer answers."""
    began = heard = said = time.monotonic()
    last = asked
    while True:
        found = holder(store)
        if found is None or found.id != asked.id:
            return
        instant = time.monotonic()
        if found != last:
            last, heard = found, instant
        if instant - heard > _SILENT_S and found.is_gone() is None:
            console.print(f"{found.host} is silent: its driver is gone", soft_wrap=True)
            return
        if timeout_s is not None and instant - began > timeout_s:
            at_once = command("stop", "--now", "--store", store.uri)
            raise TargetsweepError(
                f"{found} still drives after {timeout_s:g} s; it ends when what runs has saved "
                f"a checkpoint. To end a Ray job at once:\n  {at_once}"
            )
        if instant - said > _SAY_S:
            said = instant
            text = f"waiting for {found.host}, process {found.pid}: what runs saves a checkpoint"
            console.print(text, highlight=False)
        time.sleep(_LOOK_S)
