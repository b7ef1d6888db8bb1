"""Files of weights: round trips, damage, and pickles that would run code."""

import errno
import hashlib
import io
import os
import pickle

import pytest
import torch
from training_helpers import a_teacher, assert_equal_states, image_data, state_bytes, teacher_spec

from trainers.checkpoint import (
    _MAGIC,
    dump_weights,
    parse_state,
    parse_weights,
    weights_digest,
    write_state,
)
from trainers.errors import CheckpointError
from trainers.events import Checkpoint
from trainers.spec import Request, Runtime
from trainers.teacher import train_teacher


def a_state():
    model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    return {
        "step": 7,
        "model": dict(model.state_dict()),
        "optimizer": {"state": {0: {"step": torch.tensor(7.0)}}, "groups": [{"lr": 1e-3}]},
        "elapsed_s": 1.5,
    }


def test_states_come_back_as_they_were():
    state = a_state()
    found = parse_state(state_bytes(state))
    assert_equal_states(state, found)
    assert found["model"]["weight"].stride() == state["model"]["weight"].stride()


def test_a_flipped_bit_anywhere_is_noticed():
    data = state_bytes(a_state())
    for place in [*range(0, 60), *range(60, len(data), 97), len(data) - 1]:
        damaged = bytearray(data)
        damaged[place] ^= 1
        with pytest.raises(CheckpointError):
            parse_state(bytes(damaged))


def test_a_truncated_or_foreign_file_is_refused():
    data = state_bytes(a_state())
    for length in (0, 5, len(_MAGIC), len(_MAGIC) + 31, len(_MAGIC) + 32, len(data) - 1):
        with pytest.raises(CheckpointError):
            parse_state(data[:length])
    with pytest.raises(CheckpointError):
        parse_state(b"PK" + data)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_state_with_the_right_checksum_runs_no_code(tmp_path, legacy):
    trap = tmp_path / "trap"
    if legacy:
        payload = pickle.dumps(Malicious(trap), protocol=2)
    else:
        torch.save({"step": Malicious(trap)}, tmp_path / "file")
        payload = (tmp_path / "file").read_bytes()
    data = _MAGIC + hashlib.sha256(payload).digest() + payload
    with pytest.raises(CheckpointError):
        parse_state(data)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Malicious(trap)))  # the trap works
    assert trap.exists()


def test_a_state_that_is_no_mapping_is_refused():
    with pytest.raises(CheckpointError, match="no state"):
        parse_state(state_bytes([1, 2]))


def test_weights_come_back_and_have_one_digest():
    weights = a_teacher(image_data()).to(memory_format=torch.channels_last).state_dict()
    data = dump_weights(weights)
    found = parse_weights(data)
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name
    contiguous = {name: value.contiguous() for name, value in reversed(weights.items())}
    assert weights_digest(dump_weights(contiguous)) == weights_digest(data)
    assert weights_digest(data) == hashlib.sha256(data).hexdigest()
    contiguous["classifier.bias"] = contiguous["classifier.bias"] + 1e-6
    assert weights_digest(dump_weights(contiguous)) != weights_digest(data)


@pytest.mark.parametrize("length", [0, 3, 8, 100, -1])
def test_a_truncated_snapshot_is_refused(length):
    data = dump_weights({"a": torch.arange(50.0), "b": torch.ones(3, 3)})
    with pytest.raises(CheckpointError):
        parse_weights(data[:length])
    with pytest.raises(CheckpointError):
        parse_weights(pickle.dumps({"a": 1}))


def test_a_state_is_its_checksum_and_torchs_archive():
    """The format of every store there is, made at once as it was before it was streamed."""
    state = a_state()
    stream = io.BytesIO()
    torch.save(state, stream)
    payload = stream.getvalue()
    assert state_bytes(state) == _MAGIC + hashlib.sha256(payload).digest() + payload


class Stream(io.BytesIO):
    """Says how much it was given at a time at most, and is full at `room` bytes."""

    def __init__(self, room=1 << 30):
        super().__init__()
        self.room = room
        self.most = 0

    def write(self, data):
        self.most = max(self.most, len(data))
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_a_state_is_written_tensor_by_tensor():
    stream = Stream()
    write_state({"model": {name: torch.ones(10_000) for name in "abcdef"}}, stream)
    assert stream.most == 40_000


def test_wherever_a_stream_is_full_its_own_error_is_raised():
    """torch's writer would name a position in its archive."""
    size = len(state_bytes(a_state()))
    for room in [*range(0, size, 131), size - 1]:
        with pytest.raises(OSError, match="No space left") as caught:
            write_state(a_state(), Stream(room))
        assert caught.value.errno == errno.ENOSPC
    write_state(a_state(), Stream(size))


def test_an_error_of_torchs_own_is_not_one_of_the_stream(monkeypatch):
    def broken(state, stream):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RuntimeError, match="no such thing"):
        write_state(a_state(), io.BytesIO())


def test_a_teachers_states_are_copies_that_later_steps_leave_alone():
    """Also the weights of its last validation, which a state between two of them brings along:
    states are written while the training goes on."""
    request = Request(horizon=7, presets=(99.0,), validate_every=3)
    runtime = Runtime(checkpoint_every_s=0.0)
    held = []
    for event in train_teacher(teacher_spec(), image_data(), request, runtime):
        if isinstance(event, Checkpoint):
            held.append((event.state, state_bytes(event.state)))
    assert sum("validated" in state for state, _ in held) >= 3
    for state, at_once in held:
        assert state_bytes(state) == at_once
