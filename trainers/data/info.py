"""What a planner must know of a data set without opening it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PROVISIONAL", "DatasetInfo"]

PROVISIONAL = "provisional"
"""Fingerprint of a data set that nobody has opened yet. Keys made with it are not final."""


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """fingerprint: identity of the content (pinned in code for official data sets). smallest_class:
    training images in the smallest class, the upper bound of IPC. balanced: every class has that
    many. image_size: height = width in pixels; of pictures that stay encoded, that of their views
    unless a run says otherwise. mean, std: per channel, of pixels in [0, 1]."""

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
