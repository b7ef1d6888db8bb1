"""Files of weights: round trips, damage, and pickles that would run code."""

import hashlib
import os
import pickle

import pytest
import torch
from training_helpers import a_teacher, assert_equal_states, image_data

from trainers.checkpoint import (
    _MAGIC,
    dump_state,
    dump_weights,
    parse_state,
    parse_weights,
    weights_digest,
)
from trainers.errors import CheckpointError


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
    found = parse_state(dump_state(state))
    assert_equal_states(state, found)
    assert found["model"]["weight"].stride() == state["model"]["weight"].stride()


def test_a_flipped_bit_anywhere_is_noticed():
    data = dump_state(a_state())
    for place in [*range(0, 60), *range(60, len(data), 97), len(data) - 1]:
        damaged = bytearray(data)
        damaged[place] ^= 1
        with pytest.raises(CheckpointError):
            parse_state(bytes(damaged))


def test_a_truncated_or_foreign_file_is_refused():
    data = dump_state(a_state())
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
        parse_state(dump_state([1, 2]))


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
