"""Captured steps on a CUDA device; `make test-gpu`. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training_helpers import (
    RUNTIME,
    assert_equal_states,
    image_data,
    mapping,
    rows,
    run_student,
    student_spec,
    teacher_spec,
)
from trainers.distributed import World
from trainers.engine import Engine
from trainers.events import Checkpoint
from trainers.graphs import may_be_captured
from trainers.spec import AUGMENTATIONS, Backbone
from trainers.student import build_engine
from trainers.teacher import build_engine as build_teacher_engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DATA = image_data()
CAPTURED = replace(RUNTIME, device="cuda")
LAUNCHED = replace(CAPTURED, cuda_graphs=False)
EVERYTHING = {
    **AUGMENTATIONS,
    "std+mixup": replace(AUGMENTATIONS["std"], mixup_alpha=0.8),
    "std+cutmix": replace(AUGMENTATIONS["std"], cutmix_alpha=1.0),
}


@pytest.fixture(autouse=True)
def _reproducible(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same kernels in every run of the process: cuDNN's fastest may add in any order."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


def engine_of(strategy: str, folder: Path, runtime: Any, **changes: Any) -> Engine:
    given = mapping(strategy, folder, DATA)
    return build_engine(student_spec(strategy, **changes), DATA, runtime, World(), **given)


@pytest.mark.parametrize("strategy", ["A", "B", "C"])
@pytest.mark.parametrize("augmentation", EVERYTHING)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_steps_are_launched_steps_bit_for_bit(
    strategy: str, augmentation: str, precision: str, tmp_path: Path
) -> None:
    """200 steps: over borders of blocks (64, 128, 192) and of a window (100)."""
    changes = {"augmentation": EVERYTHING[augmentation], "precision": precision}
    engines = [
        engine_of(strategy, tmp_path, runtime, **changes) for runtime in (CAPTURED, LAUNCHED)
    ]
    found = []
    for engine in engines:
        means = []
        for _ in range(200):
            engine.update()
            if engine.step % 30 == 0 or engine.step in (99, 100, 101):
                means.append(engine.means())
        found.append((means, engine.state_dict()))
        engine.close()
    assert found[0][0] == found[1][0]
    assert_equal_states(found[0][1], found[1][1])


@pytest.mark.parametrize("strategy", ["A", "B", "C"])
def test_an_interrupted_captured_run_equals_an_uninterrupted_one(
    strategy: str, tmp_path: Path
) -> None:
    """Evaluations between the steps included; fp32 and with mixing."""
    spec = student_spec(strategy, augmentation=EVERYTHING["std+cutmix"])
    given = mapping(strategy, tmp_path, DATA)
    whole = run_student(spec, DATA, 110, runtime=CAPTURED, **given)
    parts = run_student(spec, DATA, 110, stops=(3, 1, 64, 20), runtime=CAPTURED, **given)
    launched = run_student(spec, DATA, 110, runtime=LAUNCHED, **given)
    assert rows(parts) == rows(whole) == rows(launched)
    last = [
        [event.state for event in events if isinstance(event, Checkpoint)][-1]
        for events in (whole, parts, launched)
    ]
    assert_equal_states(last[0], last[1])
    assert_equal_states(last[0], last[2])


def test_a_teachers_steps_may_be_captured() -> None:
    found = []
    for runtime in (CAPTURED, LAUNCHED):
        spec = teacher_spec(augmentation=AUGMENTATIONS["std"])
        engine = build_teacher_engine(spec, DATA, runtime, World())
        for _ in range(70):
            engine.update()
        found.append(engine.state_dict())
        engine.close()
    assert_equal_states(*found)


@pytest.mark.parametrize("strategy", ["A", "B", "C"])
@pytest.mark.parametrize("runtime", [CAPTURED, LAUNCHED])
def test_a_hundred_steps_wait_for_nothing(strategy: str, runtime: Any, tmp_path: Path) -> None:
    """A block's border among them. The first steps may wait, for memory and kernels."""
    engine = engine_of(strategy, tmp_path, runtime, augmentation=EVERYTHING["std+mixup"])
    for _ in range(10):
        engine.update()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(100):
            engine.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    engine.close()


def test_a_closed_engine_gives_its_memory_back() -> None:
    """All but what libraries keep for the stream of captures, which all engines share."""
    left = []
    for _ in range(3):
        engine = engine_of("A", Path(), CAPTURED, backbone=Backbone(name="resnet18", width=32))
        for _ in range(6):
            engine.update()
        engine.close()
        del engine
        torch.cuda.synchronize()
        left.append(torch.cuda.memory_allocated())
    # A model of this width with its moments is 34 MB, cuBLAS's workspace on a Hopper too.
    assert max(left) - left[0] < 20e6


def test_a_compiled_step_may_be_captured() -> None:
    runtime = replace(CAPTURED, compile=True)
    engines = [
        engine_of("A", Path(), one, augmentation=EVERYTHING["std+cutmix"])
        for one in (runtime, replace(runtime, cuda_graphs=False))
    ]
    for engine in engines:
        for _ in range(70):
            engine.update()
    assert engines[0].means() == engines[1].means()
    assert engines[0].means()["train_ce"] == pytest.approx(
        engine_of_plain_means()["train_ce"], rel=0.05
    )


def engine_of_plain_means() -> dict[str, float]:
    engine = engine_of("A", Path(), LAUNCHED, augmentation=EVERYTHING["std+cutmix"])
    for _ in range(70):
        engine.update()
    return engine.means()


def experiment(runtime: Any, why: str) -> Any:
    return pytest.param(runtime, marks=pytest.mark.xfail(strict=False, reason=why))


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0"])
@pytest.mark.parametrize(
    "runtime",
    [
        experiment(LAUNCHED, "these kernels may add in any order; then the next says nothing"),
        experiment(CAPTURED, "not seen yet: XPASS says that models which draw may be captured"),
    ],
    ids=["launched", "captured"],
)
def test_captured_steps_draw_what_launched_steps_draw(
    runtime: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether models with dropout and stochastic depth need be left out, as `may_be_captured` does:
    a replay reads the seed that the host has set before it. Decides nothing by itself."""

    def may_be(device: torch.device, world: World, *, stochastic: bool) -> bool:
        assert stochastic
        return may_be_captured(device, world, stochastic=False)

    monkeypatch.setattr("trainers.engine.may_be_captured", may_be)
    found = []
    for one in (LAUNCHED, runtime):
        engine = engine_of("A", Path(), one, backbone=Backbone(name=name))
        assert (engine._replayed is not None) is one.cuda_graphs
        for _ in range(20):
            engine.update()
        found.append((engine.means(), engine.state_dict()))
        engine.close()
    assert found[0][0] == found[1][0]
    assert_equal_states(found[0][1], found[1][1])
