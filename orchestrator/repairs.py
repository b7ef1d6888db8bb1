"""What the conductor looks up and leaves in the store when an attempt has failed."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from orchestrator import paths
from orchestrator.errors import StoreError
from orchestrator.faults import cause_of_death
from orchestrator.retry import Attempts, Cause, Failure
from orchestrator.store import Store
from orchestrator.units import Unit
from orchestrator.watchdog import hang_dump

if TYPE_CHECKING:
    from orchestrator.listener import Live

__all__ = ["classify", "record_failure", "set_aside", "store_answers"]

_PROBE = bytes(1 << 20)
"""An empty file fits on a full disk; a checkpoint does not."""

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


def classify(
    store: Store,
    live: Live,
    final: dict[str, Any] | None,
    lost: bool,
    said: str,
    silent_s: float | None,
    is_node_gone: Callable[[str], bool],
) -> Failure:
    """Why an attempt failed. final: its last word. said: by Ray, of a process that died without
    one. silent_s: for how long it had said nothing when it was killed for that.

    A worker that was lost may have hung, or been on a node that left; the store and the cluster
    know.
    """
    failure = _last_word(final) if final is not None else _death(lost, said)
    if failure.cause is not Cause.WORKER_LOST:
        return failure
    if (stacks := hang_dump(store, live.unit.name, live.attempt)) is not None:
        where = paths.hang(live.unit.name, 0).replace("-0.", "-*.")
        message = f"{stacks.partition(chr(10))[0]} (stacks: {where})"
        return Failure(cause=Cause.HUNG, message=f"no step: {message}", traceback=stacks)
    if silent_s is not None:
        message = f"no word: it said nothing for {silent_s:.0f} s and was killed; {failure.message}"
        return Failure(cause=Cause.HUNG, message=message, traceback=failure.traceback)
    if any(is_node_gone(process.node_id) for process in live.processes if process.node_id):
        message = f"its node left: {failure.message}"
        return Failure(cause=Cause.PREEMPTED, message=message, traceback=failure.traceback)
    return failure


def _last_word(final: dict[str, Any]) -> Failure:
    return Failure(
        cause=Cause(final["cause"]),
        message=str(final["message"]),
        traceback=str(final.get("traceback") or ""),
    )


def _death(lost: bool, said: str) -> Failure:
    cause = cause_of_death(said)
    message = "its process died" if lost else "it ended without a word"
    if cause is Cause.OUT_OF_MEMORY:
        message = "out of memory: Ray's memory monitor killed its process"
    return Failure(cause=cause, message=message, traceback=said)


def store_answers(store: Store, number: int | None = None) -> bool:
    """Whether the store can be written now, by everybody else as it were. number: the errno of the
    write that failed: where a checkpoint finds no room, the probe may."""
    if number in _NO_ROOM:
        return False
    try:
        store.write_bytes(paths.probe(), _PROBE)
    except StoreError:
        return False
    with suppress(StoreError):
        store.delete(paths.probe())
    return True


def set_aside(store: Store, damaged: Iterable[str], who: str) -> Iterator[str]:
    """Moves damaged files away, so that the next plan has them made again; a line for each."""
    for rel in damaged:
        try:
            if store.exists(rel):
                moved = store.set_aside(rel, f"found by {who}")
                yield f"damaged: {rel}, set aside as {moved}; it is made again"
        except StoreError as error:
            yield f"damaged: {rel}, which could not be set aside: {error.problem}"


def record_failure(store: Store, unit: Unit, failure: Failure, attempts: Attempts) -> None:
    """Raises StoreError."""
    store.write_json(
        paths.failure(unit.name),
        {
            "key": unit.key,
            "cause": failure.cause.value,
            "message": failure.message,
            "traceback": failure.traceback,
            "where": failure.where,
            "attempts": len(attempts.failures),
            "attempts_by_cause": {
                cause.value: count for cause, count in sorted(attempts.by_cause().items())
            },
        },
    )
