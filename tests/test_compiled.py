"""torch.compile: who is compiled, how often, and where it is kept. Compiled by a stand-in for the
compiler that runs what it is given, so that seconds suffice."""

import os
from dataclasses import replace

import pytest
import torch
from torch._dynamo import OptimizedModule
from torch._dynamo.testing import CompileCounter
from training_helpers import (
    RUNTIME,
    a_teacher,
    assert_equal_states,
    final_state,
    image_data,
    mapping,
    only,
    rows,
    run_interrupted,
    run_student,
    student_spec,
    teacher_spec,
)

from trainers import convolutions
from trainers.compiled import compiled
from trainers.evaluate import TestSet
from trainers.events import Evaluation, Snapshot
from trainers.models import Teacher
from trainers.precision import autocast, in_precision
from trainers.spec import AUGMENTATIONS, AdamW, Request
from trainers.teacher import train_teacher

DATA = image_data()
COMPILED = replace(RUNTIME, compile=True)


@pytest.fixture
def counter(monkeypatch, tmp_path):
    """Counts compilations, of a process that has compiled nothing yet. Convolutions stay what they
    are: as products (`test_convolutions.py`) they have other last bits."""
    monkeypatch.setattr(convolutions, "_SMALL", 0)
    torch.compiler.reset()
    counter, compile = CompileCounter(), torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **options: compile(f, backend=counter, **options)
    )
    monkeypatch.setenv("TARGETSWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    yield counter
    torch.compiler.reset()


@pytest.mark.parametrize("strategy", [pytest.param("A", marks=pytest.mark.slow), "B"])
def test_the_next_run_of_an_architecture_compiles_nothing(strategy, counter, tmp_path):
    """So no model need be kept for it. And what was compiled computes what was not."""
    spec = student_spec(strategy, augmentation=AUGMENTATIONS["mixup"])
    given = mapping(strategy, tmp_path, DATA)
    first = run_student(spec, DATA, 3, runtime=COMPILED, **given)
    frames = counter.frame_count
    # Student in training and in evaluation, augmentation, mixing, losses; the teacher.
    assert frames == {"A": 5, "B": 6}[strategy]
    given = mapping(strategy, tmp_path, DATA)
    again = run_student(replace(spec, seed=1), DATA, 3, runtime=COMPILED, **given)
    assert counter.frame_count == frames
    plain = run_student(spec, DATA, 3, **mapping(strategy, tmp_path, DATA))
    assert rows(first) == rows(plain)
    assert_equal_states(final_state(first), final_state(plain))
    assert rows(again) != rows(plain)


def test_a_teachers_validation_is_compiled(counter):
    request = Request(horizon=3, presets=(99.0,))
    compiled_run = list(train_teacher(teacher_spec(), DATA, request, COMPILED))
    assert counter.frame_count == 3  # in training, in evaluation, augmentation
    plain = list(train_teacher(teacher_spec(), DATA, request, RUNTIME))
    assert rows(compiled_run) == rows(plain)
    assert len([event for event in plain if isinstance(event, Evaluation)]) == 4


def test_one_program_judges_every_state_of_a_teacher(counter, monkeypatch):
    """Screened, validated, bisected, or taken up again: at a window's edge rounding decides."""
    judges, correct = [], TestSet.correct

    def spy(tests, model, heads):
        judges.append(type(model))
        return correct(tests, model, heads)

    monkeypatch.setattr(TestSet, "correct", spy)
    spec = teacher_spec(optimizer=AdamW(lr=1e-2, weight_decay=0.01))
    request = Request(horizon=24, presets=(90.0,), validate_every=4, screen=50)

    def search(runtime):
        judges.clear()
        return run_interrupted(
            lambda state, stop: list(
                train_teacher(spec, DATA, request, runtime, state=state, stop=stop)
            ),
            (10,),
        )

    found = search(COMPILED)
    assert any(0 < snapshot.alpha < 1 for snapshot in only(Snapshot, found))
    assert set(judges) == {OptimizedModule}
    assert counter.frame_count == 4  # in training, on the whole set, on its part; augmentation
    asked = len(judges)
    assert rows(search(RUNTIME)) == rows(found)
    assert set(judges) == {Teacher}
    assert len(judges) == asked


def test_kernels_are_kept_in_a_folder_of_ours_unless_told(counter, monkeypatch, tmp_path):
    compiled(torch.sin, wanted=False)
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    compiled(torch.sin, wanted=True)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "cache" / "inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiled(torch.sin, wanted=True)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


def test_a_teacher_rounded_once_says_what_autocast_says():
    teacher, views = a_teacher(DATA), torch.randn(6, 3, 8, 8)
    rounded = in_precision(teacher, "bf16")
    assert rounded.backbone.conv1.weight.dtype == torch.bfloat16
    assert rounded.backbone.bn1.weight.dtype == torch.float32
    assert teacher.backbone.conv1.weight.dtype == torch.float32
    assert in_precision(teacher, "fp32") is teacher
    with torch.inference_mode(), autocast(torch.device("cpu"), "bf16"):
        assert torch.equal(rounded(views), teacher(views))
