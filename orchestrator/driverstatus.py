"""What `status` says of whoever drives a store: driver, Ray job, what was set aside or failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from orchestrator import clock, paths
from orchestrator.errors import StoreError, TargetsweepError
from orchestrator.jobrecord import JobRecord, read_job
from orchestrator.jobserver import JobServer
from orchestrator.lease import HEARTBEAT_S, Holder, holder
from orchestrator.store import Store

__all__ = ["driver_lines", "failure_lines"]

_ANSWER_S = 3.0
_SILENT_S = 4 * HEARTBEAT_S


def driver_lines(store: Store) -> Iterator[str]:
    driver = holder(store)
    yield f"driver  {driver or 'none'}"
    if driver is not None:
        yield f"        {_heartbeat(store, driver)}"
        if store.exists(paths.stop_flag(driver.id)):
            yield "        it is asked to stop"
    job = read_job(store)
    if job is not None:
        yield f"job     {job.id} at {job.address}, submitted {job.submitted}: {_state(job)}"
    aside = len(store.list(paths.damaged_dir()))
    if aside:
        yield f"damaged {aside} {'file' if aside == 1 else 'files'} set aside in damaged/"


def _heartbeat(store: Store, driver: Holder) -> str:
    """By this machine's clock and the store's, which may differ."""
    written = store.modified(paths.lease())
    if written is None:
        return "it is just ending"
    age_s = max(0.0, clock.now_s() - written)
    text = f"last heartbeat {age_s:,.0f} s ago"
    if age_s > _SILENT_S and driver.is_gone() is None:
        text += ": its machine may be gone; `run` and `submit` find out and take over"
    return text


def _state(job: JobRecord) -> str:
    """Ray's word for it, or why there is none."""
    try:
        found = JobServer(job.address, timeout_s=_ANSWER_S).job(job.id)
    except TargetsweepError as error:
        return f"cannot be asked ({str(error).splitlines()[0]})"
    first = found.message.strip().splitlines()[:1]
    if found.state == "FAILED" and first:
        return f"{found.state} ({first[0]})"
    return found.state


def failure_lines(store: Store, failed: Iterable[str]) -> Iterator[str]:
    """How often which cause ended a run, the most frequent first. failed: names of runs."""
    causes = Counter(cause for name in failed if (cause := _cause(store, name)))
    if causes:
        found = ", ".join(f"{count:,} {cause}" for cause, count in causes.most_common())
        yield f"failed for: {found} (runs/NAME/failure.json has the traceback)"


def _cause(store: Store, name: str) -> str | None:
    try:
        found = store.read_json(paths.failure(name))
    except StoreError:
        return "cause unknown"
    return None if found is None else str(found.get("cause"))
