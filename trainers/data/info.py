"""What a planner must know of a data set without opening it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DatasetInfo"]


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """fingerprint: identity of the content (pinned in code for official data sets). smallest_class:
    training images in the smallest class, the upper bound of IPC. balanced: every class has that
    many. image_size: height = width in pixels. mean, std: per channel, of pixels in [0, 1]."""

    name: str
    fingerprint: str
    num_classes: int
    num_train: int
    num_test: int
    smallest_class: int
    balanced: bool
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
