"""torch.compile where a run asks for it, with what it builds kept on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from trainers.cache import cache_folder

__all__ = ["compiled"]

_VARIANTS = 64

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F, *, wanted: bool) -> F:
    """The function or module, compiled when it is first called, for the shapes of that call alone:
    those of a run hardly differ, and kernels for any shape are slower. Others compile again.

    Code that was compiled for one model serves every other of its architecture, so trials of one
    process compile once. torch counts the variants of a function (architectures, batch sizes,
    training and evaluation) and gives up on it at the ninth; a sweep over backbones has more.

    Kernels are kept below `cache_folder()`, unless TORCHINDUCTOR_CACHE_DIR says where: torch's own
    place is a temporary folder, which a node of a cluster may begin every job without.
    """
    if not wanted:
        return function
    import torch._dynamo.config as dynamo_config  # a second; nobody else should wait for it

    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    dynamo_config.recompile_limit = max(dynamo_config.recompile_limit, _VARIANTS)
    return cast(F, torch.compile(function, dynamic=False))
