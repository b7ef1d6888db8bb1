"""What only a CUDA device can show; `make test-gpu`. Skipped where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training_helpers import RUNTIME, image_data, mapping, student_spec, teacher_spec
from trainers.events import Checkpoint, Evaluation, Finished, Snapshot
from trainers.pixels import Leash, _cuda_mark
from trainers.spec import Request, Screening
from trainers.student import train_student
from trainers.teacher import train_teacher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

GPU = replace(RUNTIME, device="cuda")


def rows(events: list[Any]) -> list[dict[str, Any]]:
    return [event.row for event in events if isinstance(event, Evaluation)]


@pytest.mark.parametrize("strategy", ["A", "B", "C"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_student_trains_as_on_the_cpu(strategy: str, precision: str, tmp_path: Path) -> None:
    data = image_data()
    spec = student_spec(strategy, precision=precision)
    request = Request(horizon=20, evaluate_at=(1, 5))
    given = mapping(strategy, tmp_path, data)
    on_gpu = rows(list(train_student(spec, data, request, GPU, **given)))
    given = mapping(strategy, tmp_path, data)
    on_cpu = rows(list(train_student(spec, data, request, RUNTIME, **given)))
    # Later steps amplify rounding; the first ones must agree.
    tolerance = 1e-3 if precision == "fp32" else 3e-2
    for ours, theirs in zip(on_gpu[:2], on_cpu[:2], strict=True):
        assert ours["train_kl"] == pytest.approx(theirs["train_kl"], rel=tolerance)
        assert ours["train_ce"] == pytest.approx(theirs["train_ce"], rel=tolerance)


def test_a_state_saved_on_a_gpu_holds_cpu_tensors_and_resumes() -> None:
    data, spec = image_data(), student_spec("A")
    first = list(train_student(spec, data, Request(horizon=10), GPU))
    state = next(event.state for event in first if isinstance(event, Checkpoint))
    assert {value.device.type for value in state["model"].values()} == {"cpu"}
    rest = list(train_student(spec, data, Request(horizon=20), GPU, state=state))
    assert rest[-1] == Finished(reason="done", step=20)


@pytest.mark.parametrize(("screen", "num_test"), [(None, 200), ("adaptive", 1000)])
def test_a_teacher_harvests_on_a_gpu(screen: Screening, num_test: int) -> None:
    data, spec = image_data(num_test=num_test), teacher_spec(batch_size=50)
    request = Request(horizon=2000, presets=(40.0,), screen=screen)
    events = list(train_teacher(spec, data, request, GPU))
    (snapshot,) = [e for e in events if isinstance(e, Snapshot) and e.preset == 40.0]
    assert abs(snapshot.accuracy - 40.0) <= 1.0
    assert {value.device.type for value in snapshot.weights.values()} == {"cpu"}


def test_compiled_models_keep_their_names() -> None:
    data, spec = image_data(), student_spec("A")
    compiled = replace(GPU, compile=True)
    events = list(train_student(spec, data, Request(horizon=3), compiled))
    state = next(event.state for event in events if isinstance(event, Checkpoint))
    assert not any(name.startswith("_orig_mod") for name in state["model"])


def test_the_host_does_not_run_away_from_a_gpu() -> None:
    device = torch.device("cuda")
    events: list[Any] = []

    def mark() -> Any:
        events.append(_cuda_mark(device))
        return events[-1]

    leash, factor = Leash(3, mark), torch.randn(4096, 4096, device=device)
    for _ in range(20):
        factor @ factor  # milliseconds, where the host needs microseconds
        leash.go_on()
        assert all(event.query() for event in events[:-3])
