"""The official CIFAR archives for Python (Krizhevsky 2009), verified file by file.

The batches are pickles of 2009. Their MD5 is checked before a byte is unpickled, and the unpickler
knows nothing but NumPy arrays, so that not even a colliding file could run code.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainers.data.decode import fit_array
from trainers.data.files import stat_listing
from trainers.data.source import Image, Labels, LocatedImage, Split, SplitName
from trainers.errors import DataError

__all__ = ["LAYOUTS", "ArchiveLayout", "ArchiveSource", "download", "find", "restricted_loads"]


@dataclass(frozen=True, kw_only=True)
class ArchiveLayout:
    """An archive and the MD5 of its members, by file name. meta: the file with the class names,
    which lie there under `meta_key`."""

    filename: str
    folder: str
    md5: str
    train: Mapping[str, str]
    test: Mapping[str, str]
    meta: tuple[str, str]
    meta_key: str
    url: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the sorted (file name, MD5) of all members that hold images."""
        members = sorted({**self.train, **self.test}.items())
        return hashlib.sha256("".join(f"{n} {m}\n" for n, m in members).encode()).hexdigest()


LAYOUTS = {
    "cifar10": ArchiveLayout(
        filename="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        md5="c58f30108f718f92721af3b95e74349a",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        meta=("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
        meta_key="label_names",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ),
    "cifar100": ArchiveLayout(
        filename="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        meta=("meta", "7973b15100ade9c7d40fb424638fde48"),
        meta_key="fine_label_names",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    ),
}
"""Checksums as in torchvision.datasets.CIFAR10 and CIFAR100."""


@dataclass(frozen=True)
class ArchiveSource:
    """path: the unpacked folder, or the .tar.gz, which is read without unpacking it."""

    path: Path
    layout: ArchiveLayout
    kind: str = "archive"

    @property
    def files(self) -> tuple[Path, ...]:
        if self.path.is_file():
            return (self.path,)
        names = [*self.layout.train, *self.layout.test, self.layout.meta[0]]
        return tuple(self.path / name for name in names)

    def listing(self) -> list[tuple[str, int]]:
        return stat_listing(self.files)

    @property
    def official_fingerprint(self) -> str:
        return self.layout.fingerprint

    def class_names(self) -> tuple[str, ...]:
        name, md5 = self.layout.meta
        meta = _unpickle(self._read_verified({name: md5})[name], name)
        return tuple(str(label) for label in meta[self.layout.meta_key])

    def read(self, split: SplitName, image_size: int | None) -> Split:
        members = self.layout.train if split == "train" else self.layout.test
        verified = self._read_verified(members)
        batches = {name: _parse_batch(verified.pop(name), name) for name in members}
        labels = np.concatenate([labels for _, labels in batches.values()])
        return Split(labels=labels, images=_located(batches, image_size))

    def _read_verified(self, members: Mapping[str, str]) -> dict[str, bytes]:
        """The bytes of `members` (file name: MD5). DataError if one is missing or differs."""
        read = _read_tar if self.path.is_file() else _read_folder
        found = read(self.path, {f"{self.layout.folder}/{name}": name for name in members})
        for name, md5 in members.items():
            if name not in found:
                raise DataError(f"{self.path} lacks {name}", _REMEDY)
            actual = hashlib.md5(found[name], usedforsecurity=False).hexdigest()
            if actual != md5:
                raise DataError(f"{name} in {self.path} has MD5 {actual}, not {md5}", _REMEDY)
        return found


_REMEDY = "get the archive again from https://www.cs.toronto.edu/~kriz/cifar.html"


def find(
    name: str, path: Path, layouts: Mapping[str, ArchiveLayout] = LAYOUTS
) -> ArchiveSource | None:
    """The archive of `name` in `path` or `path/name`, unpacked or not; None if there is none."""
    layout = layouts.get(name)
    if layout is None:
        return None
    for root in (path, path / name):
        for candidate in (root / layout.folder, root / layout.filename):
            if candidate.exists():
                return ArchiveSource(candidate, layout)
    return None


def download(name: str, folder: Path) -> None:
    """Downloads the official archive of `name` into `folder`, with torchvision, MD5 verified.
    Raises DataError if `name` has no official archive or the download fails."""
    from torchvision.datasets.utils import download_url

    if name not in LAYOUTS:
        raise DataError(
            f"data set {name!r} cannot be downloaded", f"only {', '.join(LAYOUTS)} can: give a path"
        )
    layout = LAYOUTS[name]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        download_url(layout.url, str(folder), filename=layout.filename, md5=layout.md5)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"downloading {layout.url} failed: {error}", f"put {layout.filename} in {folder}"
        ) from error


def restricted_loads(data: bytes) -> Any:
    """`pickle.loads` for plain containers, numbers, strings and NumPy arrays alone.
    Raises pickle.UnpicklingError on anything else."""
    return _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()


_RECONSTRUCT: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,  # NumPy 1, so the official files
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,  # NumPy 2
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module_name}.{global_name} is not allowed") from None


def _unpickle(data: bytes, name: str) -> dict[str, Any]:
    try:
        loaded = restricted_loads(data)
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError) as error:
        raise DataError(f"{name} cannot be unpickled: {error}", _REMEDY) from error
    if not isinstance(loaded, dict):
        raise DataError(f"{name} holds {type(loaded).__name__}, not a dict", _REMEDY)
    return loaded


def _parse_batch(data: bytes, name: str) -> tuple[Image, Labels]:
    """Images (N, 3, 32, 32) and labels (N,) of one batch file."""
    batch = _unpickle(data, name)
    images, labels = batch.get("data"), batch.get("labels", batch.get("fine_labels"))
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or labels is None:
        raise DataError(f"{name} holds no images with labels", _REMEDY)
    if images.shape != (len(labels), 3 * 32 * 32):
        raise DataError(
            f"{name} holds images {images.shape} for {len(labels)} labels: not 32×32 RGB", _REMEDY
        )
    return images.reshape(-1, 3, 32, 32), np.asarray(labels, dtype=np.int64)


def _located(
    batches: Mapping[str, tuple[Image, Labels]], image_size: int | None
) -> Iterator[LocatedImage]:
    for name, (images, _) in batches.items():
        for row, image in enumerate(images):
            yield fit_array(image, image_size), f"image {row} of {name}"


def _read_folder(path: Path, wanted: Mapping[str, str]) -> dict[str, bytes]:
    names = [name for name in wanted.values() if (path / name).is_file()]
    return {name: (path / name).read_bytes() for name in names}


def _read_tar(path: Path, wanted: Mapping[str, str]) -> dict[str, bytes]:
    """Reads members (path in the archive: key) in one pass, unpacking nothing to disk."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.name in wanted else None
                if content is not None:
                    found[wanted[member.name]] = content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}", _REMEDY) from error
    return found
