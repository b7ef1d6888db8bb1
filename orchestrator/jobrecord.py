"""`control/job.json`: which Ray job drives a store, or drove it last.

Whoever submits a job writes it where the store can be seen, and the driver writes it again when it
has the lease, from what the submitter put into its environment. Neither holds a secret.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from orchestrator import paths
from orchestrator.errors import StoreError
from orchestrator.store import Store

__all__ = ["JOB_VARIABLE", "JobRecord", "note_job", "own_job", "read_job"]

JOB_VARIABLE = "TARGETSWEEP_JOB"


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """id: Ray's submission id. address: of the job server. submitted: ISO 8601, UTC. command: that
    was given to submit it, and is given again to go on."""

    id: str
    address: str
    submitted: str
    command: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def read_job(store: Store) -> JobRecord | None:
    """None where no job drives the store, or the record says nothing."""
    try:
        return _parsed(store.read_json(paths.job_json()))
    except StoreError:
        return None


def own_job() -> JobRecord | None:
    """The job that this process is, None where it is none."""
    try:
        return _parsed(json.loads(os.environ.get(JOB_VARIABLE, "null")))
    except ValueError:
        return None


def note_job(store: Store) -> None:
    """By a driver that has the lease: it is this job now, or none."""
    job = own_job()
    if job is not None:
        store.write_json(paths.job_json(), job.to_json())
    else:
        store.delete(paths.job_json())


def _parsed(found: object) -> JobRecord | None:
    if not isinstance(found, dict):
        return None
    try:
        return JobRecord(**found)
    except TypeError:
        return None
