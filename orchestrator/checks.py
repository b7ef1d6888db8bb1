"""What no single value shows: combinations, settings that nobody reads, reports about nothing.

Each check looks at the fields it is about and at nothing else, so that a grid of a hundred thousand
points costs a handful of combinations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.durations import as_steps
from orchestrator.errors import Problem, nearest
from orchestrator.fieldtypes import Value, plain
from orchestrator.grid import Grid, Place, Point, expand_grid, projection
from orchestrator.settings import FIELDS, INDEX
from orchestrator.workers import DEFAULT, named_datasets, share_of, workers_of
from trainers.data.info import DatasetInfo
from trainers.schedule import steps_per_epoch

__all__ = ["check_grids", "check_unread"]

Infos = Mapping[str, DatasetInfo]


@dataclass(frozen=True)
class _Fault:
    """A wrong combination. field: whose place the problem names."""

    field: str
    message: str
    remedy: str


@dataclass(frozen=True)
class _Check:
    """fields: what `test` takes, in order. complete: only asked when all values are right."""

    fields: tuple[str, ...]
    test: Callable[..., _Fault | None]
    complete: bool = False


def check_grids(
    grids: Iterable[Grid], infos: Infos, *, complete: bool = True, shortened: bool = False
) -> list[Problem]:
    """Problems of combinations, each once and at the line of the value to change. complete: no
    value was wrong by itself. shortened: steps may have been set from outside, so that the file's
    later evaluations fall away."""
    problems: dict[tuple[Place, str], Problem] = {}
    for grid in grids:
        points = list(expand_grid(grid))
        for check in _CHECKS:
            left_out = shortened and check.test is _evaluations_in_reach
            if (complete or not check.complete) and not left_out:
                for problem in _problems(grid, points, check, infos):
                    problems.setdefault((_place_of(problem), problem.message), problem)
        if complete:
            for problem in _check_exclusions(grid, points):
                problems.setdefault((_place_of(problem), problem.message), problem)
    return list(problems.values())


def _place_of(problem: Problem) -> Place:
    return Place(problem.file, problem.key, problem.line)


def _problems(
    grid: Grid, points: Iterable[Point], check: _Check, infos: Infos
) -> Iterator[Problem]:
    for combination in dict.fromkeys(map(projection(check.fields), points)):
        fault = check.test(*combination, infos)
        if fault is not None:
            value = dict(zip(check.fields, combination, strict=True))[fault.field]
            yield problem_at(grid.place_of(fault.field, value), fault.message, value, fault.remedy)


def problem_at(place: Place, message: str, value: Value, remedy: str) -> Problem:
    return Problem(
        file=place.file,
        key=place.key,
        line=place.line,
        message=message,
        value=plain(value),
        remedy=remedy,
    )


def _check_exclusions(grid: Grid, points: Sequence[Point]) -> Iterator[Problem]:
    for condition in grid.exclude:
        for name, values in condition.items():
            present = grid.axes.get(name, (grid.base[INDEX[name]],))
            for value in set(values) - set(present):
                message = f"excludes {name} {plain(value)!r}, which no combination has"
                remedy = f"{name} is one of {[plain(item) for item in present]}"
                yield problem_at(grid.place, message, value, remedy)
    if not points:
        yield problem_at(grid.place, "has no points: everything is excluded", None, "")


# --- the checks ----------------------------------------------------------------------------------


def _required(name: str, remedy: str) -> _Check:
    def test(value: Value, infos: Infos) -> _Fault | None:
        return _Fault(name, "is missing", remedy) if value is None else None

    return _Check((name,), test, complete=True)


def _teacher_given(strategy: str, accuracy: float | None, infos: Infos) -> _Fault | None:
    if strategy in ("B", "C") and accuracy is None:
        message = f"is missing: strategy {strategy} needs a teacher"
        return _Fault("teacher.accuracy", message, "set teacher.accuracy, in percent")
    return None


def _ipc_fits(dataset: str, ipc: Any, infos: Infos) -> _Fault | None:
    info = infos.get(dataset)
    if info is None or ipc == "full" or ipc <= info.smallest_class:
        return None
    message = f"is {ipc}, but the smallest class of {dataset} has {info.smallest_class} images"
    return _Fault("ipc", message, f"at most {info.smallest_class}, or full")


def _batch_divides(
    batch: int, wanted: Value, dataset: str, norm_batch: int | None, infos: Infos
) -> _Fault | None:
    workers, is_auto = workers_of(wanted, dataset)
    if is_auto:  # as many as fit
        workers = 1
    if batch % workers:
        message = f"is {workers}, which does not divide the batch of {batch}"
        return _Fault("scaling.workers", message, "choose a divisor of training.batch_size")
    if norm_batch is not None and batch // workers % norm_batch:
        message = f"is {norm_batch}, which does not divide a worker's batch of {batch // workers}"
        return _Fault("training.norm_batch", message, f"choose a divisor of {batch // workers}")
    return None


def _teacher_batch_divides(
    strategy: str,
    own: int | None,
    batch: int,
    own_workers: Value,
    workers: Value,
    dataset: str,
    infos: Infos,
) -> _Fault | None:
    batch = own or batch
    teacher_workers, is_auto = workers_of(own_workers or workers, dataset)
    if strategy == "A" or is_auto or (own is own_workers is None):
        return None
    if batch % teacher_workers == 0:
        return None
    field = "scaling.teacher_workers" if own_workers else "scaling.workers"
    message = f"is {teacher_workers}, which does not divide the teacher's batch of {batch}"
    return _Fault(field, message, "choose a divisor, or set scaling.teacher_workers")


def _datasets_known(field: str) -> _Check:
    """A mapping by data set names some that exist."""

    def test(value: Value, dataset: str, infos: Infos) -> _Fault | None:
        known = {*infos, dataset, DEFAULT}
        for name in named_datasets(value):
            if name not in known:
                like = nearest(name, known)
                hint = f"nearest valid name: {like}" if like else f"there are {sorted(infos)}"
                return _Fault(field, f"no data set is called {name!r}", hint)
        return None

    return _Check((field, "dataset"), test)


def _whole_gpus(share: Value, workers: Value, dataset: str, infos: Infos) -> _Fault | None:
    count, is_auto = workers_of(workers, dataset)
    gpus = share_of(share, dataset).number
    if gpus == 1 or count == 1 or is_auto:
        return None
    message = f"is {gpus:g}, but runs on {dataset} have {count} workers"
    return _Fault("scaling.gpus_per_worker", message, "only one-worker runs can share a GPU")


def _epochs_known(name: str) -> _Check:
    def test(duration: Value, dataset: str, batch: int, infos: Infos) -> _Fault | None:
        if not isinstance(duration, str):
            return None
        info = infos.get(dataset)
        if info is None:
            message = f"is {duration!r}, but nobody has counted the images of {dataset} yet"
            return _Fault(name, message, "prepare the data set first, or give steps")
        if as_steps(duration, info, batch) is None:
            message = f"is {duration!r}: less than one step of {batch} images"
            return _Fault(
                name, message, f"an epoch has {steps_per_epoch(info.num_train, batch)} steps"
            )
        return None

    return _Check((name, "dataset", "training.batch_size"), test)


def _evaluations_in_reach(
    evaluate_at: tuple[int, ...], steps: Value, dataset: str, batch: int, infos: Infos
) -> _Fault | None:
    horizon = as_steps(steps, infos.get(dataset), batch)
    if horizon is None or not evaluate_at or evaluate_at[-1] <= horizon:
        return None
    message = f"asks for step {evaluate_at[-1]}, but the run ends at {horizon}"
    return _Fault("training.evaluate_at", message, "raise training.steps, or ask for less")


def _ten_epochs_known(name: str, switch: str, without: tuple[Value, ...]) -> _Check:
    """A length that is 10 epochs where it is left out. without: values of `switch` under which
    nobody reads it."""

    def test(value: Value, steps: Value, dataset: str, infos: Infos) -> _Fault | None:
        if value in without or steps is not None or dataset is None or dataset in infos:
            return None
        message = f"is left out: 10 epochs, but nobody has counted the images of {dataset} yet"
        return _Fault(name, message, f"prepare the data set first, or give {name}")

    return _Check((switch, name, "dataset"), test)


_CHECKS = (
    _required("dataset", "set `dataset: cifar10`"),
    _required("strategy", "set `strategy: A`, B or C, or make it an axis"),
    _required("training.steps", 'set `training: {steps: 39_000}`, or "100 epochs"'),
    _Check(("strategy", "teacher.accuracy"), _teacher_given, complete=True),
    _Check(("dataset", "ipc"), _ipc_fits),
    *map(_datasets_known, ("scaling.workers", "scaling.gpus_per_worker")),
    _Check(("scaling.gpus_per_worker", "scaling.workers", "dataset"), _whole_gpus),
    _Check(
        ("training.batch_size", "scaling.workers", "dataset", "training.norm_batch"),
        _batch_divides,
    ),
    _Check(
        (
            "strategy",
            "teacher.batch_size",
            "training.batch_size",
            "scaling.teacher_workers",
            "scaling.workers",
            "dataset",
        ),
        _teacher_batch_divides,
    ),
    _epochs_known("training.steps"),
    _epochs_known("training.evaluate_every"),
    _epochs_known("teacher.max_steps"),
    _epochs_known("probe_steps"),
    _epochs_known("selection.steps"),
    _ten_epochs_known("probe_steps", "probe", ("joint",)),
    _ten_epochs_known("selection.steps", "selection.method", (None, "random")),
    _Check(
        ("training.evaluate_at", "training.steps", "dataset", "training.batch_size"),
        _evaluations_in_reach,
    ),
)


def check_unread(grids: Sequence[Grid]) -> list[Problem]:
    """Settings that were written down and that apply to no point: probably a misunderstanding."""
    read = {name for grid in grids for name in _read_somewhere(grid)}
    problems: dict[Place, Problem] = {}
    for grid in grids:
        for name, place in grid.places.items():
            neutral = FIELDS[name].default
            if name in read or (name not in grid.axes and grid.base[INDEX[name]] == neutral):
                continue
            remedy = f"leave it out: {_REASONS.get(name, 'strategy A has no teacher')}"
            problems.setdefault(place, problem_at(place, "applies to no point", None, remedy))
    return list(problems.values())


def _read_somewhere(grid: Grid) -> Iterator[str]:
    missing = set(grid.places)
    for point in expand_grid(grid):
        found = {name for name in missing if point[INDEX[name]] is not None}
        yield from found
        missing -= found
        if not missing:
            return


_REASONS = {
    "image_size": "null is the data set's own size",
    "subset_seed": "with ipc full nothing is drawn",
    "ce_weight": "only loss joint has a weight",
    "student_temperature": "under loss kd both sides have the temperature",
    "kd.alpha": "only loss kd, with a teacher, has it",
    "kd.revised_weight": "only loss kd with a revision has it",
    "revision.only_wrong": "nothing is revised",
    "selection.steps": "random needs no model, and strategy A selects nothing",
    "selection.checkpoints": "only tracin looks at several states",
    "selection.damping": "only influence has a curvature to damp",
    "noise_seed": "no label is wrong",
    "probe_steps": "probe joint is trained with its student",
    "backbone.width": "only resnet18 and resnet50 have a width",
    "target_view": "only strategy C has stored targets",
}
