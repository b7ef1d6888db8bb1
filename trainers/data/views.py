"""From one encoded picture to the pixels of one view.

JPEG files can be decoded at a half, a quarter or an eighth of their size for a fraction of the work
(the decoder leaves frequencies out). That is done as long as `_SPARE` times the pixels that are
wanted remain on each side, so that the resizing after it still has something to average.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from trainers.data.decode import fit, opened, rgb
from trainers.data.source import Image

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

__all__ = ["Box", "crop_view", "plain_shorter_side", "plain_view"]

Box = tuple[int, int, int, int]
"""Top, left, height, width, in pixels of the picture."""

_SPARE = 2


def plain_shorter_side(size: int) -> int:
    """To what the shorter side is resized before `size` pixels are cropped: 256 for 224."""
    return round(size * 256 / 224)


def plain_view(encoded: memoryview | bytes, where: str, size: int) -> Image:
    """The view of evaluation and of strategy C's targets, uint8 (3, size, size): the shorter side
    resized to 256/224 of the size (bilinear, antialiased), the centre cropped."""
    shorter = plain_shorter_side(size)
    with opened(encoded, where) as picture:
        _reduce(picture, min(picture.size) // (shorter * _SPARE))
        return fit(rgb(picture), size, shorter=shorter)


def crop_view(encoded: memoryview | bytes, where: str, box: Box, size: int) -> Image:
    """The box resized to uint8 (3, size, size), bilinear with antialias, as torchvision's
    `resized_crop`; at a reduced scale the box's edges lie between pixels."""
    from PIL.Image import Resampling

    top, left, height, width = box
    with opened(encoded, where) as picture:
        full_width, full_height = picture.size
        _reduce(picture, min(height, width) // (size * _SPARE))
        x, y = picture.width / full_width, picture.height / full_height
        # Cropped to whole pixels first: resizing alone would look at pixels beyond the box.
        edges = left * x, top * y, (left + width) * x, (top + height) * y
        outer = (
            math.floor(edges[0]), math.floor(edges[1]),
            min(math.ceil(edges[2]), picture.width), min(math.ceil(edges[3]), picture.height),
        )  # fmt: skip
        cropped = rgb(picture.crop(outer))
        inner = (
            edges[0] - outer[0], edges[1] - outer[1],
            min(edges[2] - outer[0], cropped.width), min(edges[3] - outer[1], cropped.height),
        )  # fmt: skip
        view = cropped.resize((size, size), Resampling.BILINEAR, box=inner)
    return np.ascontiguousarray(np.asarray(view, dtype=np.uint8).transpose(2, 0, 1))


def _reduce(picture: PILImage, at_most: int) -> None:
    """Has a JPEG decoded at 1/2, 1/4 or 1/8, the least that is not below 1/at_most."""
    factor = next(factor for factor in (8, 4, 2, 1) if factor <= max(at_most, 1))
    if factor > 1:
        picture.draft(None, (max(picture.width // factor, 1), max(picture.height // factor, 1)))
