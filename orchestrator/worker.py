"""Executes one unit in this process, from what the store says of it, into the store.

The same code runs in a trial's own process and in each worker of a distributed run, where rank 0
alone writes. It yields small reports for whoever shows progress; nothing depends on their arrival.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from orchestrator import paths
from orchestrator.environment import environment
from orchestrator.errors import StoreError
from orchestrator.identity import from_canonical, run_key
from orchestrator.needs import (
    load_data,
    load_scorer,
    load_teacher,
    open_mapping,
    open_scores,
    targets_identity,
)
from orchestrator.recording import Report, record
from orchestrator.records import Records
from orchestrator.store import Store, stale_error
from orchestrator.weightsfiles import read_kept_weights
from trainers.control import StopFlag
from trainers.data.images import ImageData
from trainers.distributed import World
from trainers.engine import configure
from trainers.evaluate import STUDENT_COLUMNS, TEACHER_COLUMNS
from trainers.events import Event, Finished
from trainers.harvest import in_window, jumped_over
from trainers.probe import train_probe
from trainers.schedule import evaluation_steps, steps_per_epoch
from trainers.scores import score_samples
from trainers.spec import (
    ProbeSpec,
    Request,
    RunSpec,
    Runtime,
    ScoresSpec,
    StudentSpec,
    TargetsSpec,
    TeacherSpec,
)
from trainers.student import train_student
from trainers.targets import compute_targets, write_targets
from trainers.teacher import train_teacher

__all__ = ["Report", "execute"]


@dataclass(frozen=True)
class _Job:
    """One attempt at one unit. keep_checkpoint: `final`, `none` or a number of days. attempt: who
    may write, as request.json says; None in a process that has no rival."""

    store: Store
    name: str
    key: str
    spec: RunSpec
    request: Request
    keep_checkpoint: str
    runtime: Runtime
    stop: StopFlag | None
    started: float
    attempt: str | None = None

    def records(self, columns: tuple[str, ...]) -> Records:
        writes = World.current().rank == 0
        return Records(self.store, self.name, columns, attempt=self.attempt, writes=writes)


def execute(
    store: Store, name: str, runtime: Runtime, stop: StopFlag | None, attempt: str | None = None
) -> Iterator[Report]:
    """Runs unit `name` as its run.json and request.json say. The last report is `finished`.
    attempt: the driver's name for this attempt; writing ends when another one was begun."""
    job = _read_job(store, name, runtime, stop, attempt)
    if isinstance(job.spec, TargetsSpec):
        yield from _make_targets(job, job.spec)
    elif isinstance(job.spec, ScoresSpec):
        yield from _make_scores(job, job.spec)
    elif isinstance(job.spec, TeacherSpec):
        yield from _run_teacher(job, job.spec)
    elif isinstance(job.spec, ProbeSpec):
        yield from _run_probe(job, job.spec)
    else:
        yield from _run_student(job, job.spec)


def _read_job(
    store: Store, name: str, runtime: Runtime, stop: StopFlag | None, attempt: str | None
) -> _Job:
    run, wanted = store.read_json(paths.run_json(name)), store.read_json(paths.request_json(name))
    if run is None or wanted is None:
        raise StoreError(f"{name} has no run.json or request.json", "run the sweep again")
    spec = from_canonical(run["spec"])
    if run_key(spec) != run["key"]:
        raise StoreError(
            f"{paths.run_json(name)} does not describe the run of its key",
            "it was changed by hand: delete the run's folder and run the sweep again",
        )
    request = Request(
        horizon=wanted["horizon"],
        evaluate_at=tuple(wanted["evaluate_at"]),
        presets=tuple(wanted["presets"]),
        validate_every=wanted["validate_every"],
        screen=wanted["screen"],
        keep_weights_at=tuple(wanted.get("keep_weights_at", ())),
    )
    keep = str(wanted.get("keep_checkpoint", "final"))
    return _Job(
        store, name, run["key"], spec, request, keep, runtime, stop, time.monotonic(), attempt
    )


# -- soft targets -------------------------------------------------------------------------------


def _make_targets(job: _Job, spec: TargetsSpec) -> Iterator[Report]:
    data = load_data(job.store, spec.dataset, job.runtime)
    teacher, digest = load_teacher(job.store, spec.teacher, data)
    rel = paths.targets_file(spec, digest)
    configure(job.runtime)
    device = torch.device(job.runtime.device)
    yield {"event": "started", "first_step": 0}
    targets_NC = compute_targets(
        teacher, data, temperature=spec.temperature, device=device, dtype=spec.dtype,
        decode_threads=job.runtime.decode_threads, stop=job.stop,
    )  # fmt: skip
    if targets_NC is None:
        yield {"event": "finished", "reason": "stopped", "step": 0}
        return
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "targets.arrow"
        write_targets(made, targets_NC, targets_identity(spec, digest))
        job.store.upload(made, rel)
    job.records(()).save_result(_result(job, step=0, extra={"teacher_digest": digest, "file": rel}))
    yield {"event": "finished", "reason": "done", "step": 0}


# -- scores -------------------------------------------------------------------------------------


def _make_scores(job: _Job, spec: ScoresSpec) -> Iterator[Report]:
    data, world, records = (
        load_data(job.store, spec.dataset, job.runtime),
        World.current(),
        job.records(()),
    )
    scorer, weights, digests = load_scorer(job.store, spec.scoring)
    start, state = _agreed(world, records, *records.load_state())
    yield {"event": "started", "first_step": start + 1, "warnings": records.take_warnings()}
    events = score_samples(
        spec, data, job.runtime, scorer=scorer, weights=weights, state=state, stop=job.stop
    )
    yield from record(
        records, events, world, key=job.key, teacher_digest=None, replayed_until=0,
        finish=partial(_finish_scores, job, records, digests),
    )  # fmt: skip


def _finish_scores(job: _Job, records: Records, digests: list[str], event: Finished) -> None:
    if event.reason == "done":
        extra = {"student_digests": digests}
        records.save_result(_result(job, step=event.step, extra=extra))
        records.drop_checkpoints()


# -- teachers -----------------------------------------------------------------------------------


def _teacher_start(
    records: Records, missing: set[float], num_classes: int
) -> tuple[int, dict[str, Any] | None]:
    """Where to continue. The trace of validations tells at which step a missing preset was passed;
    the search goes on from the nearest state before it, or from the last one. Without the trace
    (a damaged metrics file) nobody knows what was passed: the search starts afresh."""
    if not records.rows:
        return 0, None
    trace = sorted((step, float(row["top1"])) for step, row in records.rows.items())
    # A hit lies somewhere after the validation before it: screening leaves gaps in the trace.
    last_misses = [
        step
        for (step, before), (_, after) in zip([(0, float("nan")), *trace], trace, strict=False)
        for preset in missing
        if in_window(after, preset, num_classes) or jumped_over(before, after, preset, num_classes)
    ]
    return records.load_state(before=min(last_misses) + 1 if last_misses else None)


def _run_teacher(job: _Job, spec: TeacherSpec) -> Iterator[Report]:
    data, world = load_data(job.store, spec.dataset, job.runtime), World.current()
    records = job.records(TEACHER_COLUMNS)
    harvested = frozenset(world.share(sorted(records.traced())))
    missing = set(job.request.presets) - harvested
    start, state = _agreed(world, records, *_teacher_start(records, missing, data.info.num_classes))
    yield {"event": "started", "first_step": start + 1, "warnings": records.take_warnings()}
    searched = max(records.rows, default=0)
    events = train_teacher(
        spec, data, job.request, job.runtime, harvested=harvested, state=state, stop=job.stop
    )
    yield from record(
        records, events, world, key=job.key, teacher_digest=None, replayed_until=searched,
        finish=partial(_finish_teacher, job, records, start),
    )  # fmt: skip


def _finish_teacher(job: _Job, records: Records, start: int, event: Finished) -> None:
    if event.reason == "stopped":
        return
    presets = {
        paths.preset_name(preset): {
            field: found[field] for field in ("step", "accuracy", "alpha", "digest")
        }
        for preset, found in records.snapshots().items()
    }
    searched = max(event.step, *records.rows)  # the last validation may lie before the limit
    extra = {
        "presets": presets,
        "searched_to": searched,
        "missing": _missing(job, event, searched, presets),
        "first_step": start + 1,
    }
    records.save_result(_result(job, step=searched, extra=extra))
    _keep(job, records)


def _missing(
    job: _Job, event: Finished, searched: int, presets: Mapping[str, object]
) -> list[float]:
    """Presets that were searched for in vain as far as the search came, by this request or by
    those before it."""
    try:
        before = job.store.read_json(paths.result(job.name)) or {}
    except StoreError:
        before = {}
    known = before.get("missing", []) if int(before.get("searched_to", -1)) >= searched else []
    return sorted({*event.missing, *known} - {float(preset) for preset in presets})


# -- students and probes ------------------------------------------------------------------------


def _run_student(job: _Job, spec: StudentSpec) -> Iterator[Report]:
    data = load_data(job.store, spec.dataset, job.runtime)
    teacher, targets, digest = open_mapping(job.store, spec, data)
    scores, scores_digest = open_scores(job.store, spec)
    train = partial(train_student, spec, data, teacher=teacher, targets=targets, scores=scores)
    behind = {"teacher_digest": digest}
    if scores_digest is not None:
        behind["scores_digest"] = scores_digest
    yield from _run_to_horizon(job, spec, data, train, behind)


def _run_probe(job: _Job, spec: ProbeSpec) -> Iterator[Report]:
    data, student = (
        load_data(job.store, spec.dataset, job.runtime),
        paths.run_name("student", spec.student.key),
    )
    weights, kept = read_kept_weights(job.store, student, spec.student.step)
    behind = {"teacher_digest": kept.get("teacher_digest"), "student_digest": kept["digest"]}
    train = partial(train_probe, spec, data, weights=weights)
    yield from _run_to_horizon(job, spec, data, train, behind)


def _run_to_horizon(
    job: _Job,
    spec: StudentSpec | ProbeSpec,
    data: ImageData,
    train: Callable[..., Iterator[Event]],
    behind: dict[str, Any],
) -> Iterator[Report]:
    """train: takes a request and a runtime, a state and a stop flag. behind: digests of the weights
    that the run learnt from, for its result."""
    records, world = job.records(STUDENT_COLUMNS), World.current()
    digest = behind["teacher_digest"]
    asked = set(job.request.keep_weights_at)
    taken = world.share(
        records.take_weights(asked, job.key, digest) if asked and world.rank == 0 else []
    )
    keep = set(world.share(sorted(asked - records.kept_steps() if asked else asked)))
    unseen = _steps_to_evaluate(job.request, spec, data) - records.rows.keys()
    needed = set(world.share(sorted(unseen)))
    reached = max(records.rows, default=0)
    # With nothing left to see, the last state says how far the run came, be it beyond the request.
    first = min(needed | keep, default=None)
    start, state = _agreed(world, records, *records.load_state(before=first))
    yield {"event": "started", "first_step": start + 1, "warnings": records.take_warnings()}
    yield from ({"event": "weights", "step": step} for step in taken)
    horizon = max(needed | keep, default=max(job.request.horizon, start))
    request = Request(
        horizon=horizon,
        evaluate_at=tuple(sorted(needed | world.share(records.seen_again(start, horizon)))),
        keep_weights_at=tuple(sorted(keep)),
    )
    events = train(request, job.runtime, state=state, stop=job.stop)
    yield from record(
        records, events, world, key=job.key, teacher_digest=digest, replayed_until=reached,
        finish=partial(_finish_at_horizon, job, records, behind, start),
    )  # fmt: skip


def _finish_at_horizon(
    job: _Job, records: Records, behind: dict[str, Any], start: int, event: Finished
) -> None:
    if event.reason != "done":
        return
    extra = behind | {
        "horizon": max(job.request.horizon, *records.rows),
        "first_step": start + 1,
        "replayed": any(bool(row["replayed"]) for row in records.rows.values()),
    }
    records.save_result(_result(job, step=max(records.rows), extra=extra))
    _keep(job, records)


def _steps_to_evaluate(
    request: Request, spec: StudentSpec | ProbeSpec, data: ImageData
) -> set[int]:
    epoch_steps = steps_per_epoch(data.info.num_train, spec.batch_size)
    return set(evaluation_steps(request.horizon, epoch_steps, request.evaluate_at))


def _agreed(
    world: World, records: Records, start: int, state: dict[str, Any] | None
) -> tuple[int, dict[str, Any] | None]:
    """Rank 0's start for every worker, each of which looked at the store by itself: another node's
    directory cache may lag. Raises StoreError, to be tried again, where rank 0's state is not to be
    seen."""
    first = world.share(start)
    if start != first:
        start, state = records.load_state(before=first + 1)
    if start != first:
        raise stale_error(f"step {first}, where worker 0 goes on and worker {world.rank} cannot,")
    return start, state


# -- what all kinds share ----------------------------------------------------------------------


def _keep(job: _Job, records: Records) -> None:
    if job.keep_checkpoint == "none":
        records.drop_checkpoints()
    else:
        records.drop_older_checkpoints()  # a kill may have come before their turn


def _result(job: _Job, *, step: int, extra: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "key": job.key,
        "kind": job.name.split("-", 1)[0],
        "status": "complete",
        "horizon": job.request.horizon,
        "step": step,
        "teacher_digest": None,
        "environment": environment(job.runtime, getattr(job.spec, "precision", "fp32")),
        "wall_time_s": round(time.monotonic() - job.started, 3),
    }
    return result | extra
