"""Pictures of ImageNet's size and weight, for benchmarks on machines that have no ImageNet.

Real pictures are laid side by side at their own scale, so that details are as fine as a camera's:
500×375, 500×333 or 375×500 pixels, JPEG quality 90 to 95. Pictures whose shorter side has 300
pixels or more are taken as they are.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

__all__ = ["write_image_folder"]

_SIZES = ((500, 375), (500, 375), (500, 375), (500, 333), (375, 500))
_QUALITIES = (90, 92, 95)
_LARGE = 300
_TEST = 16
"""Pictures of the test split, which nothing here looks at."""


def write_image_folder(source: Path | None, folder: Path, count: int) -> dict[str, object]:
    """Writes `count` training pictures of two classes, as ImageNet is unpacked. source: a Parquet
    file with a column `image`, or a folder; None takes scikit-learn's two photographs. Returns what
    they are, in words and bytes."""
    found = list(_encoded(source))
    drawn = random.Random(0)
    is_large = min(Image.open(io.BytesIO(found[0])).size) >= _LARGE and source is not None
    sizes = []
    for number in range(count + _TEST):
        content = found[number % len(found)] if is_large else _mosaic(found, drawn)
        split, wnid = ("train" if number < count else "val"), f"n0000000{number % 2}"
        path = folder / split / wnid / f"{wnid}_{number:05d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        sizes.append(len(content))
    made = "as they are" if is_large else "made of real ones side by side, quality 90 to 95"
    origin = "scikit-learn's photographs" if source is None else source.name
    return {
        "pictures": f"{count} of {origin}, {made}",
        "bytes_a_picture": round(sum(sizes[:count]) / count),
    }


def _encoded(source: Path | None) -> Iterator[bytes]:
    if source is None:
        from sklearn.datasets import load_sample_images

        for pixels in load_sample_images().images:
            yield _jpeg(Image.fromarray(pixels), 95)
    elif source.is_dir():
        yield from (path.read_bytes() for path in sorted(source.rglob("*")) if path.is_file())
    else:
        yield from pq.read_table(source, columns=["image"])["image"].to_pylist()


def _mosaic(found: list[bytes], drawn: random.Random) -> bytes:
    """Parts of real pictures, 160 pixels high, in lines until the picture is full."""
    canvas = Image.new("RGB", drawn.choice(_SIZES))
    for y in range(0, canvas.height, 160):
        x = 0
        while x < canvas.width:
            part = Image.open(io.BytesIO(drawn.choice(found))).convert("RGB")
            width, height = min(part.width, 240), min(part.height, 160)
            left = drawn.randint(0, part.width - width)
            top = drawn.randint(0, part.height - height)
            canvas.paste(part.crop((left, top, left + width, top + height)), (x, y))
            x += width
    return _jpeg(canvas, drawn.choice(_QUALITIES))


def _jpeg(image: Image.Image, quality: int) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return sink.getvalue()
