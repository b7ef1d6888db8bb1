"""Sweeps that run as jobs of a Ray cluster, so that the machine that asked for them may go.

What goes along are the sweep files; what the job reads and writes otherwise is the cluster's: the
store, the data sets, credentials. A job is this command on the cluster: `targetsweep run … --store
… --ray-address auto`.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from orchestrator import clock, paths
from orchestrator.conclusion import InterruptedByUser
from orchestrator.errors import (
    MachineError,
    StoreError,
    StoreInUseError,
    TargetsweepError,
    UserError,
)
from orchestrator.invocation import command
from orchestrator.jobpackage import absolute, files_of, pack
from orchestrator.jobrecord import JOB_VARIABLE, JobRecord, read_job
from orchestrator.jobserver import Job, JobServer, checked_address
from orchestrator.lease import holder
from orchestrator.redaction import redacted
from orchestrator.store import Store

__all__ = ["Submission", "refuse_secrets", "submit_sweeps", "visible_store"]

_ASK_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What a job is asked to do. arguments: the command line of `run` with the files and the scale
    file where they lie on the cluster."""

    files: Sequence[str]
    scale: str | None
    store: str
    data: Sequence[str]
    address: str | None
    arguments: Callable[[list[str], str | None], list[str]]

    def check(self) -> None:
        """Raises UserError for what could only go wrong over there."""
        checked_address(self.address)
        for option in self.data:
            name, _, path = option.partition("=")
            if not Path(path).is_absolute():
                raise UserError(
                    f"--data {option}: the cluster's nodes have no such folder",
                    f"write --data {name}=/PATH, as the nodes see it",
                )

    def entrypoint(self, out: Path) -> str:
        """Puts the files into `out`; the job's command, which runs there."""
        placed = pack(files_of(self.files, self.scale), out)
        files = [placed[absolute(file)] for file in self.files]
        arguments = self.arguments(files, placed[absolute(self.scale)] if self.scale else None)
        return shlex.join(["targetsweep", "run", *arguments, "--ray-address", "auto"])


def refuse_secrets(console: Console, store: str, tracking_uri: str | None) -> str | None:
    """The tracking URI that the job may be told. Raises UserError for a store that only this
    machine has, and for passwords on the command line: a job's command is shown to everybody."""
    if "://" not in store and not Path(store).expanduser().is_absolute():
        raise UserError(
            f"--store {store} is a folder of this machine alone",
            "give an absolute path or a URI that every node of the cluster sees",
        )
    if redacted(store) != store:
        raise UserError(
            f"--store {redacted(store)} carries credentials, which a job's command would show",
            "leave them out and set them on the cluster's nodes (AWS_ACCESS_KEY_ID, …)",
        )
    if tracking_uri is None or redacted(tracking_uri) == tracking_uri:
        return tracking_uri
    if tracking_uri != os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            f"--tracking-uri {redacted(tracking_uri)} carries a password, which a job's command "
            "would show",
            "set MLFLOW_TRACKING_URI on the cluster's nodes, or give the address alone and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD there",
        )
    console.print(
        "MLFLOW_TRACKING_URI here carries a password and stays here; the job takes the cluster's",
        style="yellow",
        soft_wrap=True,
    )
    return None


@contextmanager
def visible_store(uri: str) -> Iterator[tuple[Store, bool]]:
    """The store and True, where this machine sees it; else an empty one to check sweeps with."""
    store = Store(uri)
    try:
        there = store.list()
        is_seen = bool(there) or not store.is_local or store.root.is_dir()
    except StoreError:
        is_seen = False
    if is_seen:
        yield store, True
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Store(folder), False


def submit_sweeps(
    console: Console, submission: Submission, store: Store | None, *, follow: bool
) -> None:
    """Ships the sweep files and starts the job. store: None when it cannot be seen from here.

    Raises StoreInUseError when somebody drives the store, MachineError without a job server.
    With `follow`, ends as the job ends: TargetsweepError with its exit status.
    """
    if store is not None:
        _refuse_a_second(store)
    else:
        line = f"{submission.store} cannot be seen from here: who drives it was not looked at"
        console.print(line, style="yellow", soft_wrap=True)
    server = JobServer(checked_address(submission.address))
    record = JobRecord(
        id=_name(submission.files[0]),
        address=server.address,
        submitted=clock.now_utc().isoformat(timespec="seconds"),
        command=command(*sys.argv[1:]),
    )
    with tempfile.TemporaryDirectory(prefix="targetsweep-job-") as folder:
        entrypoint = submission.entrypoint(Path(folder))
        variables = {JOB_VARIABLE: json.dumps(record.to_json())}
        server.submit(record.id, entrypoint, Path(folder), variables)
    if store is not None:
        store.write_json(paths.job_json(), dict(record.to_json()))
    _say_submitted(console, record, submission.store)
    if follow:
        _follow(server, record, submission.store)


def _refuse_a_second(store: Store) -> None:
    found, job = holder(store), read_job(store)
    if found is not None:
        by = f" (job {job.id})" if job is not None else ""
        raise StoreInUseError(
            f"{store.uri} is driven by {found}{by}",
            f"wait until it ends, or: {command('stop', '--store', store.uri)}",
        )


def _name(file: str) -> str:
    stamp = f"{clock.now_utc():%Y%m%d-%H%M%S}"
    stem = "".join(one if one.isalnum() else "-" for one in Path(file).stem)[:40]
    return f"targetsweep-{stem}-{stamp}-{secrets.token_hex(2)}"


def _say_submitted(console: Console, record: JobRecord, store: str) -> None:
    logs = f"ray job logs --follow --address {record.address} {record.id}"
    lines = [
        f"submitted: job {record.id} at {record.address}",
        f"  watch:  {command('status', '--store', store)}",
        f"          {logs}",
        f"  stop:   {command('stop', '--store', store)}",
        f"  tables: {command('report', '--store', store)}",
    ]
    console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)


def _follow(server: JobServer, record: JobRecord, store: str) -> None:
    """The connection may break as often as it likes: the job knows nothing of it."""
    shown = 0
    try:
        while True:
            try:
                for text in server.logs(record.id, shown):
                    shown += len(text)
                    print(text, end="", flush=True)
                job = server.job(record.id)
                if job.has_ended:
                    break
            except MachineError as error:
                print(f"targetsweep: {error}; trying again", file=sys.stderr)
            time.sleep(_ASK_S)
    except KeyboardInterrupt:
        text = f"the job goes on; to end it:\n  {command('stop', '--store', store)}"
        raise InterruptedByUser(text) from None
    if job.exit_status:
        raise JobEndedError(_ended_text(job), job.exit_status)


class JobEndedError(TargetsweepError):
    """The job ended as `run` ends when not all is done: with that exit status."""

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def _ended_text(job: Job) -> str:
    first = job.message.strip().splitlines()[:1]
    return f"job {job.id}: {job.state}" + (f" ({first[0]})" if first else "")
