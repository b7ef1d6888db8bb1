"""Finds a data set wherever it lies and decodes it once into arrays (`prepared`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainers.data import archive, folder, parquet
from trainers.data.catalogue import OFFICIAL
from trainers.data.digits import DigitsSource
from trainers.data.images import content_fingerprint
from trainers.data.info import DatasetInfo
from trainers.data.prepared import META, load_info, open_arrays, read_meta, replacing
from trainers.data.source import SPLITS, LocatedImage, Source, Split, SplitName
from trainers.errors import DataError

__all__ = ["Progress", "find_source", "made_from", "prepare"]

Progress = Callable[[SplitName, int, int], None]
"""Called with (split, images decoded, images in all), now and then."""

_PROGRESS_EVERY = 1_000


def find_source(
    name: str,
    path: Path | None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Source:
    """Where data set `name` comes from: `digits` from scikit-learn; else, in folder `path`, the
    official archive, Parquet files or image folders, in that order.

    image_column, label_column: of Parquet files; None takes the usual names.
    Raises DataError, saying what was looked for, if there is nothing, and where a path or a column
    is named that nobody would read.
    """
    columns = [column for column in (image_column, label_column) if column is not None]
    if name == "digits":
        if path is not None:
            raise DataError(
                f"data set 'digits' comes with scikit-learn: nothing is read from {path}",
                "leave the path out, or give your data set another name",
            )
        return _without_columns(name, DigitsSource(), columns)
    if path is None or not path.is_dir():
        missing = "no path is given for it" if path is None else f"{path} is not a folder"
        raise DataError(f"data set {name!r} is not there: {missing}", _where_to_get(name))
    found = (
        archive.find(name, path)
        or parquet.find(name, path, image_column=image_column, label_column=label_column)
        or folder.find(name, path)
    )
    if found is None:
        raise DataError(
            f"data set {name!r} is not in {path}: looked there and in {name}/ for "
            f"{', '.join(_looked_for(name))}",
            _where_to_get(name),
        )
    return found if found.kind == "parquet" else _without_columns(name, found, columns)


def _without_columns(name: str, source: Source, columns: Sequence[str]) -> Source:
    if columns:
        raise DataError(
            f"data set {name!r} has no column {columns[0]}: it is no Parquet file ({source.kind})",
            "leave image_column and label_column out",
        )
    return source


def prepare(
    name: str,
    *,
    out: Path,
    path: Path | None = None,
    image_size: int | None = None,
    download: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    progress: Progress | None = None,
) -> DatasetInfo:
    """Decodes data set `name` from folder `path` into folder `out`, unless it is there already.

    image_size: resize the shorter side to it and centre-crop; required if sizes differ.
    download: fetch the official CIFAR archive into `path` (default `out`/archive) if need be;
    `digits` needs none.
    An official data set, verified and not resized, gets its pinned fingerprint; anything else that
    of its content. Raises DataError if the data set is missing, damaged or has unlike sizes.
    """
    wanted: dict[str, Any] = {
        "name": name,
        "resized_to": image_size,
        "image_column": image_column,
        "label_column": label_column,
    }
    if path is None and _is_prepared(out, wanted):
        return load_info(out)
    if download and name != "digits":
        path = path or out / "archive"
        if archive.find(name, path) is None:
            archive.download(name, path)
    source = find_source(name, path, image_column=image_column, label_column=label_column)
    wanted |= {"source": source.kind, "source_id": _source_id(source)}
    if _is_prepared(out, wanted):
        return load_info(out)
    return _decode_into(out, source, wanted, progress)


def made_from(folder: Path, source: Source) -> bool:
    """Whether the prepared data set in `folder` was decoded from `source`: from the same official
    content, packed or not, or else from files of the same names and sizes."""
    meta = read_meta(folder)
    if meta.get("source") != source.kind:
        return False
    return source.official_fingerprint is not None or meta.get("source_id") == _source_id(source)


def _is_prepared(out: Path, wanted: dict[str, Any]) -> bool:
    if not (out / META).exists():
        return False
    meta = read_meta(out)
    return all(meta.get(key) == value for key, value in wanted.items())


def _looked_for(name: str) -> Iterator[str]:
    if layout := archive.LAYOUTS.get(name):
        yield from (layout.filename, f"{layout.folder}/")
    yield from parquet.patterns(name, "train")
    yield "train/<class>/"


def _where_to_get(name: str) -> str:
    if name in archive.LAYOUTS:
        return "give the folder of the official archive or of Parquet files, or allow the download"
    return "give the folder that holds its Parquet files or image folders"


def _source_id(source: Source) -> str:
    """SHA-256 of the sorted (file name, size): cheap enough to ask on every run."""
    listing = sorted((file.name, file.stat().st_size) for file in source.files)
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _decode_into(
    out: Path, source: Source, origin: dict[str, Any], progress: Progress | None
) -> DatasetInfo:
    out.mkdir(parents=True, exist_ok=True)
    (out / META).unlink(missing_ok=True)  # first: no reader may take new arrays for the old set
    size: int | None = None
    for split in SPLITS:
        size = _write_split(out, split, source.read(split, origin["resized_to"]), size, progress)
    arrays = open_arrays(out)
    name, content, classes = origin["name"], content_fingerprint(*arrays), source.class_names()
    info = _describe(name, arrays, classes)
    fingerprint = _identity(name, source, size, _content_and_classes(content, info, arrays))
    info = replace(info, fingerprint=fingerprint)
    meta = {**asdict(info), **origin, "content": content, "classes": classes}
    with replacing(out / META) as temporary:
        temporary.write_text(json.dumps(meta, indent=2) + "\n")
    return info


def _write_split(
    out: Path, name: SplitName, split: Split, size: int | None, progress: Progress | None
) -> int:
    """Writes the arrays of one split, holding only a window of images in memory.
    size: height and width that images must have; None takes the first one's. Returns it."""
    total = len(split.labels)
    first = next(split.images, None)
    if first is None:
        raise DataError(f"the {name} split is empty", "give at least one image")
    expected = size or first[0].shape[1]
    with replacing(out / f"{name}-images.npy") as temporary:
        images = np.lib.format.open_memmap(
            temporary, "w+", np.uint8, (total, 3, expected, expected)
        )
        for row, located in enumerate(chain([first], split.images)):
            images[row] = _checked(located, expected)
            if progress is not None and ((row + 1) % _PROGRESS_EVERY == 0 or row + 1 == total):
                progress(name, row + 1, total)
        images.flush()
        del images
    with replacing(out / f"{name}-labels.npy") as temporary, temporary.open("wb") as file:
        np.save(file, split.labels)
    return expected


def _checked(located: LocatedImage, expected: int) -> npt.NDArray[np.uint8]:
    image, where = located
    if image.shape == (3, expected, expected):
        return image
    height, width = image.shape[1:]
    raise DataError(
        f"{where} is {height}×{width}, not {expected}×{expected}: images must be equal squares",
        "set image_size: the shorter side is resized to it and the centre cropped",
    )


def _identity(name: str, source: Source, image_size: int | None, content: str) -> str:
    official = source.official_fingerprint
    if official is None or image_size != OFFICIAL[name].image_size:
        return content
    if name == "digits" and content != official:
        raise DataError(
            f"scikit-learn's digits have content {content[:16]}, not {official[:16]}",
            "install a scikit-learn whose digits are the usual ones",
        )
    return official


def _content_and_classes(
    content: str, info: DatasetInfo, arrays: tuple[npt.NDArray[Any], ...]
) -> str:
    """The arrays' fingerprint; with the number of classes where class names make it exceed what the
    labels show, since a model of that data set is another one."""
    if info.num_classes == _labelled_classes(arrays):
        return content
    return hashlib.sha256(f"{content} {info.num_classes}".encode()).hexdigest()


def _labelled_classes(arrays: tuple[npt.NDArray[Any], ...]) -> int:
    _, train_labels, _, test_labels = arrays
    return 1 + int(max(train_labels.max(), test_labels.max()))


def _describe(
    name: str, arrays: tuple[npt.NDArray[Any], ...], classes: tuple[str, ...] | None
) -> DatasetInfo:
    """All but the fingerprint."""
    train_images, train_labels, _, test_labels = arrays
    num_classes = _labelled_classes(arrays)
    if classes is not None and num_classes > len(classes):
        raise DataError(
            f"{name!r} has {len(classes)} class names, but a label {num_classes - 1}",
            "name the right label column (label_column), or correct the class names",
        )
    counts = np.bincount(train_labels, minlength=len(classes or ()) or num_classes)
    mean, std = _moments(train_images)
    if name in OFFICIAL:
        mean, std = OFFICIAL[name].mean, OFFICIAL[name].std
    return DatasetInfo(
        name=name,
        fingerprint="",
        num_classes=len(counts),
        num_train=len(train_labels),
        num_test=len(test_labels),
        smallest_class=int(counts.min()),
        balanced=bool((counts == counts[0]).all()),
        image_size=train_images.shape[-1],
        mean=mean,
        std=std,
    )


_RGB = tuple[float, float, float]


def _moments(images_NCHW: npt.NDArray[np.uint8]) -> tuple[_RGB, _RGB]:
    """Mean and std per channel of pixels in [0, 1], to four digits. From histograms: exact sums,
    and a pass over memory-mapped images that holds one chunk of them."""
    histogram_CV = np.zeros((3, 256), dtype=np.int64)
    for start in range(0, len(images_NCHW), 1024):
        chunk = images_NCHW[start : start + 1024]
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
