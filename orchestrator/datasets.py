"""The data sets of a store: what is known of them, and how they get there."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress as RichProgress

from orchestrator import paths
from orchestrator.errors import UserError
from orchestrator.resolve import PROVISIONAL
from orchestrator.spec import Sweep
from orchestrator.store import Store
from trainers.data import OFFICIAL, DatasetInfo, find_source, load_info, prepare
from trainers.errors import TrainerError

__all__ = ["Location", "known_infos", "locations_of", "prepare_dataset", "wanted_datasets"]

_FILES = ("train-images.npy", "train-labels.npy", "test-images.npy", "test-labels.npy", "meta.json")


@dataclass(frozen=True)
class Location:
    """Where a data set's raw files lie. image_size: pixels to resize to, or None."""

    path: Path
    image_size: int | None = None


def locations_of(sweeps: Iterable[Sweep], options: Iterable[str] = ()) -> dict[str, Location]:
    """By data set: what sweep files say (relative to the file), overridden by `--data NAME=PATH`."""
    found: dict[str, Location] = {}
    for sweep in sweeps:
        for name, location in sweep.data.items():
            path = (Path(sweep.file).parent / location.path).expanduser()
            found[name] = Location(path, location.image_size)
    for option in options:
        name, separator, path_text = option.partition("=")
        if not separator or not name or not path_text:
            raise UserError(f"--data {option} names no folder", "write --data NAME=PATH")
        size = found[name].image_size if name in found else None
        found[name] = Location(Path(path_text).expanduser(), size)
    return found


def prepared_infos(store: Store) -> dict[str, DatasetInfo]:
    """What the store holds decoded."""
    found = {}
    for name in store.list("datasets"):
        if store.exists(f"{paths.dataset_dir(name)}/meta.json"):
            found[name] = _info(store, name)
    return found


def _info(store: Store, name: str) -> DatasetInfo:
    meta = store.local(f"{paths.dataset_dir(name)}/meta.json")
    return load_info(meta.parent)


def known_infos(store: Store, locations: Mapping[str, Location]) -> dict[str, DatasetInfo]:
    """Everything a planner may rely on: the store's, else the official ones. An official name whose
    files lie in another form (Parquet, folders) may have other pixels: its fingerprint is
    provisional until it is decoded."""
    infos = dict(OFFICIAL)
    for name, location in locations.items():
        if name in infos and not _is_official(name, location):
            infos[name] = dataclasses.replace(infos[name], fingerprint=PROVISIONAL)
    return infos | prepared_infos(store)


def _is_official(name: str, location: Location) -> bool:
    try:
        return find_source(name, location.path).official_fingerprint is not None
    except TrainerError:
        return True  # nothing there: `run` will say so; a plan may still assume the real thing


def wanted_datasets(sweeps: Iterable[Sweep]) -> list[str]:
    """Names of the data sets that the sweeps train on."""
    names: dict[str, None] = {}
    for sweep in sweeps:
        for grid in sweep.grids:
            values = grid.axes.get("dataset", (grid.base[0],))
            names |= {str(value): None for value in values if value is not None}
    return list(names)


def prepare_dataset(
    store: Store,
    name: str,
    location: Location | None,
    console: Console,
    *,
    download: bool = False,
) -> DatasetInfo:
    """Decodes a data set into the store unless it is there. Raises UserError (with the remedy) for
    data that is missing or damaged."""
    path = location.path if location else None
    size = location.image_size if location else None
    try:
        with RichProgress(console=console, transient=True) as bar:
            tasks = {
                split: bar.add_task(f"{name} {split}", total=None) for split in ("train", "test")
            }

            def show(split: str, done: int, total: int) -> None:
                bar.update(tasks[split], completed=done, total=total)

            if store.is_local:
                out = store.root / paths.dataset_dir(name)
                return prepare(
                    name, out=out, path=path, image_size=size, download=download, progress=show
                )
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / name
                info = prepare(
                    name, out=out, path=path, image_size=size, download=download, progress=show
                )
                for file in _FILES:  # meta.json last: it makes the data set exist
                    store.upload(out / file, f"{paths.dataset_dir(name)}/{file}")
                return info
    except TrainerError as error:
        raise UserError(error.problem, error.remedy) from error
    except OSError as error:
        raise UserError(
            f"cannot prepare data set {name}: {error}", "free space or fix permissions"
        ) from error
