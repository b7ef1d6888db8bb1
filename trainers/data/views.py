"""From one encoded picture to the pixels of one view.

JPEG files can be decoded at a half, a quarter or an eighth of their size for a fraction of the work
(the decoder leaves frequencies out). That is done as long as `_SPARE` times the pixels that are
wanted remain on each side, so that the resizing after it still has something to average. Of a crop
nothing below it is decoded (`jpeg`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trainers.data.decode import fit, opened, planes, rgb
from trainers.data.jpeg import decode_rows, read_header
from trainers.data.source import Image

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
    from PIL.Image import fromarray

    shorter = plain_shorter_side(size)
    decoded = _decode(encoded, where, shorter)
    return fit(fromarray(decoded.pixels), size, shorter=shorter)


def crop_view(encoded: memoryview | bytes, where: str, box: Box, size: int) -> Image:
    """The box resized to uint8 (3, size, size), bilinear with antialias, as torchvision's
    `resized_crop`; at a reduced scale the box's edges lie between pixels."""
    from PIL.Image import Resampling, fromarray

    top, left, height, width = box
    decoded = _decode(encoded, where, size, box)
    x, y = decoded.width / decoded.full_width, decoded.height / decoded.full_height
    # Cropped to whole pixels first: resizing alone would look at pixels beyond the box.
    edges = left * x, top * y, (left + width) * x, (top + height) * y
    outer_left, outer_top = math.floor(edges[0]), math.floor(edges[1])
    outer_right = min(math.ceil(edges[2]), decoded.width)
    outer_bottom = min(math.ceil(edges[3]), decoded.height)
    cropped = fromarray(decoded.pixels[outer_top:outer_bottom, outer_left:outer_right])
    inner = (
        edges[0] - outer_left, edges[1] - outer_top,
        min(edges[2] - outer_left, cropped.width), min(edges[3] - outer_top, cropped.height),
    )  # fmt: skip
    return planes(cropped.resize((size, size), Resampling.BILINEAR, box=inner))


@dataclass(frozen=True)
class _Decoded:
    """pixels: RGB, uint8 (rows, width, 3); rows below the box may be missing. height, width: of the
    whole picture at the scale it is decoded at. full_height, full_width: as it is encoded."""

    pixels: Image
    height: int
    width: int
    full_height: int
    full_width: int


def _decode(
    encoded: memoryview | bytes, where: str, target: int, box: Box | None = None
) -> _Decoded:
    """What is needed of a picture of which the box (None: all of it) becomes a view whose shorter
    side has `target` pixels. Raises DataError that names `where`."""
    header = read_header(encoded)
    if header is not None:
        top, _, height, width = box or (0, 0, header.height, header.width)
        factor = _factor(min(height, width), target)
        pixels = decode_rows(encoded, header, rows=top + height, factor=factor)
        if pixels is not None:
            scaled = -(-header.height // factor), -(-header.width // factor)
            return _Decoded(pixels, *scaled, header.height, header.width)
    with opened(encoded, where) as picture:
        full_width, full_height = picture.size
        factor = _factor(min(box[2:] if box else picture.size), target)
        if factor > 1:  # heeded by JPEGs alone
            picture.draft(None, (max(full_width // factor, 1), max(full_height // factor, 1)))
        pixels = np.asarray(rgb(picture), dtype=np.uint8)
    rows, columns, _ = pixels.shape
    return _Decoded(pixels, rows, columns, full_height, full_width)


def _factor(side: int, target: int) -> int:
    """One part in how many a JPEG is decoded at, so that `side` pixels still leave some to spare
    for `target`."""
    at_most = side // (target * _SPARE)
    return next(factor for factor in (8, 4, 2, 1) if factor <= max(at_most, 1))
