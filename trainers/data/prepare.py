"""Prepares a data set once: as decoded arrays (`prepared`) or as shards (`encoded`)."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainers.data import archive, shards
from trainers.data.catalogue import OFFICIAL
from trainers.data.describe import content_and_classes, describe, moments
from trainers.data.encoded import (
    VIEW_SIZE,
    EncodedImages,
    encoded_fingerprint,
    sizes_fingerprint,
)
from trainers.data.find import find_source
from trainers.data.images import content_fingerprint
from trainers.data.info import DatasetInfo
from trainers.data.meta import META, load_info, meta_text, read_meta
from trainers.data.prepared import open_arrays, replacing
from trainers.data.source import (
    SPLITS,
    UNLISTED_BEFORE,
    EncodedSource,
    LocatedImage,
    Source,
    Split,
    SplitName,
)
from trainers.data.views import plain_view
from trainers.errors import DataError

__all__ = ["DECODED_LIMIT", "Form", "Progress", "find_source", "made_from", "prepare"]

Progress = Callable[[SplitName, int, int], None]
"""Called with (split, images done, images in all), now and then."""

DECODED_LIMIT = 8 * 2**30
"""Bytes. Data sets whose arrays would be larger stay encoded, unless `image_size` is given."""

_PROGRESS_EVERY = 1_000
_MOMENTS_FROM = 2_000
"""Pictures of an encoded data set that its mean and std are measured on."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a data set is kept.

    image_size: decode to this size (the shorter side resized, the centre cropped); None decodes
    images as they are. encoded: keep the pictures encoded, whatever their sizes; so it is without
    being asked for `imagenet`, and where arrays would exceed DECODED_LIMIT. shorter_side,
    jpeg_quality: encode them again (`shards.Recoding`), which asks for `encoded` too. subset: these
    are not all pictures of `imagenet`, and that is meant.
    """

    image_size: int | None = None
    encoded: bool = False
    shorter_side: int | None = None
    jpeg_quality: int | None = None
    subset: bool = False

    @property
    def asks_for_shards(self) -> bool:
        return self.encoded or self.shorter_side is not None or self.jpeg_quality is not None

    @property
    def recoding(self) -> shards.Recoding:
        return shards.Recoding(self.shorter_side, self.jpeg_quality)


_PLAIN = Form()


def prepare(
    name: str,
    *,
    out: Path,
    path: Path | None = None,
    image_size: int | None = None,
    form: Form = _PLAIN,
    download: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    progress: Progress | None = None,
) -> DatasetInfo:
    """Prepares data set `name` from folder `path` in folder `out`, unless it is there already.

    image_size: short for `form=Form(image_size=…)`; required if sizes differ and the pictures do
    not stay encoded. download: fetch the official CIFAR archive into `path` (default
    `out`/archive) if need be; `digits` needs none.
    An official data set, verified and not resized, gets its pinned fingerprint; anything else that
    of its content. Raises DataError if the data set is missing, damaged, incomplete or of unlike
    sizes, or where `form` does not fit it.
    """
    form = replace(form, image_size=image_size or form.image_size)
    _check_form(name, form)
    wanted = _wanted(name, form) | {"image_column": image_column, "label_column": label_column}
    if path is None and _is_prepared(out, wanted):
        return load_info(out)
    if download and name != "digits":
        path = path or out / "archive"
        if archive.find(name, path) is None:
            archive.download(name, path)
    source = find_source(name, path, image_column=image_column, label_column=label_column)
    listing = source.listing()
    now = _source_id(listing)
    recorded = _recorded_id(out, source, listing, now)
    wanted |= {"source": source.kind}
    if _is_prepared(out, wanted | {"source_id": recorded}):
        if recorded != now:
            _remember(out, now)
        return load_info(out)
    wanted |= {"source_id": now}
    if stays_encoded(name, source, form):
        if not isinstance(source, EncodedSource):
            raise DataError(
                f"data set {name!r} has no encoded pictures: it is decoded already ({source.kind})",
                "leave encoded, shorter_side and jpeg_quality out",
            )
        return _encode_into(out, source, wanted | {"encoded": True}, form, progress)
    return _decode_into(out, source, wanted, progress)


def _check_form(name: str, form: Form) -> None:
    if form.asks_for_shards and form.image_size is not None:
        raise DataError(
            f"data set {name!r} cannot be decoded to {form.image_size} pixels and stay encoded",
            "leave image_size out here: encoded pictures serve runs of any image_size",
        )
    if form.subset and name not in _COUNTED:
        raise DataError(
            f"data set {name!r} has no number of images to fall short of", "leave subset out"
        )


def _wanted(name: str, form: Form) -> dict[str, Any]:
    """What meta.json must say for a prepared data set to be the one asked for."""
    asked: dict[str, Any] = {
        "name": name,
        "resized_to": form.image_size,
        "shorter_side": form.shorter_side,
        "jpeg_quality": form.jpeg_quality,
        "subset": form.subset or None,
    }
    return asked | {"encoded": True} if form.asks_for_shards else asked


def made_from(folder: Path, source: Source) -> bool:
    """Whether the prepared data set in `folder` was made from `source`: from the same official
    content, packed or not, or else from files of the same names, classes and sizes (of one
    that was prepared when classes were no part of it, `_recorded_id`)."""
    meta = read_meta(folder)
    if meta.get("source") != source.kind:
        return False
    if source.official_fingerprint is not None:
        return True
    listing = source.listing()
    recorded = _recorded_id(folder, source, listing, _source_id(listing))
    return bool(meta.get("source_id") == recorded)


def _is_prepared(out: Path, wanted: dict[str, Any]) -> bool:
    if not (out / META).exists():
        return False
    meta = read_meta(out)
    return all(meta.get(key) == value for key, value in wanted.items())


def _source_id(listing: list[tuple[str, int]]) -> str:
    """SHA-256 of the names, classes and sizes of its files: cheap enough to ask on every run."""
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _recorded_id(out: Path, source: Source, listing: list[tuple[str, int]], now: str) -> str:
    """The id that meta.json in `out` has if that data set was made from `source`. Once it was of
    names and sizes alone; a data set of then counts where its labels, in the order of the files,
    are the source's: two pictures that changed places since are not seen, until `prepare` has taken
    it over under its new id, `now`."""
    if not isinstance(source, EncodedSource) or not (out / META).exists():
        return now
    then = _source_id(_without_classes(listing))
    is_of_then = then != now and read_meta(out).get("source_id") == then
    return then if is_of_then and _has_labels_of(out, source) else now


def _remember(out: Path, source_id: str) -> None:
    with contextlib.suppress(OSError), replacing(out / META) as temporary:  # it may be read-only
        temporary.write_text(meta_text(read_meta(out) | {"source_id": source_id}))


def _without_classes(listing: list[tuple[str, int]]) -> list[tuple[str, int]]:
    return sorted(
        (name.rpartition("/")[2], size) for name, size in listing if size != UNLISTED_BEFORE
    )


def _has_labels_of(out: Path, source: EncodedSource) -> bool:
    """Whether the labels prepared in `out` are those that the source gives its files, in order."""
    files = [out / f"{split}-labels.npy" for split in SPLITS]
    return all(
        file.exists()
        and np.array_equal(np.load(file, allow_pickle=False), source.encoded(split).labels)
        for file, split in zip(files, SPLITS, strict=True)
    )


# -- encoded ------------------------------------------------------------------------------------

_COUNTED = frozenset({"imagenet"})
"""Data sets whose files come without checksums, and whose numbers are therefore verified."""


def stays_encoded(name: str, source: Source, form: Form) -> bool:
    """The rule of `Form.encoded`."""
    if form.asks_for_shards:
        return True
    if form.image_size is not None or not isinstance(source, EncodedSource):
        return False
    if name == "imagenet":
        return True
    split = source.encoded("train")
    first = next(source.read("train", None).images, None)
    return first is not None and len(split.labels) * first[0].nbytes > DECODED_LIMIT


def _encode_into(
    out: Path,
    source: EncodedSource,
    origin: dict[str, Any],
    form: Form,
    progress: Progress | None,
) -> DatasetInfo:
    name, classes = origin["name"], source.class_names()
    labels = [source.encoded(split).labels for split in SPLITS]
    for split, found in zip(SPLITS, labels, strict=True):
        if not len(found):
            raise DataError(f"the {split} split is empty", "give at least one image")
    size = OFFICIAL[name].image_size if name in OFFICIAL else VIEW_SIZE
    info = describe(name, labels[0], labels[1], image_size=size, classes=classes)
    if not form.subset:
        _check_counts(info)
    shards.begin(out, origin)
    train, test = (
        shards.write_split(
            out, split, source.encoded, form.recoding,
            None if progress is None else partial(progress, split),
        )
        for split in SPLITS
    )  # fmt: skip
    described = ((train.labels, train.digests), (test.labels, test.digests))
    info = replace(info, fingerprint=encoded_fingerprint(described, info.num_classes))
    if name not in OFFICIAL:
        pictures = EncodedImages(out, "train", train.sizes, train.digests)
        mean, std = moments(_some_views(pictures, size))
        info = replace(info, mean=mean, std=std)
    sizes = sizes_fingerprint(train.sizes, test.sizes)
    shards.finish(out, {**asdict(info), **origin, "sizes": sizes, "classes": classes})
    return info


def _check_counts(info: DatasetInfo) -> None:
    if info.name not in _COUNTED:
        return
    official = OFFICIAL[info.name]
    found, wanted = (
        f"{i.num_train:,} training and {i.num_test:,} test images of {i.num_classes:,} classes"
        for i in (info, official)
    )
    if found != wanted:
        raise DataError(
            f"data set {info.name!r} has {found}, not {wanted}",
            f"complete the copy, or say that it is a part: `targetsweep data prepare {info.name} "
            "--subset`, or `subset: true` where the sweep says `data:`",
        )


def _some_views(pictures: EncodedImages, size: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Views of pictures that lie evenly over the split."""
    chosen = np.linspace(0, len(pictures) - 1, min(_MOMENTS_FROM, len(pictures))).astype(int)
    for index in chosen.tolist():
        yield plain_view(pictures.read(index), pictures.where(index), size)[None]


# -- decoded ------------------------------------------------------------------------------------


def _decode_into(
    out: Path, source: Source, origin: dict[str, Any], progress: Progress | None
) -> DatasetInfo:
    out.mkdir(parents=True, exist_ok=True)
    (out / META).unlink(missing_ok=True)  # first: no reader may take new arrays for the old set
    for old in (*out.glob("*.arrow"), *out.glob(shards.PREPARING)):
        old.unlink()
    size: int | None = None
    for split in SPLITS:
        size = _write_split(out, split, source.read(split, origin["resized_to"]), size, progress)
    assert size is not None
    arrays = open_arrays(out)
    train_images, train_labels, _, test_labels = arrays
    name, content, classes = origin["name"], content_fingerprint(*arrays), source.class_names()
    info = describe(name, train_labels, test_labels, image_size=size, classes=classes)
    if name not in OFFICIAL:
        mean, std = moments(
            train_images[start : start + 1024] for start in range(0, len(train_images), 1024)
        )
        info = replace(info, mean=mean, std=std)
    whole = content_and_classes(content, info, train_labels, test_labels)
    info = replace(info, fingerprint=_identity(name, source, size, whole))
    meta = {**asdict(info), **origin, "content": content, "classes": classes}
    with replacing(out / META) as temporary:
        temporary.write_text(meta_text(meta))
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
        "set image_size: the shorter side is resized to it and the centre cropped; or keep the "
        "pictures as they are (encoded: true, --encoded)",
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
