"""The data sets of a store: what is known of them, and how they get there."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress as RichProgress

from orchestrator import paths
from orchestrator.errors import UserError, nearest
from orchestrator.node_cache import folder_name
from orchestrator.resolve import PROVISIONAL
from orchestrator.spec import Sweep
from orchestrator.store import Store
from trainers.cache import cache_folder
from trainers.data.catalogue import OFFICIAL
from trainers.data.find import find_source
from trainers.data.info import DatasetInfo
from trainers.data.meta import META, load_info, read_meta
from trainers.data.source import Source
from trainers.errors import TrainerError

if TYPE_CHECKING:  # it takes torch, which a plan does without
    from trainers.data.prepare import Form

__all__ = [
    "Location",
    "check_locations",
    "check_sources",
    "is_encoded",
    "is_prepared",
    "known_infos",
    "locations_of",
    "prepare_dataset",
    "wanted_datasets",
]


@dataclass(frozen=True)
class Location:
    """Where a data set's raw files lie, and how they are read. path: None if nothing is said (the
    store has it, or it is `digits`). image_size, encoded, shorter_side, jpeg_quality, subset: how
    they are kept (`trainers.data.prepare.Form`). image_column, label_column: of Parquet files; None
    takes the usual names."""

    path: Path | None = None
    image_size: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    encoded: bool = False
    shorter_side: int | None = None
    jpeg_quality: int | None = None
    subset: bool = False

    @property
    def form(self) -> Form:
        from trainers.data.prepare import Form

        return Form(
            image_size=self.image_size,
            encoded=self.encoded,
            shorter_side=self.shorter_side,
            jpeg_quality=self.jpeg_quality,
            subset=self.subset,
        )

    @property
    def columns(self) -> dict[str, str | None]:
        return {"image_column": self.image_column, "label_column": self.label_column}


def locations_of(sweeps: Iterable[Sweep], options: Iterable[str] = ()) -> dict[str, Location]:
    """By data set: what sweep files say (relative to the file); `--data NAME=PATH` overrides it.

    Raises UserError for an option without a path, and where two sweeps disagree.
    """
    asked = dict(map(_path_option, options))
    found: dict[str, Location] = {}
    files: dict[str, str] = {}
    for sweep in sweeps:
        for name, entry in sweep.data.items():
            path = Path(sweep.file).parent / Path(entry.path).expanduser() if entry.path else None
            location = Location(**(entry.model_dump() | {"path": asked.get(name, path)}))
            if found.setdefault(name, location) != location:
                raise UserError(
                    f"{files[name]} and {sweep.file} say different things of data set {name}",
                    "say the same under `data:`, or give one of them another name",
                )
            files.setdefault(name, sweep.file)
    return {name: Location(path) for name, path in asked.items()} | found


def _path_option(option: str) -> tuple[str, Path]:
    name, separator, path = option.partition("=")
    if not separator or not name or not path:
        raise UserError(f"--data {option} names no folder", "write --data NAME=PATH")
    return name, Path(path).expanduser()


def is_prepared(store: Store, name: str) -> bool:
    return store.exists(paths.dataset_meta(name))


def is_encoded(store: Store, name: str) -> bool:
    """Whether a prepared data set is one of encoded pictures, decoded while training."""
    return bool(read_meta(_local(store, name)).get("encoded"))


def prepared_infos(store: Store) -> dict[str, DatasetInfo]:
    """What the store holds decoded."""
    found = {}
    for name in store.list(paths.datasets_dir()):
        if is_prepared(store, name):
            found[name] = load_info(_local(store, name))
    return found


def _local(store: Store, name: str) -> Path:
    """A folder here with the data set's meta.json."""
    return store.local(paths.dataset_meta(name)).parent


def known_infos(store: Store, locations: Mapping[str, Location]) -> dict[str, DatasetInfo]:
    """Everything a planner may rely on: the store's, else the official ones. An official name whose
    files lie in another form (Parquet, folders) or are resized has other pixels: its fingerprint is
    provisional until it is decoded."""
    infos = dict(OFFICIAL)
    for name, location in locations.items():
        if name not in infos:
            continue
        size = location.image_size or infos[name].image_size
        if size != infos[name].image_size or not _is_official(name, location):
            infos[name] = dataclasses.replace(infos[name], image_size=size, fingerprint=PROVISIONAL)
    return infos | prepared_infos(store)


def _is_official(name: str, location: Location) -> bool:
    try:
        return _source(name, location).official_fingerprint is not None
    except TrainerError:
        return True  # nothing there: `run` will say so; a plan may still assume the real thing


def wanted_datasets(sweeps: Iterable[Sweep]) -> list[str]:
    """Names of the data sets that the sweeps train on, within their limits."""
    names: dict[str, None] = {}
    for sweep in sweeps:
        if sweep.limit:
            names |= {str(point[0]): None for point in sweep.points if point[0] is not None}
            continue
        for grid in sweep.grids:
            values = grid.axes.get("dataset", (grid.base[0],))
            names |= {str(value): None for value in values if value is not None}
    return list(names)


def check_sources(sweeps: Iterable[Sweep], locations: Mapping[str, Location], store: Store) -> None:
    """Raises UserError for a data set that is neither in the store nor where it is said to be."""
    for name in wanted_datasets(sweeps):
        if is_prepared(store, name):
            continue
        try:
            _source(name, locations.get(name, Location()))
        except TrainerError as error:
            how = f"--data {name}=PATH, or `targetsweep data prepare {name}`"
            raise UserError(error.problem, f"{error.remedy}: {how}") from error


def _source(name: str, location: Location) -> Source:
    return find_source(name, location.path, **location.columns)


def check_locations(
    sweeps: Iterable[Sweep], locations: Mapping[str, Location], store: Store
) -> None:
    """Raises UserError where the store holds another data set of a name that the sweeps train on
    than is located, or where `digits`, which has no files, is."""
    for name in wanted_datasets(sweeps):
        location = locations.get(name)
        if location is None:
            continue
        if name == "digits":
            _check_digits(location)
        if is_prepared(store, name):
            _check_stored(store, name, location)


def _check_digits(location: Location) -> None:
    try:
        _source("digits", location)
    except TrainerError as error:
        raise UserError(error.problem, error.remedy) from error


def _check_stored(store: Store, name: str, location: Location) -> None:
    """Raises UserError unless what the store holds is what `location` asks for. Files that are not
    on this machine are not asked: the store may be a copy."""
    from trainers.data.prepare import made_from

    try:
        folder = _local(store, name)
        fault = (
            _size_fault(folder, location)
            or _form_fault(folder, location)
            or _column_fault(folder, location)
        )
        if fault is None and location.path is not None and location.path.exists():
            same = made_from(folder, _source(name, location))
            fault = None if same else ("made from other files", f"those in {location.path}")
    except TrainerError as error:
        raise UserError(error.problem, error.remedy) from error
    except OSError as error:
        raise UserError(f"cannot read data set {name}: {error}", "fix its permissions") from error
    if fault is not None:
        held, asked = fault
        raise UserError(
            f"{store.uri} holds data set {name} {held}, but {asked} is asked for",
            "give the data set another name, take another store, or leave its location out",
        )


Fault = tuple[str, str]
"""What the store holds, and what is asked."""


def _size_fault(folder: Path, location: Location) -> Fault | None:
    held, resized = load_info(folder).image_size, read_meta(folder).get("resized_to")
    if location.image_size is None:
        as_they_are = location.path is None or resized is None
        return None if as_they_are else (f"resized to {resized} pixels", "no image_size")
    if location.image_size != held:
        return f"of {held} pixels", f"image_size {location.image_size}"
    return None


def _form_fault(folder: Path, location: Location) -> Fault | None:
    meta = read_meta(folder)
    if location.form.asks_for_shards and not meta.get("encoded"):
        return "decoded", "the encoded pictures"
    for field in ("shorter_side", "jpeg_quality", "subset"):
        held, asked = meta.get(field), getattr(location, field) or None
        if asked != held and (asked is not None or location.path is not None):
            words = field.replace("_", " ")
            return f"with {words} {held or 'not set'}", f"{words} {asked or 'not set'}"
    return None


def _column_fault(folder: Path, location: Location) -> Fault | None:
    meta = read_meta(folder)
    for field, asked in location.columns.items():
        held = meta.get(field)
        if asked != held and (asked is not None or location.path is not None):
            return f"of {field} {held or 'by default'}", f"{field} {asked or 'by default'}"
    return None


def prepare_dataset(
    store: Store,
    name: str,
    location: Location | None,
    console: Console,
    *,
    download: bool = False,
) -> DatasetInfo:
    """Decodes a data set into the store unless it is there. Raises UserError (with the remedy) for
    data that is missing or damaged, or where the store holds another data set of this name."""
    from trainers.data.prepare import prepare

    location = location or Location()
    if name == "digits":
        _check_digits(location)
    if is_prepared(store, name):
        _check_stored(store, name, location)
        return load_info(_local(store, name))
    try:
        with RichProgress(console=console, transient=True) as bar:
            tasks = {
                split: bar.add_task(f"{name} {split}", total=None) for split in ("train", "test")
            }

            def show(split: str, done: int, total: int) -> None:
                bar.update(tasks[split], completed=done, total=total)

            def decode(out: Path) -> DatasetInfo:
                return prepare(
                    name, out=out, path=location.path, form=location.form, download=download,
                    image_column=location.image_column, label_column=location.label_column,
                    progress=show,
                )  # fmt: skip

            if store.is_local:
                return decode(store.root / paths.dataset_dir(name))
            out = _workshop(store) / name
            info = decode(out)
            for left in out.glob(".*"):  # what a killed try was about to rename
                left.unlink()
            # meta.json last: it makes the data set exist
            for file in sorted(filter(Path.is_file, out.iterdir()), key=_is_meta):
                store.upload(file, f"{paths.dataset_dir(name)}/{file.name}")
            shutil.rmtree(out)
            return info
    except TrainerError as error:
        remedy = error.remedy
        if name not in OFFICIAL and location.path is None and (near := nearest(name, OFFICIAL)):
            remedy = f"nearest valid name: {near}; else {remedy}"
        raise UserError(error.problem, remedy) from error
    except OSError as error:
        raise UserError(
            f"cannot prepare data set {name}: {error}", "free space or fix permissions"
        ) from error


def _workshop(store: Store) -> Path:
    """Where data sets of a remote store are prepared: the same place at the next try, which then
    goes on where a killed one was."""
    folder = cache_folder() / "preparing" / folder_name(store.uri)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _is_meta(file: Path) -> bool:
    return file.name == META
