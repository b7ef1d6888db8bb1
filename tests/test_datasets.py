"""Where data sets come from, and that nobody is given another one than asked."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from orchestrator import cli
from orchestrator.asked import Asked, read_asked
from orchestrator.calibration import calibrate
from orchestrator.datasets import Location, known_infos, locations_of, prepare_dataset
from orchestrator.errors import UserError
from orchestrator.plan import make_plan
from orchestrator.resolve import PROVISIONAL
from orchestrator.spec import load_sweeps
from orchestrator.store import Store
from tests.driving import GRID, TINY, digits_store, tiny_plan
from tests.stand_in_data import write_imagenet
from tests.sweep_files import write
from tests.test_data_prepare import write_folder
from trainers.data import archive
from trainers.data.catalogue import OFFICIAL
from trainers.data.meta import read_meta
from trainers.data.prepare import prepare
from trainers.data.prepared import load
from trainers.errors import DataError

CONSOLE = Console(quiet=True)
MINE = TINY.replace("dataset: digits", "dataset: mine") + GRID


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two classes of 8×8 pixels."""
    return write_folder(tmp_path / "raw")


def asked(tmp_path: Path, store: Store, data: str = "", *options: str, text: str = MINE) -> None:
    """What `plan` and `run` read first."""
    file = write(tmp_path, text + (f"data: {data}\n" if data else ""))
    read_asked(Asked(files=[str(file)], data=options), store)


def fault(tmp_path: Path, store: Store, data: str = "", *options: str, text: str = MINE) -> str:
    with pytest.raises(UserError) as caught:
        asked(tmp_path, store, data, *options, text=text)
    assert caught.value.remedy
    return str(caught.value)


def make(store: Store, name: str, **location: object) -> None:
    prepare_dataset(store, name, Location(**location), CONSOLE)  # type: ignore[arg-type]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["targetsweep", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


# -- what the store holds against what is asked ----------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        "",
        "{mine: {path: raw}}",
        "{mine: {path: raw, image_size: 8}}",  # nothing to resize
        "{mine: {image_size: 8}}",
        "{mine: {path: /nowhere}}",  # a copied store, on another machine
        "{mine: {path: /nowhere, image_size: 8}}",
        "{other: {path: /nowhere, image_size: 3}}",  # nobody trains on it
    ],
)
def test_the_store_holds_it(tmp_path: Path, store: Store, raw: Path, data: str) -> None:
    make(store, "mine", path=raw)
    asked(tmp_path, store, data)


@pytest.mark.parametrize("data", ["{image_size: 16}", "{path: raw, image_size: 16}"])
def test_another_size(tmp_path: Path, store: Store, raw: Path, data: str) -> None:
    make(store, "mine", path=raw)
    text = fault(tmp_path, store, f"{{mine: {data}}}")
    assert "holds data set mine of 8 pixels, but image_size 16 is asked for" in text


def test_another_size_on_a_machine_without_the_files(
    tmp_path: Path, store: Store, raw: Path
) -> None:
    make(store, "mine", path=raw, image_size=4)
    asked(tmp_path, store, "{mine: {path: /nowhere, image_size: 4}}")
    asked(tmp_path, store)
    assert "of 4 pixels" in fault(tmp_path, store, "{mine: {path: /nowhere, image_size: 8}}")
    assert "resized to 4 pixels, but no image_size" in fault(
        tmp_path, store, "{mine: {path: /nowhere}}"
    )


def test_other_files(tmp_path: Path, store: Store, raw: Path) -> None:
    make(store, "mine", path=raw)
    other = tmp_path / "other"
    shutil.copytree(raw, other)
    asked(tmp_path, store, "", f"mine={other}")
    (other / "train" / "cat" / "0.png").unlink()
    problem = f"made from other files, but those in {other} is asked for"
    for text in (
        fault(tmp_path, store, "", f"mine={other}"),
        fault(tmp_path, store, "{mine: {path: raw}}", f"mine={other}"),  # the option counts
        fault(tmp_path, store, "{mine: {path: other}}"),
    ):
        assert problem in text


def test_a_folder_without_a_data_set(tmp_path: Path, store: Store, raw: Path) -> None:
    make(store, "mine", path=raw)
    (tmp_path / "empty").mkdir()
    assert "looked there" in fault(tmp_path, store, "{mine: {path: empty}}")


def test_two_sweeps_that_disagree(tmp_path: Path, store: Store, raw: Path) -> None:
    files = [
        write(tmp_path, MINE + "data: {mine: {path: raw, image_size: 8}}\n", "a.yaml"),
        write(
            tmp_path,
            MINE.replace("name: tiny", "name: tinier") + "data: {mine: {path: raw}}\n",
            "b.yaml",
        ),
    ]
    with pytest.raises(UserError, match=r"a.yaml and .*b.yaml say different things of data set m"):
        read_asked(Asked(files=[str(file) for file in files]), store)


def test_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the file; ~ is a home; an option replaces the path alone."""
    monkeypatch.setenv("HOME", "/home/me")
    data = "data: {mine: {path: raw, label_column: l}, b: {path: ~/b}, c: {image_size: 3}}\n"
    sweeps = load_sweeps([write(tmp_path, MINE + data)])
    found = locations_of(sweeps, ["c=~/c", "d=d"])
    assert found == {
        "mine": Location(tmp_path / "raw", label_column="l"),
        "b": Location(Path("/home/me/b")),
        "c": Location(Path("/home/me/c"), 3),
        "d": Location(Path("d")),
    }


def test_preparing_never_replaces(store: Store, raw: Path) -> None:
    make(store, "mine", path=raw)
    make(store, "mine", path=raw)
    make(store, "mine")
    with pytest.raises(UserError, match="of 8 pixels"):
        make(store, "mine", path=raw, image_size=4)
    assert load(store.root / "datasets/mine").info.image_size == 8


# -- digits, which have no files -------------------------------------------------------------------

DIGITS = TINY + GRID


def test_a_mistyped_name_is_answered_with_the_nearest(store: Store) -> None:
    with pytest.raises(UserError) as caught:
        make(store, "cifar01")
    assert "nearest valid name: cifar10; else give the folder" in str(caught.value)


def test_a_data_set_for_a_remote_store_is_not_prepared_twice(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ImageNet takes an hour: a try that was killed while it uploaded leaves what it made, in the
    cache; one that ended leaves nothing."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("TARGETSWEEP_CACHE", str(cache))
    store = Store("mock://bucket/x")
    whole, seen = store.upload, []

    def upload(file: Path, rel: str) -> None:
        seen.append((file, file.stat().st_mtime_ns))
        if len(seen) == 2:
            raise KeyboardInterrupt
        whole(file, rel)

    monkeypatch.setattr(store, "upload", upload)
    with pytest.raises(KeyboardInterrupt):
        make(store, "mine", path=raw)
    assert seen[0][0].is_relative_to(cache)
    seen[0][0].with_name(".train-images.npy.0123").write_bytes(b"half")
    assert not store.exists("datasets/mine/meta.json")
    make(store, "mine", path=raw)
    assert seen[2:4] == seen[:2]
    assert not [file for file, _ in seen if file.name.startswith(".")]
    assert store.exists("datasets/mine/meta.json")
    assert not [path for path in (cache / "preparing").rglob("*") if path.is_file()]


@pytest.mark.parametrize("prepared", [False, True])
def test_digits_have_no_path(tmp_path: Path, store: Store, prepared: bool) -> None:
    if prepared:
        digits_store(store.root)
    for data, *options in (["{digits: {path: /nowhere, image_size: 16}}"], ["", "digits=/nowhere"]):
        text = fault(tmp_path, store, data, *options, text=DIGITS)
        assert "comes with scikit-learn: nothing is read from /nowhere" in text
    with pytest.raises(UserError, match="scikit-learn"):
        make(store, "digits", path=tmp_path)
    assert store.root.exists() == prepared


def test_digits_of_another_size(tmp_path: Path, store: Store) -> None:
    """A plan does not take them for the official ones, and keys do not move once they are there."""
    data = "{digits: {image_size: 16}}"
    asked(tmp_path, store, data, text=DIGITS)
    found = known_infos(store, {"digits": Location(image_size=16)})["digits"]
    assert (found.image_size, found.fingerprint) == (16, PROVISIONAL)
    assert known_infos(store, {"digits": Location(image_size=8)}) == OFFICIAL
    make(store, "digits", image_size=16)
    asked(tmp_path, store, data, text=DIGITS)
    found = known_infos(store, {"digits": Location(image_size=16)})["digits"]
    assert (found.image_size, found.num_train) == (16, 1438)
    assert found.fingerprint not in (PROVISIONAL, OFFICIAL["digits"].fingerprint)


def test_prepare_digits(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_it = ("data", "prepare", "digits", "--store", store.root)
    assert command(monkeypatch, *prepare_it, "--image-size", 16, "--download") == 0
    assert "of 16 pixels" in capsys.readouterr().out
    assert command(monkeypatch, *prepare_it) == 0
    assert "of 16 pixels" in capsys.readouterr().out
    assert command(monkeypatch, *prepare_it, "--image-size", 8) == 2
    assert "digits of 16 pixels, but image_size 8" in capsys.readouterr().err


def test_a_download_keeps_the_size(
    store: Store, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        archive, "download", lambda name, folder: shutil.copytree(raw, folder / name)
    )
    assert (
        command(
            monkeypatch, "data", "prepare", "cifar10", "--download", "--image-size", 4,
            "--store", store.root,
        ) == 0
    )  # fmt: skip
    assert load(store.root / "datasets/cifar10").info.image_size == 4


# -- columns of Parquet files ----------------------------------------------------------------------


@pytest.fixture
def tables(tmp_path: Path, raw: Path) -> Path:
    """Parquet files with unusual columns; `coarse` has one class, `fine` two."""
    folder = tmp_path / "tables"
    folder.mkdir()
    for split in ("train", "test"):
        files = sorted((raw / split).rglob("*.png"))
        columns = {
            "picture": [file.read_bytes() for file in files],
            "coarse": [0] * len(files),
            "fine": [int(file.parent.name == "dog") for file in files],
        }
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    return folder


def test_columns_of_a_sweep_file(tmp_path: Path, store: Store, tables: Path) -> None:
    data = "{mine: {path: tables, image_column: picture, label_column: fine}}"
    (sweep,) = load_sweeps([write(tmp_path, MINE + f"data: {data}\n")])
    info = prepare_dataset(store, "mine", locations_of([sweep])["mine"], CONSOLE)
    assert (info.num_classes, info.num_train) == (2, 6)
    asked(tmp_path, store, data)
    text = fault(tmp_path, store, data.replace("fine", "coarse"))
    assert "mine of label_column fine, but label_column coarse is asked for" in text
    text = fault(tmp_path, store, data.replace(", label_column: fine", ""))
    assert "but label_column by default is asked for" in text


def test_columns_of_the_command(
    store: Store,
    tables: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("data", "prepare", "mine", "--path", tables, "--store", store.root)
    assert command(monkeypatch, *arguments) == 2
    assert "image_column, label_column" in capsys.readouterr().err
    arguments = (*arguments, "--image-column", "picture", "--label-column", "coarse")
    assert command(monkeypatch, *arguments) == 0
    assert "1 classes" in capsys.readouterr().out
    meta = read_meta(store.root / "datasets/mine")
    assert (meta["image_column"], meta["label_column"]) == ("picture", "coarse")


@pytest.mark.parametrize("name", ["mine", "digits"])
def test_columns_that_nobody_reads(store: Store, raw: Path, name: str) -> None:
    path = None if name == "digits" else raw
    with pytest.raises(UserError, match="has no column fine: it is no Parquet file"):
        make(store, name, path=path, label_column="fine")


def test_another_label_column_is_decoded_again(tmp_path: Path, tables: Path) -> None:
    """The files are the same, the data set is not."""

    def classes(label_column: str) -> int:
        return prepare(
            "mine", out=tmp_path / "out", path=tables, image_column="picture",
            label_column=label_column,
        ).num_classes  # fmt: skip

    assert (classes("coarse"), classes("fine")) == (1, 2)


# -- classes without images ------------------------------------------------------------------------


def test_an_empty_class_folder(tmp_path: Path, raw: Path) -> None:
    (raw / "train" / "eel").mkdir()
    with pytest.raises(DataError, match=r"train/eel holds no image"):
        prepare("mine", out=tmp_path / "out", path=raw)
    assert not (tmp_path / "out" / "meta.json").exists()


def with_class_names(folder: Path, names: list[str]) -> Path:
    for file in folder.glob("*.parquet"):
        table = pq.read_table(file).rename_columns(["image", "coarse", "label"])
        pq.write_table(table.replace_schema_metadata({"classes": json.dumps(names)}), file)
    return folder


def test_more_class_names_than_labels(tmp_path: Path, tables: Path) -> None:
    """Three outputs make another model than two: another fingerprint, although no array differs."""
    two = prepare("mine", out=tmp_path / "2", path=with_class_names(tables, ["a", "b"]))
    shutil.copytree(tables, tmp_path / "again")
    for file in (tmp_path / "again").glob("*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.replace_schema_metadata({"classes": '["a", "b", "c"]'}), file)
    three = prepare("mine", out=tmp_path / "3", path=tmp_path / "again")
    assert (two.num_classes, three.num_classes) == (2, 3)
    assert two.fingerprint != three.fingerprint
    assert two.fingerprint == read_meta(tmp_path / "2")["content"]
    assert read_meta(tmp_path / "3")["content"] == two.fingerprint
    assert np.array_equal(load(tmp_path / "2").train_images, load(tmp_path / "3").train_images)


# -- encoded pictures ------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_imagenet(tmp_path / "photos", classes=2, per_class=3)


def test_prepare_imagenet(
    store: Store,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("data", "prepare", "imagenet", "--path", photos, "--store", store.root)
    assert command(monkeypatch, *arguments) == 2
    assert "6 training and 4 test images of 2 classes, not 1,281,167" in capsys.readouterr().err
    asked_for = ("--subset", "--shorter-side", 32, "--jpeg-quality", 80)
    assert command(monkeypatch, *arguments, *asked_for) == 0
    out = capsys.readouterr().out
    assert "6 training and 4 test pictures, encoded, 2 classes" in out
    meta = read_meta(store.root / "datasets/imagenet")
    assert (meta["shorter_side"], meta["jpeg_quality"], meta["subset"]) == (32, 80, True)
    assert command(monkeypatch, *arguments, *asked_for) == 0
    assert command(monkeypatch, *arguments, "--subset") == 2
    assert "with shorter side 32, but shorter side not set" in capsys.readouterr().err
    assert command(monkeypatch, *arguments, "--image-size", 8, "--encoded") == 2


PHOTOS = TINY.replace("dataset: digits", "dataset: imagenet") + GRID


def test_encoded_pictures_of_a_sweep_file(tmp_path: Path, store: Store, photos: Path) -> None:
    data = "{imagenet: {path: photos, subset: true, jpeg_quality: 90}}"
    (sweep,) = load_sweeps([write(tmp_path, PHOTOS + f"data: {data}\n")])
    location = locations_of([sweep])["imagenet"]
    assert location == Location(path=photos, subset=True, jpeg_quality=90)
    info = prepare_dataset(store, "imagenet", location, CONSOLE)
    assert (info.num_train, info.image_size) == (6, 224)
    asked(tmp_path, store, data, text=PHOTOS)
    asked(tmp_path, store, text=PHOTOS)
    asked(tmp_path, store, data.replace("photos", "/nowhere"), text=PHOTOS)
    for change, says in (
        (", jpeg_quality: 90", "with jpeg quality 90, but jpeg quality not set"),
        (", subset: true", "with subset True, but subset not set"),
    ):
        assert says in fault(tmp_path, store, data.replace(change, ""), text=PHOTOS)
    decoded = data.replace("jpeg_quality: 90", "image_size: 16")
    assert "but image_size 16 is asked for" in fault(tmp_path, store, decoded, text=PHOTOS)


def test_decoded_is_not_encoded(tmp_path: Path, store: Store, raw: Path) -> None:
    make(store, "mine", path=raw)
    text = fault(tmp_path, store, "{mine: {path: raw, encoded: true}}")
    assert "holds data set mine decoded, but the encoded pictures is asked for" in text


def test_encoded_pictures_in_a_remote_store(photos: Path, tmp_path: Path) -> None:
    from pyarrow import fs

    bucket = tmp_path / "bucket"
    bucket.mkdir()
    remote = Store("runs", filesystem=fs.SubTreeFileSystem(str(bucket), fs.LocalFileSystem()))
    location = Location(path=photos, subset=True)
    info = prepare_dataset(remote, "imagenet", location, CONSOLE)
    assert prepare_dataset(remote, "imagenet", location, CONSOLE) == info
    data = load(remote.local("datasets/imagenet"), image_size=16)
    assert data.info.fingerprint == info.fingerprint
    assert data.test_images.shape == (4, 3, 16, 16)


# -- calibration -----------------------------------------------------------------------------------


def test_calibrating_needs_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, TINY + GRID)
    assert command(monkeypatch, "plan", file, "--calibrate", "--store", tmp_path / "store") == 0
    out = capsys.readouterr().out
    assert "nothing measured" not in out
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("setting", ["ipc=100", "training.batch_size=1024"])
def test_calibrating_any_subset_and_batch(tmp_path: Path, setting: str) -> None:
    plan = tiny_plan(tmp_path, None, setting, text=TINY + GRID.replace("[A, B, C]", "[B, C]"))
    rates = calibrate(plan.infos, plan.left, steps=1, seconds=3600.0).steps  # however busy it is
    assert {group.strategy for group in rates} == {"B", "C", "teacher", "evaluation"}
    assert all(rate.per_s > 0 and rate.n == 1 for rate in rates.values())


def test_calibrating_what_nobody_opened(tmp_path: Path) -> None:
    (sweep,) = load_sweeps([write(tmp_path, MINE + "data: {mine: {path: raw}}\n")])
    plan = make_plan([sweep], OFFICIAL)
    assert calibrate(plan.infos, plan.left).steps == {}
