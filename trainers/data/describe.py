"""What a data set is, read off its labels and its pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from trainers.data.catalogue import OFFICIAL
from trainers.data.info import DatasetInfo
from trainers.data.source import Labels
from trainers.errors import DataError

__all__ = ["Moments", "content_and_classes", "describe", "moments"]

_RGB = tuple[float, float, float]
Moments = tuple[_RGB, _RGB]
"""Mean and standard deviation per channel of pixels in [0, 1]."""


def describe(
    name: str,
    train_labels: Labels,
    test_labels: Labels,
    *,
    image_size: int,
    classes: tuple[str, ...] | None,
) -> DatasetInfo:
    """All but the fingerprint and, unless the data set is a known one, the moments. Raises
    DataError where there are fewer class names than labels."""
    num_classes = _labelled_classes(train_labels, test_labels)
    if classes is not None and num_classes > len(classes):
        raise DataError(
            f"{name!r} has {len(classes)} class names, but a label {num_classes - 1}",
            "name the right label column (label_column), or correct the class names",
        )
    counts = np.bincount(train_labels, minlength=len(classes or ()) or num_classes)
    known = OFFICIAL.get(name)
    zeros = (0.0, 0.0, 0.0)
    return DatasetInfo(
        name=name,
        fingerprint="",
        num_classes=len(counts),
        num_train=len(train_labels),
        num_test=len(test_labels),
        smallest_class=int(counts.min()),
        balanced=bool((counts == counts[0]).all()),
        image_size=image_size,
        mean=known.mean if known else zeros,
        std=known.std if known else zeros,
    )


def content_and_classes(
    content: str, info: DatasetInfo, train_labels: Labels, test_labels: Labels
) -> str:
    """The arrays' fingerprint; with the number of classes where class names make it exceed what the
    labels show, since a model of that data set is another one."""
    if info.num_classes == _labelled_classes(train_labels, test_labels):
        return content
    return hashlib.sha256(f"{content} {info.num_classes}".encode()).hexdigest()


def _labelled_classes(train_labels: Labels, test_labels: Labels) -> int:
    return 1 + int(max(train_labels.max(), test_labels.max()))


def moments(chunks_NCHW: Iterable[npt.NDArray[np.uint8]]) -> Moments:
    """Mean and std per channel of pixels in [0, 1], to four digits. From histograms: exact sums,
    and one chunk of images in memory at a time."""
    histogram_CV = np.zeros((3, 256), dtype=np.int64)
    for chunk in chunks_NCHW:
        for channel in range(3):
            histogram_CV[channel] += np.bincount(chunk[:, channel].ravel(), minlength=256)
    values_V = np.arange(256) / 255
    weights_CV = histogram_CV / histogram_CV.sum(axis=1, keepdims=True)
    mean_C = weights_CV @ values_V
    std_C = np.sqrt((weights_CV * (values_V - mean_C[:, None]) ** 2).sum(axis=1))
    return _rounded(mean_C), _rounded(std_C)


def _rounded(values_C: npt.NDArray[np.float64]) -> _RGB:
    red, green, blue = (round(float(value), 4) for value in values_C)
    return red, green, blue
