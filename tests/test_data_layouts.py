"""The official folders of Tiny-ImageNet and ImageNet, and where they are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.stand_in_data import (
    encoded,
    picture,
    wnids,
    write_cifar,
    write_imagenet,
    write_parquet,
    write_tiny_imagenet,
)
from trainers.data.catalogue import OFFICIAL
from trainers.data.find import find_source
from trainers.data.prepare import Form, made_from, prepare
from trainers.data.prepared import load
from trainers.errors import DataError

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
SUBSET = Form(subset=True)


# -- Tiny-ImageNet ---------------------------------------------------------------------------------


def test_tiny_imagenet_as_it_is_published(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path, classes=3, per_class=4)
    info = prepare("tinyimagenet", out=tmp_path / "out", path=tmp_path)
    data = load(tmp_path / "out")
    assert (info.num_classes, info.num_train, info.num_test) == (3, 12, 6)
    assert (info.image_size, info.balanced) == (64, True)
    assert (info.mean, info.std) == (OFFICIAL["tinyimagenet"].mean, OFFICIAL["tinyimagenet"].std)
    assert data.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.test_labels.tolist() == [0, 1, 2] * 2  # in the order of the annotations
    grey = data.train_images[1]
    assert torch.equal(grey[0], grey[1])
    assert not torch.equal(data.train_images[0][0], data.train_images[0][1])


def test_tiny_imagenet_in_parquet_is_the_same_pictures(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path / "folder", classes=2, per_class=3)
    source = find_source("tinyimagenet", tmp_path / "folder")
    for split, name in (("train", "train"), ("test", "val")):
        files = source.labelled(split)  # type: ignore[attr-defined]
        write_parquet(
            tmp_path / f"tinyimagenet_{name}.parquet",
            [file.read_bytes() for file, _ in files],
            [label for _, label in files],
        )
    infos = [
        prepare("tinyimagenet", out=tmp_path / f"out{i}", path=path)
        for i, path in enumerate((tmp_path / "folder", tmp_path))
    ]
    assert infos[0] == infos[1]


def test_an_annotation_without_its_image(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path)
    (tmp_path / "tiny-imagenet-200" / "val" / "images" / "val_3.JPEG").unlink()
    with pytest.raises(DataError, match=r"'val_3\.JPEG"):
        prepare("tinyimagenet", out=tmp_path / "out", path=tmp_path)


def test_a_class_without_images(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path, classes=2)
    folder = tmp_path / "tiny-imagenet-200" / "train" / wnids(2)[1] / "images"
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(DataError, match=f"{wnids(2)[1]} holds no image"):
        prepare("tinyimagenet", out=tmp_path / "out", path=tmp_path)


# -- ImageNet --------------------------------------------------------------------------------------


@pytest.mark.parametrize("val", ["folders", "csv", "txt"])
def test_imagenets_layouts_are_the_same_pictures(tmp_path: Path, val: str) -> None:
    write_imagenet(tmp_path / "folders", classes=3, per_class=3)
    write_imagenet(tmp_path / val, classes=3, per_class=3, val=val)
    labels = {}
    for name in ("folders", val):
        source = find_source("imagenet", tmp_path / name)
        assert source.kind == "imagenet"
        assert source.class_names() == tuple(wnids(3))
        files = source.labelled("test")  # type: ignore[attr-defined]
        labels[name] = {file.name: label for file, label in files}
        assert len(source.labelled("train")) == 9  # type: ignore[attr-defined]
    assert labels["folders"] == labels[val]
    assert sorted(labels[val].values()) == [0, 0, 1, 1, 2, 2]


def test_kaggles_folders(tmp_path: Path) -> None:
    root = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    write_imagenet(root, classes=2, per_class=2, val="csv")
    os.rename(root / "LOC_val_solution.csv", tmp_path / "LOC_val_solution.csv")
    source = find_source("imagenet", tmp_path)
    assert [label for _, label in source.labelled("test")] == [0, 1, 0, 1]  # type: ignore[attr-defined]


def test_wnids_a_line_follow_the_files(tmp_path: Path) -> None:
    write_imagenet(tmp_path, classes=2, per_class=2, val="txt")
    file = tmp_path / "val_labels.txt"
    file.write_text("\n".join(line.split()[1] for line in file.read_text().splitlines()))
    source = find_source("imagenet", tmp_path)
    assert [label for _, label in source.labelled("test")] == [0, 1, 0, 1]  # type: ignore[attr-defined]


def test_a_flat_val_without_or_with_a_wrong_list(tmp_path: Path) -> None:
    write_imagenet(tmp_path, classes=2, per_class=2, val="txt")
    (tmp_path / "val_labels.txt").write_text("490\n361\n171\n822\n")  # the devkit's numbers
    with pytest.raises(DataError, match=r"says '490'(?s:.*)devkit's numbers are in another order"):
        prepare("imagenet", out=tmp_path / "out", path=tmp_path, form=SUBSET)
    (tmp_path / "val_labels.txt").write_text("490\n361\n")
    with pytest.raises(DataError, match="lists 2"):
        prepare("imagenet", out=tmp_path / "out", path=tmp_path, form=SUBSET)
    (tmp_path / "val_labels.txt").unlink()
    with pytest.raises(DataError, match="no list of its images' classes"):
        find_source("imagenet", tmp_path)


def test_what_tells_imagenets_files_apart(tmp_path: Path) -> None:
    write_imagenet(tmp_path / "in", classes=2, per_class=2)
    prepare("imagenet", out=tmp_path / "out", path=tmp_path / "in", form=SUBSET)
    assert made_from(tmp_path / "out", find_source("imagenet", tmp_path / "in"))
    next((tmp_path / "in" / "train" / wnids(2)[0]).iterdir()).unlink()
    assert not made_from(tmp_path / "out", find_source("imagenet", tmp_path / "in"))


# -- stand-ins and real images ---------------------------------------------------------------------


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_stand_ins(tmp_path: Path, name: str, classes: int) -> None:
    info = prepare(name, out=tmp_path / "out", path=write_cifar(tmp_path, name, per_class=3))
    assert (info.num_classes, info.num_train, info.image_size) == (classes, 3 * classes, 32)
    assert info.fingerprint != OFFICIAL[name].fingerprint


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real images on this machine")
def test_real_tiny_imagenet(tmp_path: Path) -> None:
    for split in ("train", "val"):
        table = pq.read_table(SHARED / f"tinyimagenet25_{split}.parquet")
        every = table.take(list(range(0, table.num_rows, 5)))
        pq.write_table(every, tmp_path / f"tinyimagenet_{split}.parquet")
    info = prepare("tinyimagenet", out=tmp_path / "out", path=tmp_path)
    data = load(tmp_path / "out")
    assert (info.num_classes, info.num_train, info.num_test) == (25, 2500, 250)
    assert data.train_images.shape[1:] == (3, 64, 64)
    pixels = data.train_images.double() / 255
    assert pixels.mean(dim=(0, 2, 3)).tolist() == pytest.approx(info.mean, abs=0.04)
    assert pixels.std(dim=(0, 2, 3)).tolist() == pytest.approx(info.std, abs=0.03)
    grey = (data.train_images[:, 0] == data.train_images[:, 1]).flatten(1).all(dim=1)
    assert 0 < grey.float().mean() < 0.05


def test_a_stand_in_picture_is_a_function_of_its_arguments() -> None:
    assert encoded(picture(3, 1, (40, 50))) == encoded(picture(3, 1, (40, 50)))
    assert encoded(picture(3, 1, (40, 50))) != encoded(picture(3, 2, (40, 50)))
