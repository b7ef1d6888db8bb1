"""The discipline of a captured step, on the CPU: what a CUDA graph would replay is what is run.

A graph records addresses and numbers. So every step must ask the device for the same operations, at
the same addresses, with the same numbers; and nothing that a step made, its gradients apart, may be
needed after it. Both are watched below, operation by operation. What only CUDA can show stands in
test_gpu_graphs.py.
"""

import gc
import weakref
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_helpers import (
    CPU,
    RUNTIME,
    assert_equal_states,
    image_data,
    mapping,
    student_spec,
    teacher_spec,
)

from trainers.distributed import World
from trainers.graphs import CudaCapture, Replayed, _stream_of, may_be_captured
from trainers.probe import build_probe_engine
from trainers.spec import AUGMENTATIONS, Augmentation, ProbeSpec, StudentRef
from trainers.student import build_engine
from trainers.tally import WINDOW
from trainers.teacher import build_engine as build_teacher_engine

DATA = image_data()
AUGMENTED = {
    **AUGMENTATIONS,
    "std+mixup": replace(AUGMENTATIONS["std"], mixup_alpha=0.8),
    "std+cutmix": replace(AUGMENTATIONS["std"], cutmix_alpha=1.0),
}


class Recorded(TorchDispatchMode):
    """Everything that is asked of the device: operation, numbers, and the address of each tensor
    that was there before. Keeps what was made."""

    def __init__(self):
        super().__init__()
        self.calls, self.made = [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        self.calls.append((str(func), [self._told(value) for value in given]))
        result = func(*args, **kwargs)
        there = {address_of(value) for value in given if isinstance(value, torch.Tensor)}
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and address_of(value) not in there:
                self.made[address_of(value)] = value  # kept, so that no other gets its address
        return result

    def _told(self, value):
        if isinstance(value, torch.ScriptObject):
            return type(value).__name__  # the profiler's marks
        if not isinstance(value, torch.Tensor):
            return value
        if address_of(value) in self.made:
            return "made here"
        return address_of(value), value.shape, value.stride()


def address_of(value):
    return value.untyped_storage().data_ptr()


class Graph:
    """A stand-in for a CUDA graph: replays by calling, and demands what a graph would need."""

    def __init__(self, function):
        self.function = function
        self._first = None
        self.replays = 0

    def replay(self):
        with Recorded() as recorded:
            self.function()
        if self._first is None:
            self._first = recorded.calls
        assert recorded.calls == self._first
        for value in recorded.made.values():
            _poison(value)
        self.replays += 1

    def reset(self):
        self.function = None


@torch.no_grad()
def _poison(value):
    flat = torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage())
    flat.fill_(255)  # NaN as a float, −1 as an integer


class Called:
    """A stand-in for `CudaCapture` whose graphs call what they captured."""

    def warm_up(self, function):
        function()

    def capture(self, function):
        return Graph(function)


class Capture:
    """The same, which looks at the engine that it captures."""

    def __init__(self, engine):
        self._engine = engine
        self.graphs, self.warm_ups = [], 0

    def warm_up(self, function):
        self.warm_ups += 1
        function()

    def capture(self, function):
        assert all(p.grad is None for p in self._engine.model.parameters())
        assert all(group["capturable"] for group in self._engine._optimizer.param_groups)
        self.graphs.append(Graph(function))
        return self.graphs[-1]


def replayed(engine):
    """The engine, as it runs where there are graphs."""
    capture = Capture(engine)
    engine._replayed = Replayed(capture)
    return capture


def probe_engine():
    student = student_spec("A")
    spec = ProbeSpec(
        student=StudentRef(key="0" * 64, step=1), dataset=student.dataset,
        backbone=student.backbone, augmentation=student.augmentation, optimizer=student.optimizer,
        batch_size=20, seed=0,
    )  # fmt: skip
    weights = build_engine(student, DATA, RUNTIME, World()).model.state_dict()
    return build_probe_engine(spec, DATA, RUNTIME, World(), weights=weights)[0]


def engine_of(kind, augmentation, folder, **changes):
    torch.set_num_threads(1)
    if kind == "teacher":
        spec = teacher_spec(augmentation=augmentation)
        return build_teacher_engine(spec, DATA, RUNTIME, World())
    if kind == "probe":
        return probe_engine()
    spec = student_spec(kind, augmentation=augmentation, **changes)
    return build_engine(spec, DATA, RUNTIME, World(), **mapping(kind, folder, DATA))


CASES = [
    *(("A", name) for name in AUGMENTED),
    *((kind, name) for kind in ("B", "C") for name in ("std", "std+cutmix")),
    ("teacher", "std+mixup"),
    ("probe", "std"),
]


@pytest.mark.parametrize(("kind", "augmentation"), CASES)
def test_steps_ask_for_the_same_at_the_same_addresses(kind, augmentation, tmp_path):
    """Over the border of a block (64), and with everything that a step made spoilt after it."""
    plain = engine_of(kind, AUGMENTED[augmentation], tmp_path)
    graphed = engine_of(kind, AUGMENTED[augmentation], tmp_path)
    capture = replayed(graphed)
    for engine in (plain, graphed):
        engine.step = 59
        for _ in range(8):
            engine.update()
    assert capture.warm_ups == 3
    assert [graph.replays for graph in capture.graphs] == [5]
    assert graphed.means() == plain.means()
    assert_equal_states(graphed.state_dict(), plain.state_dict())


@pytest.mark.parametrize("precision", ["bf16"])
def test_half_precision_keeps_nothing_between_steps(precision, tmp_path):
    """Autocast's cache of weights ends with the step that filled it."""
    plain = engine_of("B", AUGMENTED["std"], tmp_path, precision=precision)
    graphed = engine_of("B", AUGMENTED["std"], tmp_path, precision=precision)
    replayed(graphed)
    for engine in (plain, graphed):
        for _ in range(8):
            engine.update()
    assert_equal_states(graphed.state_dict(), plain.state_dict())


def test_a_window_ends_for_a_captured_step_too(tmp_path):
    found = []
    for wanted in (False, True):
        engine = engine_of("A", Augmentation(), tmp_path)
        if wanted:
            replayed(engine)
        engine.step = WINDOW - 5
        means = []
        for _ in range(7):
            engine.update()
            means.append(engine.means())
        found.append(means)
    assert found[0] == found[1]


def test_a_state_that_is_taken_up_begins_with_a_new_graph(tmp_path):
    plain, graphed = (engine_of("C", AUGMENTED["mixup"], tmp_path) for _ in range(2))
    capture = replayed(graphed)
    for engine in (plain, graphed):
        for _ in range(5):
            engine.update()
        state = engine.state_dict()
        for _ in range(4):
            engine.update()
        engine.load_state_dict(state)
        for _ in range(5):
            engine.update()
    assert [graph.replays for graph in capture.graphs] == [6, 2]
    assert capture.warm_ups == 6
    assert_equal_states(graphed.state_dict(), plain.state_dict())
    assert not any(group["capturable"] for group in graphed._optimizer.param_groups)
    graphed.close()
    assert capture.graphs[-1].function is None


def test_a_capture_that_fails_says_how_to_do_without():
    class Broken:
        def warm_up(self, function):
            function()

        def capture(self, function):
            raise RuntimeError("operation not permitted when stream is capturing")

    calls, step = [], Replayed(Broken())
    for _ in range(3):
        step(lambda: calls.append(1), nullcontext)
    with pytest.raises(RuntimeError, match="not permitted") as caught:
        step(lambda: calls.append(1), nullcontext)
    assert "--no-cuda-graphs" in caught.value.__notes__[0]
    assert len(calls) == 3


def test_steps_of_one_worker_on_a_gpu_are_captured_unless_told_otherwise(monkeypatch):
    def engine(**changes):
        return build_engine(student_spec("A"), DATA, replace(RUNTIME, **changes), World())

    assert engine()._replayed is None  # on a CPU
    monkeypatch.setattr("trainers.engine.may_be_captured", lambda *where, **how: True)
    monkeypatch.setattr("trainers.engine.CudaCapture", lambda device: None)
    assert engine(cuda_graphs=False)._replayed is None
    assert engine()._replayed is not None


def test_what_may_be_captured():
    cuda, alone = torch.device("cuda"), World()
    assert may_be_captured(cuda, alone, stochastic=False)
    assert not may_be_captured(CPU, alone, stochastic=False)
    assert not may_be_captured(cuda, World(0, 2), stochastic=False)
    assert not may_be_captured(cuda, alone, stochastic=True)


def test_engines_of_a_process_are_captured_on_one_stream(monkeypatch):
    """Libraries keep memory for every stream that they meet."""
    made = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or object())
    _stream_of.cache_clear()
    try:
        first, second, other = (CudaCapture(torch.device("cuda", i)) for i in (0, 0, 1))
    finally:
        _stream_of.cache_clear()
    assert first._stream is second._stream
    assert made == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert other._stream is not first._stream


def test_an_engine_holds_itself_nowhere(tmp_path):
    """Else its memory on the device would stay until Python looks for cycles."""
    engine = engine_of("A", AUGMENTED["mixup"], tmp_path)
    engine._replayed = Replayed(Called())
    for _ in range(5):
        engine.update()
    engine.close()
    gone = weakref.ref(engine), weakref.ref(engine.batches), weakref.ref(engine.model)
    gc.disable()
    try:
        del engine
        assert [reference() for reference in gone] == [None, None, None]
    finally:
        gc.enable()
