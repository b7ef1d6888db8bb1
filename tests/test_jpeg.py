"""JPEG files decoded in part: Pillow's pixels, no more than needed, nothing overlooked."""

from __future__ import annotations

import io
import math
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from PIL.Image import Resampling

from tests.stand_in_data import encoded, picture
from trainers.data import views
from trainers.data.jpeg import decode_rows, read_header
from trainers.data.views import Box, crop_view, plain_shorter_side, plain_view
from trainers.errors import DataError

FORMS: dict[str, dict[str, Any]] = {
    "420": {},
    "422": {"subsampling": "4:2:2"},
    "444": {"subsampling": "4:4:4"},
    "rgb": {"keep_rgb": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "comment": {"comment": b"\xff\xc0 is no marker here"},
    "rough": {"quality": 20},
}


def jpeg(image: Image.Image, **form: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "JPEG", **{"quality": 92, **form})
    return sink.getvalue()


def photo(height: int, width: int, mode: str = "RGB") -> Image.Image:
    return picture(3, 1, (height, width), mode)


def factor_of(side: int, target: int) -> int:
    return max(f for f in (1, 2, 4, 8) if f == 1 or f * target * 2 <= side)


def by_pillow(content: bytes, box: Box, size: int) -> npt.NDArray[np.uint8]:
    """The crop of a picture that Pillow decodes whole."""
    top, left, height, width = box
    with Image.open(io.BytesIO(content)) as image:
        full, factor = image.size, factor_of(min(height, width), size)
        image.draft(None, (full[0] // factor, full[1] // factor))
        x, y = image.width / full[0], image.height / full[1]
        edges = left * x, top * y, (left + width) * x, (top + height) * y
        near, far = [math.floor(e) for e in edges[:2]], [math.ceil(e) for e in edges[2:]]
        outer = (*near, min(far[0], image.width), min(far[1], image.height))
        part = image.crop(outer).convert("RGB")
        inner = [edges[i] - near[i % 2] for i in range(4)]
        inner[2:] = min(inner[2], part.width), min(inner[3], part.height)
        view = part.resize((size, size), Resampling.BILINEAR, box=tuple(inner))
    return np.asarray(view).transpose(2, 0, 1)


def boxes(height: int, width: int) -> list[Box]:
    """Whole, corners, thin ones, and ends around a row of blocks."""
    low, narrow = height // 3, width // 3
    ends = [(0, 5, bottom, narrow) for bottom in (15, 16, 17, 31, 32, 33, 47, 48)]
    corners = [(0, 0, low, narrow), (height - low, width - narrow, low, narrow)]
    return [(0, 0, height, width), (7, 11, low, narrow), (low, 0, 8, width), *corners, *ends]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(101, 77), (96, 128)])
def test_crops_are_pillows_bit_for_bit(form: str, size: tuple[int, int]) -> None:
    content = jpeg(photo(*size), **FORMS[form])
    for box, pixels in product(boxes(*size), (2, 5, 16, 40)):
        found = crop_view(content, "", box, pixels)
        assert np.array_equal(found, by_pillow(content, box, pixels)), (box, pixels)


@pytest.mark.parametrize(("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG")])
def test_crops_of_other_pictures_are_pillows_too(mode: str, kind: str) -> None:
    content = encoded(photo(70, 90, mode), kind)
    for box in boxes(70, 90):
        assert np.array_equal(crop_view(content, "", box, 12), by_pillow(content, box, 12)), box


@pytest.mark.parametrize("form", FORMS)
def test_plain_views_are_pillows_bit_for_bit(form: str) -> None:
    content = jpeg(photo(150, 190), **FORMS[form])
    for size in (4, 16, 60):
        shorter = plain_shorter_side(size)
        image, factor = Image.open(io.BytesIO(content)), factor_of(150, shorter)
        image.draft(None, (image.width // factor, image.height // factor))
        sides = shorter * image.width // image.height, shorter
        image = image.convert("RGB").resize(sides, Resampling.BILINEAR)
        left, top = round((image.width - size) / 2), round((image.height - size) / 2)
        expected = np.asarray(image)[top : top + size, left : left + size].transpose(2, 0, 1)
        assert np.array_equal(plain_view(content, "", size), expected)


def test_rows_below_are_not_decoded() -> None:
    tall = photo(400, 60)
    for form, row, factor in (("420", 16, 1), ("444", 8, 1), ("420", 16, 4)):
        content = jpeg(tall, **FORMS[form])
        header = read_header(content)
        assert header is not None
        assert (header.height, header.width, header.row_height) == (400, 60, row)
        for rows in (1, row, row + 1, 399, 400):
            pixels = decode_rows(content, header, rows=rows, factor=factor)
            assert pixels is not None
            coded = min((math.ceil(rows / row) + 1) * row, 400)
            assert pixels.shape == (math.ceil(coded / factor), math.ceil(60 / factor), 3)
    content = jpeg(tall, progressive=True)  # its rows come in passes: all, or none
    header = read_header(content)
    assert header is not None
    pixels = decode_rows(content, header, rows=8, factor=1)
    assert pixels is not None
    assert pixels.shape == (400, 60, 3)


def test_what_is_no_plain_jpeg_is_pillows_to_decode() -> None:
    content = jpeg(photo(40, 40))
    assert read_header(content) is not None
    assert read_header(memoryview(content)) == read_header(content)
    assert read_header(jpeg(photo(40, 40, "L"))) is not None
    frame = content.index(b"\xff\xc0")
    others = {
        "png": encoded(photo(40, 40), "PNG"),
        "cmyk": jpeg(photo(40, 40, "CMYK")),
        "arithmetic": content[:frame] + b"\xff\xc9" + content[frame + 2 :],
        "12 bits": content[: frame + 4] + b"\x0c" + content[frame + 5 :],
        "no height": content[: frame + 5] + b"\0\0" + content[frame + 7 :],
        "no frame": content[:frame] + content[-2:],
        "no marker": content[:2] + b"\0" + content[3:],
        "cut off": content[:-40],
        "header only": content[:2],
        "length beyond the end": content[:4] + b"\xff\xff" + content[6:200] + content[-2:],
    }
    for name, other in others.items():
        assert read_header(other) is None, name


def test_harmless_remarks_change_nothing() -> None:
    """Bytes before the end of which nobody knows what they are: the decoder warns, Pillow does not
    mind, and nor do we."""
    content = jpeg(photo(64, 64))
    odd = content[:-2] + bytes(5) + content[-2:]
    header = read_header(odd)
    assert header is not None
    assert decode_rows(odd, header, rows=64, factor=1) is None
    for box in ((0, 0, 64, 64), (3, 4, 20, 30)):
        expected = crop_view(content, "", box, 16)
        assert np.array_equal(crop_view(odd, "", box, 16), expected)
    assert np.array_equal(plain_view(odd, "", 16), plain_view(content, "", 16))


@pytest.mark.parametrize("box", [(0, 0, 64, 64), (0, 0, 10, 10)])
def test_what_ends_too_early_is_an_error_whatever_is_wanted_of_it(box: Box) -> None:
    content = jpeg(photo(64, 64))
    with pytest.raises(DataError, match="picture 3 of x cannot be decoded"):
        crop_view(content[: len(content) // 2], "picture 3 of x", box, 16)


def test_pillow_decodes_no_plain_jpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr(views, "opened", refuse)
    for form in FORMS.values():
        crop_view(jpeg(photo(64, 64), **form), "", (0, 0, 30, 30), 16)
    with pytest.raises(AssertionError):
        crop_view(encoded(photo(64, 64), "PNG"), "", (0, 0, 30, 30), 16)
