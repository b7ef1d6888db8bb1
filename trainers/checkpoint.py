"""Files of weights: safetensors for snapshots, a checksummed torch archive for resumable states.

Nothing read here may run code: `torch.load(weights_only=True)` and safetensors only. A state is
followed by its SHA-256, because torch's archive does not notice flipped bytes.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from typing import Any

import torch
from torch import Tensor

from trainers.errors import CheckpointError

__all__ = [
    "check_state",
    "dump_state",
    "dump_weights",
    "parse_state",
    "parse_weights",
    "weights_digest",
]

_MAGIC = b"targetsweep-state-1\n"


def dump_state(state: dict[str, Any]) -> bytes:
    """A resumable state (tensors and plain values) as bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    return _MAGIC + hashlib.sha256(payload).digest() + payload


def check_state(data: bytes) -> memoryview:
    """What follows the checksum. Raises CheckpointError unless it is what `dump_state` wrote."""
    head = len(_MAGIC)
    payload = memoryview(data)[head + 32 :]
    if data[:head] != _MAGIC or hashlib.sha256(payload).digest() != data[head : head + 32]:
        raise CheckpointError("its checksum does not fit")
    return payload


def parse_state(data: bytes) -> dict[str, Any]:
    """The state `dump_state` wrote. Raises CheckpointError on any damage."""
    payload = check_state(data)
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"it cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError("it holds no state")
    return state


def dump_weights(weights: dict[str, Tensor]) -> bytes:
    """A teacher snapshot as safetensors."""
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in weights.items()})


def parse_weights(data: bytes) -> dict[str, Tensor]:
    """The snapshot `dump_weights` wrote. Raises CheckpointError on any damage."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except SafetensorError as error:
        raise CheckpointError(f"it cannot be read: {error}") from error


def weights_digest(data: bytes) -> str:
    """SHA-256 (64 hex digits) of a snapshot's bytes: the identity that students record."""
    return hashlib.sha256(data).hexdigest()
