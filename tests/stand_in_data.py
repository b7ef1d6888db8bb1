"""Data sets in the official layouts, made in a moment: real image files, a few for each class.

Every class has a colour and a direction of its own, so that a small model can learn it. What is
written is a function of the arguments alone.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}


def picture(
    label: int, number: int, size: tuple[int, int], mode: str = "RGB", noise: float = 20.0
) -> Image.Image:
    """A picture of a class, (height, width) in pixels: waves in its direction, in its colour."""
    rng = np.random.default_rng([label, number])
    colour = np.random.default_rng([label]).uniform(60, 196, 3)
    height, width = size
    y, x = np.mgrid[:height, :width]
    angle = label * 2.399963  # the golden angle: no two classes alike
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 12 / min(size) + number)
    pixels = colour + 40 * wave[..., None] + rng.normal(0, noise, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return sink.getvalue()


def wnids(classes: int, step: int = 97) -> list[str]:
    """Sorted, as labels follow them."""
    return [f"n{1_440_764 + step * index:08d}" for index in range(classes)]


def write_imagenet(
    folder: Path,
    classes: int = 4,
    per_class: int = 12,
    size: tuple[int, int] = (40, 64),
    *,
    test_per_class: int = 2,
    val: str = "folders",
    odd: bool = True,
) -> Path:
    """ImageNet's folders: sides between `size` pixels, drawn for each picture. val: `folders` by
    class; or flat, with its labels in `csv` (Kaggle's) or `txt`. odd: the first class has a
    greyscale picture, a CMYK one, and a PNG that is called JPEG. Returns `folder`."""
    names = wnids(classes)
    for label, name in enumerate(names):
        (folder / "train" / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            content = _photo(label, number, size, odd=odd and label == 0)
            (folder / "train" / name / f"{name}_{number}.JPEG").write_bytes(content)
    lines = []
    for index, (label, number) in enumerate(_test_pictures(classes, per_class, test_per_class)):
        file = f"ILSVRC2012_val_{index + 1:08d}.JPEG"
        place = folder / "val" / (names[label] if val == "folders" else "")
        place.mkdir(parents=True, exist_ok=True)
        (place / file).write_bytes(_photo(label, number, size, odd=False))
        lines.append((file, names[label]))
    if val == "csv":
        rows = [f"{Path(file).stem},{wnid} 1 2 30 40 " for file, wnid in reversed(lines)]
        text = "\n".join(["ImageId,PredictionString", *rows])
        (folder / "LOC_val_solution.csv").write_text(text + "\n")
    elif val == "txt":
        text = "\n".join(f"{file} {wnid}" for file, wnid in lines)
        (folder / "val_labels.txt").write_text(text + "\n")
    return folder


def write_tiny_imagenet(
    folder: Path, classes: int = 4, per_class: int = 6, *, test_per_class: int = 2
) -> Path:
    """The official folder `tiny-imagenet-200` in `folder`: 64 pixels, some greyscale, a test split
    without labels, wnids in no order. Returns `folder`."""
    root, names = folder / "tiny-imagenet-200", wnids(classes)
    for label, name in enumerate(names):
        images = root / "train" / name / "images"
        images.mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            mode = "L" if number == 1 else "RGB"
            content = encoded(picture(label, number, (64, 64), mode))
            (images / f"{name}_{number}.JPEG").write_bytes(content)
        (root / "train" / name / f"{name}_boxes.txt").write_text("")
    annotations = []
    for split in ("val", "test"):
        (root / split / "images").mkdir(parents=True, exist_ok=True)
        for index, (label, number) in enumerate(_test_pictures(classes, per_class, test_per_class)):
            file = f"{split}_{index}.JPEG"
            content = encoded(picture(label, number, (64, 64)))
            (root / split / "images" / file).write_bytes(content)
            if split == "val":
                annotations.append(f"{file}\t{names[label]}\t0\t0\t62\t62")
    (root / "val" / "val_annotations.txt").write_text("\n".join(annotations) + "\n")
    (root / "wnids.txt").write_text("\n".join(reversed(names)) + "\n")
    return folder


def write_cifar(
    folder: Path, name: str, per_class: int = 4, *, test_per_class: int = 2, size: int = 32
) -> Path:
    """`cifar10` or `cifar100` as Parquet files of PNG bytes: the official archive is verified by
    MD5 and cannot be imitated. Returns `folder`."""
    classes = CIFAR_CLASSES[name]
    rows = {
        "train": [(label, number) for number in range(per_class) for label in range(classes)],
        "test": list(_test_pictures(classes, per_class, test_per_class)),
    }
    for split, pictures in rows.items():
        write_parquet(
            folder / f"{name}_{split}.parquet",
            [encoded(picture(label, number, (size, size)), "PNG") for label, number in pictures],
            [label for label, _ in pictures],
        )
    return folder


def write_parquet(path: Path, images: list[bytes], labels: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "label": pa.array(labels, pa.int16())}), path)


def _photo(label: int, number: int, size: tuple[int, int], *, odd: bool) -> bytes:
    sides = np.random.default_rng([7, label, number]).integers(size[0], size[1] + 1, 2)
    mode = {0: "L", 1: "CMYK"}.get(number, "RGB") if odd else "RGB"
    kind = "PNG" if odd and number == 2 else "JPEG"
    return encoded(picture(label, number, (int(sides[0]), int(sides[1])), mode), kind)


def _test_pictures(classes: int, per_class: int, test_per_class: int) -> Iterator[tuple[int, int]]:
    """(class, number), other pictures than the training ones, classes in turn."""
    for number in range(test_per_class):
        for label in range(classes):
            yield label, per_class + number
