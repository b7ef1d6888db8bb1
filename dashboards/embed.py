"""Figures and files as data URIs, so that the page is one file and needs no network."""

from __future__ import annotations

import base64
import io

import matplotlib as mpl
from matplotlib.figure import Figure

__all__ = ["csv_uri", "figure_uri"]

MAX_SVG_MARKS = 4000
"""Drawn positions above which a vector image is not even tried: it would outweigh the pixels."""

_MAX_CSV_BYTES = 500_000


def figure_uri(figure: Figure, png: bytes, num_marks: int) -> str:
    """The smaller one of an SVG (sharp in print) and the PNG. num_marks: positions drawn."""
    if num_marks <= MAX_SVG_MARKS:
        svg = _svg(figure)
        if len(svg) <= len(png):
            return _uri(svg, "image/svg+xml")
    return _uri(png, "image/png")


def csv_uri(content: bytes) -> str:
    """A CSV file to save from the page; empty when it would make the page too heavy."""
    return _uri(content, "text/csv;charset=utf-8") if len(content) <= _MAX_CSV_BYTES else ""


def _svg(figure: Figure) -> bytes:
    out = io.BytesIO()
    # a fixed salt: equal figures give equal bytes
    with mpl.rc_context({"svg.hashsalt": "targetsweep", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
