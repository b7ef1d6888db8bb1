"""Reads a whole prepared data set once, to find out whether it is still what was prepared."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trainers.data.encoded import EncodedImages
from trainers.data.images import content_fingerprint
from trainers.data.meta import read_meta
from trainers.data.prepared import changed, open_arrays, open_described
from trainers.data.source import SPLITS

__all__ = ["verify"]


def verify(folder: Path, threads: int | None = None) -> None:
    """Raises DataError that names what is damaged. Costs one pass over every file: ImageNet's
    140 GB take what the disk takes. threads: None takes the cores there are."""
    meta = read_meta(folder)
    if not meta.get("encoded"):
        if (actual := content_fingerprint(*open_arrays(folder))) != meta["content"]:
            raise changed(folder, "arrays", actual)
        return
    described = open_described(folder)  # labels, sizes and digests fit, or it raises
    with ThreadPoolExecutor(threads) as pool:
        for split, (_, sizes, digests) in zip(SPLITS, described, strict=True):
            pictures = EncodedImages(folder, split, sizes, digests)
            for _ in pool.map(pictures.read, range(len(pictures)), chunksize=256):
                pass
