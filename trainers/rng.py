"""Counter-based randomness: every draw is a pure function of (role, seed, stream, counter).

No generator is carried from step to step, so a resumed run draws what an uninterrupted one would,
a prefix draws what the longer run draws, and every rank can draw the global batch by itself.
Everything is drawn on the CPU: the device changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch

__all__ = ["Role", "Stream", "generator", "seeded_torch", "stream_seed"]

Role = Literal["teacher", "student", "probe", "data"]
Stream = Literal["init", "subset", "order", "augment", "mix", "dropout", "label_noise", "selection"]


def stream_seed(role: Role, seed: int, stream: Stream, counter: int) -> int:
    """The 128-bit seed of one draw. A teacher, a student and a probe of equal seed
    share nothing."""
    text = f"targetsweep/{role}/{seed}/{stream}/{counter}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(role: Role, seed: int, stream: Stream, counter: int) -> np.random.Generator:
    """A NumPy generator (Philox, itself counter-based) for one draw of one stream."""
    return np.random.Generator(np.random.Philox(key=stream_seed(role, seed, stream, counter)))


@contextmanager
def seeded_torch(role: Role, seed: int, stream: Stream, counter: int) -> Iterator[None]:
    """Seeds torch's global CPU generator inside the block and restores it after: for `nn.Module`
    constructors, which initialise their parameters from it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(role, seed, stream, counter) % 2**63)
        yield
