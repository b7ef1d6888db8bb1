"""`scaling:` as a sweep writes it, for one data set: workers of a run, and GPUs of a worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from orchestrator.fieldtypes import Value, as_mapping

__all__ = ["AUTO", "DEFAULT", "ONE", "Share", "Workers", "named_datasets", "share_of", "workers_of"]

AUTO = "auto"
DEFAULT = "default"
"""The key of a mapping by data set that stands for all others."""

_BY_RULE: Mapping[str, int] = {"imagenet": 8}
"""`auto`: what fills a machine's GPUs where one would take weeks; one worker elsewhere."""


class Workers(NamedTuple):
    """is_auto: fewer will do where there are fewer devices, or where they do not divide a batch."""

    number: int
    is_auto: bool

    def joined(self, other: Workers) -> Workers:
        """Of two requests for one run: a number that somebody wrote stands above the rule; of two
        numbers the larger."""
        if self.is_auto != other.is_auto:
            return other if self.is_auto else self
        return max(self, other)


ONE = Workers(1, is_auto=True)


class Share(NamedTuple):
    """What a worker takes of a GPU. is_auto: less will do where it was measured that runs which
    share one get more done (`sharing`)."""

    number: float
    is_auto: bool

    def joined(self, other: Share) -> Share:
        """Of two requests for one run: a number that somebody wrote stands above the rule; of two
        numbers the larger."""
        if self.is_auto != other.is_auto:
            return other if self.is_auto else self
        return max(self, other)


def workers_of(value: Value, dataset: str | None) -> Workers:
    """What `scaling.workers` or `scaling.teacher_workers` says of the data set."""
    found = _for_dataset(value, dataset, AUTO)
    if found == AUTO:
        return Workers(_BY_RULE.get(dataset or "", 1), is_auto=True)
    return Workers(int(found), is_auto=False)


def share_of(value: Value, dataset: str | None) -> Share:
    """What `scaling.gpus_per_worker` says of the data set."""
    found = _for_dataset(value, dataset, AUTO)
    return Share(1.0, is_auto=True) if found == AUTO else Share(float(found), is_auto=False)


def named_datasets(value: Value) -> list[str]:
    """Data sets that a mapping names."""
    return [name for name in as_mapping(value) if name != DEFAULT] if _is_mapping(value) else []


def _for_dataset(value: Value, dataset: str | None, otherwise: Any) -> Any:
    if not _is_mapping(value):
        return value
    mapping = as_mapping(value)
    return mapping.get(dataset or DEFAULT, mapping.get(DEFAULT, otherwise))


def _is_mapping(value: Value) -> bool:
    return isinstance(value, tuple)
