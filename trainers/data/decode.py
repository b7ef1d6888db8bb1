"""Encoded images to arrays: PNG, JPEG, WebP and whatever else Pillow reads."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from trainers.data.source import Image, LocatedImage
from trainers.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

__all__ = ["decode", "decode_all", "fit", "fit_array", "opened", "planes", "rgb"]

_WINDOW = 256
"""Images decoded ahead of the consumer: bounds memory, keeps the threads busy."""


def fit(image: PILImage, image_size: int | None, *, shorter: int | None = None) -> Image:
    """An RGB image as uint8 (3, H, W); with `image_size`, its shorter side is resized to that, or
    to `shorter` (bilinear, antialiased), and its centre cropped, with torchvision's rounding."""
    from PIL.Image import Resampling

    resized = shorter or image_size
    if image_size is not None and resized is not None and not _fits(image, image_size, resized):
        width, height = image.size
        least = min(width, height)
        width, height = resized * width // least, resized * height // least
        image = image.resize((width, height), Resampling.BILINEAR)
        left, top = round((width - image_size) / 2), round((height - image_size) / 2)
        image = image.crop((left, top, left + image_size, top + image_size))
    return planes(image)


def planes(image: PILImage) -> Image:
    """An RGB image as uint8 (3, H, W)."""
    # Pillow gives a line's red, green and blue in turn: what is left to do moves whole lines.
    lines = np.frombuffer(image.tobytes("raw", "RGB;L"), dtype=np.uint8)
    lines = lines.reshape(image.height, 3, image.width)
    return np.ascontiguousarray(lines.transpose(1, 0, 2))


def _fits(image: PILImage, image_size: int, resized: int) -> bool:
    return resized == image_size and image.size == (image_size, image_size)


def fit_array(image: Image, image_size: int | None) -> Image:
    """`fit` for an image that is already an array, (3, H, W)."""
    from PIL.Image import fromarray

    if image_size is None or image.shape[1:] == (image_size, image_size):
        return image
    return fit(fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), image_size)


def decode(encoded: bytes, where: str, image_size: int | None = None) -> Image:
    """Encoded bytes to uint8 (3, H, W); greyscale becomes RGB. Raises DataError that names
    `where`."""
    with opened(encoded, where) as picture:
        return fit(rgb(picture), image_size)


@contextmanager
def opened(encoded: memoryview | bytes, where: str) -> Iterator[PILImage]:
    """The picture, its pixels not yet decoded. What goes wrong inside the block becomes a DataError
    that names `where`."""
    from PIL.Image import DecompressionBombError
    from PIL.Image import open as open_image

    try:
        with open_image(io.BytesIO(encoded)) as picture:
            yield picture
    # Pillow's plugins raise all of these on damaged files.
    except (OSError, SyntaxError, ValueError, DecompressionBombError) as error:
        raise DataError(
            f"{where} cannot be decoded: {error}",
            "replace the image, or remove it together with its label",
        ) from error


def rgb(picture: PILImage) -> PILImage:
    """Greyscale, CMYK, palettes and whatever else become RGB."""
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def decode_all(
    encoded: Iterable[tuple[bytes, str]], image_size: int | None
) -> Iterator[LocatedImage]:
    """Decodes (bytes, where) pairs in order, on all cores: Pillow releases the GIL."""

    def located(item: tuple[bytes, str]) -> LocatedImage:
        return decode(*item, image_size), item[1]

    items = iter(encoded)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        while window := list(islice(items, _WINDOW)):
            yield from pool.map(located, window)
