"""Where the time of one picture goes, and what decoders take for the same boxes.

Used by `image_input.py`. Times are CPU time, in ms a picture, the median of rounds
that take turns, with the lowest and the highest. `pixels` says what a decoder's whole pictures and
boxes are against Pillow's.
"""

from __future__ import annotations

import hashlib
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from PIL.Image import Resampling

from trainers.data.decode import planes
from trainers.data.encoded import EncodedImages
from trainers.data.images import ImageData
from trainers.data.jpeg import decode_rows, read_header
from trainers.data.views import Box, crop_view
from trainers.pixels import Crops
from trainers.spec import Augmentation

__all__ = ["decoders", "stages"]

_PICTURES = 64
_CROP = Augmentation(crop_scale=(0.08, 1.0))

Pixels = npt.NDArray[np.uint8]
Work = Callable[[int], Any]
"""What is done to picture 0 … 63."""


@dataclass(frozen=True)
class _Sample:
    """Pictures that the benchmark looks at, decoded by Pillow, and a box for each."""

    encoded: list[bytes]
    boxes: list[Box]
    whole: list[Pixels]

    @classmethod
    def of(cls, images: EncodedImages) -> _Sample:
        encoded = [bytes(images.read(index)) for index in range(_PICTURES)]
        crops = Crops(_CROP, role="student", seed=0, batch_size=_PICTURES)
        boxes = crops.boxes(0, np.arange(_PICTURES), images.sizes[:_PICTURES])
        assert boxes is not None
        whole = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in encoded]
        return cls(encoded, [tuple(box) for box in boxes.tolist()], whole)

    def part(self, index: int, pixels: Pixels) -> Pixels:
        top, left, height, width = self.boxes[index]
        return pixels[top : top + height, left : left + width]


def stages(prepared: dict[str, ImageData], size: int, rounds: int) -> list[dict[str, Any]]:
    """One row a stage, one column a form of the data set."""
    columns = {form: _timed(_stages_of(data, size), rounds) for form, data in prepared.items()}
    names = next(iter(columns.values()))
    return [{"what": name, **{form: columns[form][name] for form in columns}} for name in names]


def _stages_of(data: ImageData, size: int) -> dict[str, Work]:
    images = data.train_images
    assert isinstance(images, EncodedImages)
    sample = _Sample.of(images)
    parts = [Image.fromarray(sample.part(i, whole)) for i, whole in enumerate(sample.whole)]
    resized = [part.resize((size, size), Resampling.BILINEAR) for part in parts]
    views = np.stack([planes(view) for view in resized])
    batch = np.empty_like(views)

    def decode(index: int) -> Pixels | None:
        header, box = read_header(sample.encoded[index]), sample.boxes[index]
        assert header is not None
        return decode_rows(sample.encoded[index], header, rows=box[0] + box[2], factor=1)

    def copy(index: int) -> None:
        batch[index] = views[index]

    return {
        "bytes, held against their SHA-256": images.read,
        "of that: SHA-256": lambda i: hashlib.sha256(sample.encoded[i]).digest(),
        "decode to the box's last row": decode,
        "cut the box out": lambda i: Image.fromarray(sample.part(i, sample.whole[i])),
        "resize": lambda i: parts[i].resize((size, size), Resampling.BILINEAR),
        "to (3, H, W)": lambda i: planes(resized[i]),
        "into the batch": copy,
        "all of a view (crop_view)": lambda i: crop_view(
            sample.encoded[i], "", sample.boxes[i], size
        ),
    }


def decoders(data: ImageData, size: int, rounds: int) -> list[dict[str, Any]]:
    """One row a decoder and a way to use it, and two ways to resize what came out."""
    images = data.train_images
    assert isinstance(images, EncodedImages)
    sample = _Sample.of(images)
    found: dict[str, Work] = {}
    for make in (_pillow, _simplejpeg, _torchvision, _opencv, _imagecodecs, _nvimgcodec):
        try:
            found |= make(sample)
        except ImportError:
            continue
    pixels = {name: _pixels(work, sample) for name, work in found.items()}
    resizers = _resizers(sample, size)
    times = _timed(found | resizers, rounds)
    pixels |= dict(zip(resizers, ("Pillow's", _difference(*resizers.values())), strict=True))
    return [{"what": name, "ms": times[name], "pixels": pixels[name]} for name in times]


def _pillow(sample: _Sample) -> dict[str, Work]:
    def whole(index: int) -> Image.Image:
        picture = Image.open(io.BytesIO(sample.encoded[index]))
        picture.load()
        return picture

    def eighth(index: int) -> Image.Image:
        picture = Image.open(io.BytesIO(sample.encoded[index]))
        picture.draft(None, (picture.width // 8, picture.height // 8))
        picture.load()
        return picture

    return {"Pillow": whole, "Pillow, at an eighth: entropy decoding": eighth}


def _simplejpeg(sample: _Sample) -> dict[str, Work]:
    import simplejpeg

    def to_the_last_row(index: int) -> Pixels:
        header, box = read_header(sample.encoded[index]), sample.boxes[index]
        assert header is not None
        pixels = decode_rows(sample.encoded[index], header, rows=box[0] + box[2], factor=1)
        assert pixels is not None
        return sample.part(index, pixels)

    return {
        "simplejpeg": lambda i: simplejpeg.decode_jpeg(sample.encoded[i]),
        "simplejpeg, to the box's last row (ours)": to_the_last_row,
        "simplejpeg, fast DCT and upsampling": lambda i: simplejpeg.decode_jpeg(
            sample.encoded[i], fastdct=True, fastupsample=True
        ),
    }


def _torchvision(sample: _Sample) -> dict[str, Work]:
    from torchvision.io import decode_jpeg

    files = [torch.frombuffer(bytearray(c), dtype=torch.uint8) for c in sample.encoded]
    return {"torchvision.io": lambda i: decode_jpeg(files[i]).permute(1, 2, 0).numpy()}


def _opencv(sample: _Sample) -> dict[str, Work]:
    import cv2

    files = [np.frombuffer(content, np.uint8) for content in sample.encoded]
    return {"OpenCV": lambda i: cv2.imdecode(files[i], cv2.IMREAD_COLOR)[:, :, ::-1]}


def _imagecodecs(sample: _Sample) -> dict[str, Work]:
    import imagecodecs

    return {"imagecodecs": lambda i: imagecodecs.jpeg8_decode(sample.encoded[i])}


def _nvimgcodec(sample: _Sample) -> dict[str, Work]:
    """NVIDIA's decoder, which DALI uses too, on the CPU. It decodes boxes by itself; its threads'
    time counts."""
    from nvidia import nvimgcodec

    decoder = nvimgcodec.Decoder(
        device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
        backends=[nvimgcodec.Backend(nvimgcodec.CPU_ONLY)],
        max_num_cpu_threads=1,
    )

    def box(index: int) -> Pixels:
        top, left, height, width = sample.boxes[index]
        region = nvimgcodec.Region(top, left, top + height, left + width)
        stream = nvimgcodec.CodeStream(sample.encoded[index])
        view = stream.get_sub_code_stream(region=region)
        return np.asarray(decoder.decode(view).cpu())

    def whole(index: int) -> Pixels:
        return np.asarray(decoder.decode(nvimgcodec.CodeStream(sample.encoded[index])).cpu())

    return {"nvImageCodec": whole, "nvImageCodec, the box alone": box}


def _resizers(sample: _Sample, size: int) -> dict[str, Work]:
    parts = [np.array(sample.part(index, whole)) for index, whole in enumerate(sample.whole)]
    images = [Image.fromarray(part) for part in parts]

    def by_torch(index: int) -> Pixels:
        tensor = torch.from_numpy(parts[index]).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(
            tensor, (size, size), mode="bilinear", antialias=True
        )
        return resized[0].permute(1, 2, 0).numpy()

    return {
        "resize by Pillow": lambda i: images[i].resize((size, size), Resampling.BILINEAR),
        "resize by torch": by_torch,
    }


def _pixels(work: Work, sample: _Sample) -> str:
    """How the pixels of whole pictures, or of boxes, differ from Pillow's."""
    worst = 0
    for index, whole in enumerate(sample.whole):
        found, wanted = np.asarray(work(index), dtype=int), whole
        if found.shape != wanted.shape:
            wanted = sample.part(index, whole)
        if found.shape != wanted.shape:
            return "smaller"
        worst = max(worst, int(np.abs(found - wanted).max()))
    return "Pillow's" if worst == 0 else f"differ by up to {worst}"


def _difference(one: Work, other: Work) -> str:
    found = [
        np.abs(np.asarray(one(i), dtype=int) - np.asarray(other(i), dtype=int)).max()
        for i in range(_PICTURES)
    ]
    return f"differ by up to {max(found)}"


def _timed(works: dict[str, Work], rounds: int) -> dict[str, str]:
    """`median (lowest to highest)` of each, in ms of CPU time a picture. The process's time, since
    some decoders have threads of their own."""
    measured: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.process_time()
            for index in range(_PICTURES):
                work(index)
            measured[name].append((time.process_time() - start) / _PICTURES * 1e3)
    return {
        name: f"{statistics.median(all_ms):.3f} ({min(all_ms):.3f} to {max(all_ms):.3f})"
        for name, all_ms in measured.items()
    }
