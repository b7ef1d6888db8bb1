"""JPEG files to pixels, no more of them than is wanted, by simplejpeg.

The pixels are Pillow's, bit for bit: both hand the work to libjpeg-turbo with the same settings
(the accurate DCT, smooth upsampling of colours). simplejpeg takes the file in one piece and gives
the pixels as they are used; Pillow feeds it in blocks and adds a fourth byte to each pixel.

Three quarters of the work is to undo the entropy coding, which goes row by row from the top
(`benchmarks/image_input.py`). So the decoder is told of a picture that ends below the rows that are
wanted: what lies further down is not decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["JpegHeader", "decode_rows", "read_header"]

_START = b"\xff\xd8"
_END = b"\xff\xd9"
_SEQUENTIAL = frozenset({0xC0, 0xC1})
_PROGRESSIVE = 0xC2
_NO_FRAME = frozenset({0xC4, *range(0xDB, 0xDE), *range(0xE0, 0xF0), 0xFE})
"""Segments that may stand before the frame: tables, application data, comments."""

_COLOURS = frozenset({1, 3})


@dataclass(frozen=True)
class JpegHeader:
    """height, width: of the picture, in pixels. height_at: where in the file the height stands.
    row_height: pixels that a row of coded blocks is high, 8 or 16 as a rule. is_sequential: coded
    from the top to the bottom once, not several times over (progressive)."""

    height: int
    width: int
    height_at: int
    row_height: int
    is_sequential: bool


def read_header(encoded: memoryview | bytes) -> JpegHeader | None:
    """What a file says of itself; None unless it is a JPEG of one or three colours, 8 bits each,
    whose end is there. Pillow has a word for everything else."""
    if encoded[:2] != _START or encoded[-2:] != _END:
        return None
    at = 2
    try:
        while encoded[at] == 0xFF:
            kind = encoded[at + 1]
            if kind in _SEQUENTIAL or kind == _PROGRESSIVE:
                return _frame(encoded, at)
            if kind not in _NO_FRAME:
                return None
            at += 2 + _number(encoded, at + 2)
    except IndexError:
        pass
    return None


def decode_rows(
    encoded: memoryview | bytes, header: JpegHeader, *, rows: int, factor: int
) -> npt.NDArray[np.uint8] | None:
    """RGB, uint8 (at least `rows` / factor, width / factor, 3), rounded up, from the top.

    factor: 1, 2, 4 or 8; sides are decoded at one part in so many. None where the decoder has a
    remark about the file: some are harmless, and Pillow decides.
    """
    import simplejpeg

    height = _coded_height(header, rows)
    is_cut = height < header.height
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            _shortened(encoded, header, height) if is_cut else encoded,
            # The smallest scale that gives as much as this is the one that is meant.
            min_height=-(-height // factor),
            min_width=-(-header.width // factor),
            # What is cut off is a remark of its own.
            strict=not is_cut,
        )
    except ValueError:
        return None
    return pixels


def _frame(encoded: memoryview | bytes, at: int) -> JpegHeader | None:
    """The frame whose marker stands at `at`: length, bits, height, width, number of colours, and
    for each of them its name, sampling (across and down, a half-byte each) and table."""
    bits, colours = encoded[at + 4], encoded[at + 9]
    height, width = _number(encoded, at + 5), _number(encoded, at + 7)
    if bits != 8 or colours not in _COLOURS or not height or not width:
        return None
    down = max(encoded[at + 11 + 3 * colour] & 15 for colour in range(colours))
    return JpegHeader(height, width, at + 5, 8 * down, encoded[at + 1] in _SEQUENTIAL)


def _coded_height(header: JpegHeader, rows: int) -> int:
    """The height to tell the decoder so that the first `rows` rows come out as they are: whole rows
    of blocks, and one more, since colours are smoothed across the rows' edges."""
    if not header.is_sequential:
        return header.height
    wanted = -(-rows // header.row_height) + 1
    return min(wanted * header.row_height, header.height)


def _shortened(encoded: memoryview | bytes, header: JpegHeader, height: int) -> bytearray:
    changed = bytearray(encoded)
    changed[header.height_at : header.height_at + 2] = height.to_bytes(2, "big")
    return changed


def _number(encoded: memoryview | bytes, at: int) -> int:
    """Two bytes, the larger one first."""
    return encoded[at] << 8 | encoded[at + 1]
