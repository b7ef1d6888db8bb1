"""Preparing, loading and verifying data sets."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from trainers.data.catalogue import OFFICIAL
from trainers.data.images import content_fingerprint
from trainers.data.info import PROVISIONAL
from trainers.data.meta import load_info
from trainers.data.order import SampleOrder
from trainers.data.prepare import prepare
from trainers.data.prepared import load
from trainers.data.subset import ipc_indices
from trainers.errors import DataError

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


def write_folder(root, sizes=(8, 8)):
    """An image folder of two classes, 3 training and 2 test images each, random pixels."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 3), ("test", 2)):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True, exist_ok=True)
            for i in range(number):
                pixels = rng.integers(0, 256, (*sizes, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    return root


def test_digits_are_what_the_catalogue_says(tmp_path):
    calls = []
    info = prepare("digits", out=tmp_path, progress=lambda *call: calls.append(call))
    assert info == OFFICIAL["digits"] == load_info(tmp_path)
    data = load(tmp_path)
    assert data.info == info
    assert data.train_images.shape == (1438, 3, 8, 8)
    assert data.test_images.shape == (359, 3, 8, 8)
    assert data.train_images.dtype == torch.uint8
    assert data.train_images.max() == 255
    assert data.train_labels.dtype == torch.int64
    assert data.train_labels.bincount().min() == info.smallest_class
    pixels = data.train_images.double() / 255
    assert pixels.mean(dim=(0, 2, 3)).tolist() == pytest.approx(info.mean, abs=5e-5)
    assert pixels.std(dim=(0, 2, 3), correction=0).tolist() == pytest.approx(info.std, abs=5e-5)
    assert calls == [("train", 1000, 1438), ("train", 1438, 1438), ("test", 359, 359)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "meta.json",
        "test-images.npy",
        "test-labels.npy",
        "train-images.npy",
        "train-labels.npy",
    ]


def test_official_fingerprints_do_not_move():
    """Run keys hold them: a change here is a change of identity."""
    assert {name: info.fingerprint[:16] for name, info in OFFICIAL.items()} == {
        "digits": "b47d483e78025045",
        "cifar10": "293001d707596bcf",
        "cifar100": "e83629e29965f447",
        "tinyimagenet": PROVISIONAL,  # nobody publishes what is in them
        "imagenet": PROVISIONAL,
    }


def test_resized_digits_are_not_official(tmp_path):
    info = prepare("digits", out=tmp_path, image_size=16)
    assert info.image_size == 16
    assert info.fingerprint != OFFICIAL["digits"].fingerprint
    assert info.fingerprint == json.loads((tmp_path / "meta.json").read_text())["content"]


def test_a_folder_is_described_from_its_content(tmp_path):
    info = prepare("toy", out=tmp_path / "out", path=write_folder(tmp_path / "in"))
    data = load(tmp_path / "out")
    assert (info.num_classes, info.num_train, info.num_test) == (2, 6, 4)
    assert (info.smallest_class, info.balanced, info.image_size) == (3, True, 8)
    pixels = data.train_images.double() / 255
    assert info.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), abs=5e-5)
    assert info.std == pytest.approx(pixels.std(dim=(0, 2, 3), correction=0).tolist(), abs=5e-5)
    arrays = (data.train_images, data.train_labels, data.test_images, data.test_labels)
    assert info.fingerprint == content_fingerprint(*(array.numpy() for array in arrays))
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["source"] == "folder"
    assert meta["classes"] == ["cat", "dog"]


def test_unlike_sizes_need_an_image_size(tmp_path):
    write_folder(tmp_path / "in")
    Image.new("RGB", (12, 9)).save(tmp_path / "in" / "train" / "dog" / "0.png")
    with pytest.raises(DataError, match=r"dog/0.png is 9×12, not 8×8(?s:.*)set image_size"):
        prepare("toy", out=tmp_path / "out", path=tmp_path / "in")
    assert list((tmp_path / "out").iterdir()) == []
    info = prepare("toy", out=tmp_path / "out", path=tmp_path / "in", image_size=8)
    assert info.image_size == 8


def test_a_single_oblong_size_needs_an_image_size(tmp_path):
    with pytest.raises(DataError, match="is 8×10"):
        prepare("toy", out=tmp_path / "out", path=write_folder(tmp_path / "in", (8, 10)))


def test_prepared_data_are_decoded_once(tmp_path):
    source, out = write_folder(tmp_path / "in"), tmp_path / "out"
    info = prepare("toy", out=out, path=source)
    written = (out / "meta.json").stat().st_ino
    assert prepare("toy", out=out, path=source) == info
    assert prepare("toy", out=out) == info  # the source may be gone by now
    assert (out / "meta.json").stat().st_ino == written

    with pytest.raises(DataError, match="no path is given"):
        prepare("toy", out=out, image_size=4)
    assert prepare("toy", out=out, path=source, image_size=4).image_size == 4
    (source / "train" / "cat" / "0.png").unlink()
    changed = prepare("toy", out=out, path=source)
    assert changed.num_train == 5
    assert not changed.balanced


def test_verification_notices_a_changed_byte(tmp_path):
    prepare("digits", out=tmp_path)
    images = np.load(tmp_path / "test-images.npy", mmap_mode="r+")
    images[7, 0, 0, 0] ^= 1
    images.flush()
    with pytest.raises(DataError, match="not those that were prepared"):
        load(tmp_path)
    load(tmp_path, verify=False)


def test_loaded_tensors_never_change_the_files(tmp_path):
    prepare("digits", out=tmp_path)
    load(tmp_path).train_images.zero_()
    assert load(tmp_path).train_images.max() == 255


def test_unprepared_and_damaged_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no prepared data set"):
        load_info(tmp_path)
    prepare("digits", out=tmp_path)
    (tmp_path / "train-labels.npy").write_bytes(b"")
    with pytest.raises(DataError, match="lacks an array, or it is damaged"):
        load(tmp_path)


def test_fingerprint_sees_dtype_shape_and_order():
    images, labels = np.zeros((2, 3, 4, 4), np.uint8), np.zeros(2, np.int64)
    prints = {
        content_fingerprint(images, labels, images, labels),
        content_fingerprint(images.reshape(2, 3, 2, 8), labels, images, labels),
        content_fingerprint(images, labels.astype(np.int32), images, labels),
        content_fingerprint(images, labels + 1, images, labels),
        content_fingerprint(images, labels, images, labels + 1),
    }
    assert len(prints) == 5


def test_more_labels_than_class_names(tmp_path):
    png = (write_folder(tmp_path / "in") / "train" / "cat" / "0.png").read_bytes()
    table = pa.table({"image": [png], "label": [2]})
    for split in ("train", "test"):
        pq.write_table(
            table.replace_schema_metadata({"classes": '["a", "b"]'}), tmp_path / f"{split}.parquet"
        )
    with pytest.raises(DataError, match="has 2 class names, but a label 2"):
        prepare("toy", out=tmp_path / "out", path=tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real images on this machine")
def test_real_cifar10_parquet(tmp_path):
    table = pq.read_table(SHARED / "cifar10_test.parquet").slice(0, 300)
    pq.write_table(table, tmp_path / "cifar10_train.parquet")
    pq.write_table(table.slice(0, 100), tmp_path / "cifar10_test.parquet")
    info = prepare("cifar10", out=tmp_path / "out", path=tmp_path)
    data = load(tmp_path / "out")
    assert data.train_images.shape == (300, 3, 32, 32)
    assert data.train_labels[:5].tolist() == [3, 8, 8, 0, 6]  # cat, ship, ship, plane, frog
    assert info.fingerprint != OFFICIAL["cifar10"].fingerprint
    assert (info.num_classes, info.mean) == (10, OFFICIAL["cifar10"].mean)
    measured = (data.train_images.double() / 255).mean(dim=(0, 2, 3)).tolist()
    assert measured == pytest.approx(info.mean, abs=0.03)
    subset = ipc_indices(data.train_labels, ipc=10, subset_seed=0)
    batch = subset[torch.from_numpy(SampleOrder(len(subset), 64, "student", 0).batch(0))]
    assert data.train_images[batch].shape == (64, 3, 32, 32)
