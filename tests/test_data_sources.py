"""Reading what people have: official archives, Parquet files, image folders."""

import dataclasses
import hashlib
import io
import json
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainers.data import archive, folder, parquet
from trainers.data.decode import decode, fit_array
from trainers.data.find import find_source
from trainers.errors import DataError

RNG = np.random.default_rng(0)


def encoded(image_HWC, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, kind, **options)
    return buffer.getvalue()


def random_images(number, size=8):
    return RNG.integers(0, 256, (number, size, size, 3), dtype=np.uint8)


def taken(source, split, image_size=None):
    content = source.read(split, image_size)
    return np.stack([image for image, _ in content.images]), content.labels


# --- official archives ---------------------------------------------------------------------------


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def cifar(tmp_path):
    """A synthetic archive of 2 × 4 training and 3 test images, unpacked, with its own checksums."""
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()

    def write(name, content):
        data = pickle.dumps(content, protocol=3)
        (root / name).write_bytes(data)
        return md5(data)

    def batch(number):
        pixels = RNG.integers(0, 256, (number, 3072), dtype=np.uint8)
        return {"data": pixels, "labels": list(range(number))}

    batches = {"data_batch_1": batch(4), "data_batch_2": batch(4), "test_batch": batch(3)}
    sums = {name: write(name, content) for name, content in batches.items()}
    layout = dataclasses.replace(
        archive.LAYOUTS["cifar10"],
        train={name: sums[name] for name in ("data_batch_1", "data_batch_2")},
        test={"test_batch": sums["test_batch"]},
        meta=("batches.meta", write("batches.meta", {"label_names": ["a", "b", "c", "d"]})),
    )
    return tmp_path, layout, batches


def test_unpacked_and_packed_archives_read_the_same(cifar):
    path, layout, batches = cifar
    source = archive.find("cifar10", path, {"cifar10": layout})
    images, labels = taken(source, "train")
    expected = np.concatenate([batches[n]["data"] for n in ("data_batch_1", "data_batch_2")])
    np.testing.assert_array_equal(images, expected.reshape(-1, 3, 32, 32))
    assert labels.tolist() == [0, 1, 2, 3] * 2
    assert source.class_names() == ("a", "b", "c", "d")
    assert source.official_fingerprint == layout.fingerprint

    packed = path / "packed" / layout.filename
    packed.parent.mkdir()
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(path / layout.folder, layout.folder)
    from_tar = archive.find("cifar10", packed.parent, {"cifar10": layout})
    assert from_tar.files == (packed,)
    np.testing.assert_array_equal(taken(from_tar, "train")[0], images)


def test_a_changed_or_missing_batch_is_refused(cifar):
    path, layout, _ = cifar
    source = archive.find("cifar10", path, {"cifar10": layout})
    test_batch = path / layout.folder / "test_batch"
    test_batch.write_bytes(test_batch.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"test_batch in .* has MD5"):
        source.read("test", None)
    test_batch.unlink()
    with pytest.raises(DataError, match="lacks test_batch"):
        source.read("test", None)


def test_a_truncated_archive_is_refused(tmp_path):
    layout = archive.LAYOUTS["cifar10"]
    (tmp_path / layout.filename).write_bytes(b"\x1f\x8b\x08\x00 not an archive")
    with pytest.raises(DataError, match="cannot be read"):
        archive.find("cifar10", tmp_path).read("train", None)


class Malicious:
    def __reduce__(self):
        return eval, ("1 + 1",)


@pytest.mark.parametrize("payload", [Malicious(), np.random.default_rng, {"data": Malicious()}])
def test_pickles_with_code_are_refused(payload):
    with pytest.raises(pickle.UnpicklingError, match="is not allowed"):
        archive.restricted_loads(pickle.dumps(payload))


def test_a_malicious_batch_with_the_right_checksum_is_refused(cifar):
    path, layout, _ = cifar
    data = pickle.dumps(Malicious())
    (path / layout.folder / "test_batch").write_bytes(data)
    layout = dataclasses.replace(layout, test={"test_batch": md5(data)})
    with pytest.raises(DataError, match=r"builtins.eval is not allowed"):
        archive.find("cifar10", path, {"cifar10": layout}).read("test", None)


def test_pickles_of_numpy_1_are_read():
    """The official files name numpy.core.multiarray and hold the bytes as a Python 2 string."""
    data = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I3\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"
        b"I00\nS'\\x01\\x80\\xff'\ntb."
    )
    assert archive.restricted_loads(data).tolist() == [1, 128, 255]


def test_checksums_are_torchvisions():
    from torchvision.datasets import CIFAR10, CIFAR100

    for name, official in {"cifar10": CIFAR10, "cifar100": CIFAR100}.items():
        layout = archive.LAYOUTS[name]
        assert dict(layout.train) == dict(official.train_list)
        assert dict(layout.test) == dict(official.test_list)
        assert layout.meta == (official.meta["filename"], official.meta["md5"])
        assert (layout.filename, layout.folder) == (official.filename, official.base_folder)
        assert (layout.url, layout.md5) == (official.url, official.tgz_md5)
        assert layout.meta_key == official.meta["key"]


# --- Parquet -------------------------------------------------------------------------------------


def write_parquet(path, images, labels, image="image", label="label", metadata=None):
    table = pa.table({image: images, label: labels})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_images_come_back_exactly(tmp_path, kind):
    pixels = random_images(3)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = [encoded(image, kind, **options) for image in pixels]
    write_parquet(tmp_path / "toy_train.parquet", data, [0, 1, 0])
    write_parquet(tmp_path / "toy_test.parquet", data, [1, 1, 0])
    images, labels = taken(parquet.find("toy", tmp_path), "train")
    np.testing.assert_array_equal(images, pixels.transpose(0, 3, 1, 2))
    assert labels.tolist() == [0, 1, 0]
    assert labels.dtype == np.int64


def test_jpeg_and_greyscale_become_rgb(tmp_path):
    grey = random_images(1)[0, :, :, 0]
    data = [encoded(grey, "JPEG"), encoded(grey)]
    write_parquet(tmp_path / "train.parquet", data, [0, 1])
    write_parquet(tmp_path / "val.parquet", data, [0, 1])
    images, _ = taken(parquet.find("toy", tmp_path), "test")
    assert images.shape == (2, 3, 8, 8)
    np.testing.assert_array_equal(images[1], np.stack([grey] * 3))


def test_hugging_face_layout_and_class_names(tmp_path):
    names = ["cat", "dog"]
    info = {"info": {"features": {"fine_label": {"names": names, "_type": "ClassLabel"}}}}
    metadata = {"huggingface": json.dumps(info)}
    cells = [{"bytes": encoded(image), "path": None} for image in random_images(4)]
    for stem in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write_parquet(
            tmp_path / "toy" / f"{stem}.parquet",
            cells,
            [0, 1, 1, 0],
            "img",
            "fine_label",
            metadata,
        )
    source = parquet.find("toy", tmp_path)
    assert [path.name for path in source.train] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    images, labels = taken(source, "train")
    assert images.shape == (8, 3, 8, 8)
    assert labels.tolist() == [0, 1, 1, 0] * 2
    assert source.class_names() == ("cat", "dog")


def test_class_names_from_plain_metadata(tmp_path):
    data, metadata = [encoded(random_images(1)[0])], {"classes": '["cat", "dog"]'}
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", data, [1], metadata=metadata)
    assert parquet.find("toy", tmp_path).class_names() == ("cat", "dog")


@pytest.fixture
def toy(tmp_path):
    data = [encoded(image) for image in random_images(3)]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", data, [0, 1, 2])
    return tmp_path


def test_columns_can_be_named(toy):
    data = [encoded(image) for image in random_images(1)]
    write_parquet(toy / "train.parquet", data, [7], "picture", "kind")
    with pytest.raises(DataError, match=r"has no column label or fine_label: it has picture, kind"):
        parquet.find("toy", toy).read("train", None)
    source = parquet.find("toy", toy, image_column="picture", label_column="kind")
    assert taken(source, "train")[1].tolist() == [7]


def test_a_corrupt_file_is_named(toy):
    (toy / "train.parquet").write_bytes(b"PAR1 this is not one")
    with pytest.raises(DataError, match=r"train.parquet is not a readable Parquet file"):
        parquet.find("toy", toy).read("train", None)


@pytest.mark.parametrize(
    ("cell", "problem"),
    [(b"no image", "cannot be decoded"), (None, "holds no image bytes")],
)
def test_a_bad_image_is_named_by_file_row_and_column(toy, cell, problem):
    good = encoded(random_images(1)[0])
    write_parquet(toy / "train.parquet", [good, cell], [0, 1])
    with pytest.raises(DataError, match=rf"row 1 of .*train.parquet, column 'image', {problem}"):
        taken(parquet.find("toy", toy), "train")


def test_missing_and_non_integer_labels_are_refused(toy):
    good = encoded(random_images(1)[0])
    write_parquet(toy / "train.parquet", [good, good], [0, None])
    with pytest.raises(DataError, match=r"row 1 of .* has no label"):
        parquet.find("toy", toy).read("train", None)
    write_parquet(toy / "train.parquet", [good], ["cat"])
    with pytest.raises(DataError, match="is string, not integer"):
        parquet.find("toy", toy).read("train", None)


def as_hugging_face_publishes(folder, test_labels):
    pictures = [encoded(image) for image in random_images(4)]
    write_parquet(folder / "train-00000-of-00001.parquet", pictures, [0, 1, 0, 1])
    write_parquet(folder / "validation-00000-of-00001.parquet", pictures[:2], [1, 0])
    write_parquet(folder / "test-00000-of-00001.parquet", pictures, test_labels)


@pytest.mark.parametrize(
    ("test_labels", "found"),
    [([-1] * 4, [1, 0]), ([None] * 4, [1, 0]), ([0, 0, 1, 1], [0, 0, 1, 1])],
)
def test_a_test_split_that_nobody_labelled_is_passed_over(tmp_path, test_labels, found):
    """ImageNet's, as Hugging Face publishes it."""
    as_hugging_face_publishes(tmp_path, test_labels)
    source = parquet.find("mine", tmp_path)
    assert source.encoded("test").labels.tolist() == found


def test_unlabelled_tests_without_a_validation_split(tmp_path):
    as_hugging_face_publishes(tmp_path, [-1] * 4)
    validation = tmp_path / "validation-00000-of-00001.parquet"
    validation.unlink()
    with pytest.raises(DataError, match=r"row 0 of .*test-00000.* has no label"):
        parquet.find("mine", tmp_path).read("test", None)
    train = pq.read_table(tmp_path / "train-00000-of-00001.parquet")
    pq.write_table(train.select(["image"]), validation)  # pictures alone
    with pytest.raises(DataError, match=r"row 0 of .*test-00000.* has no label"):
        parquet.find("mine", tmp_path).read("test", None)
    with pytest.raises(DataError, match=r"has no column labl: it has image, label"):
        parquet.find("mine", tmp_path, label_column="labl").read("test", None)


def test_a_test_split_that_is_labelled_in_part_is_not_passed_over(tmp_path):
    as_hugging_face_publishes(tmp_path, [-1] * 4)
    picture = encoded(random_images(1)[0])
    write_parquet(tmp_path / "test-00001-of-00002.parquet", [picture], [1])
    with pytest.raises(DataError, match=r"row 0 of .*test-00000.* has no label"):
        parquet.find("mine", tmp_path).read("test", None)


def test_training_files_without_a_test_split(toy):
    (toy / "test.parquet").unlink()
    with pytest.raises(DataError, match="no test split"):
        parquet.find("toy", toy)


# --- image folders -------------------------------------------------------------------------------


def test_image_folders(tmp_path):
    pixels = random_images(5)
    for (split, label, file), image in zip(
        [
            ("train", "dog", "b.png"),
            ("train", "cat", "images/a.PNG"),
            ("train", "dog", "a.png"),
            ("val", "dog", "x.png"),
            ("val", "cat", "x.png"),
        ],
        pixels,
        strict=True,
    ):
        path = tmp_path / "toy" / split / label / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image))
    (tmp_path / "toy" / "train" / "dog" / "notes.txt").write_text("no image")
    source = folder.find("toy", tmp_path)
    images, labels = taken(source, "train")
    assert source.class_names() == ("cat", "dog")
    assert labels.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(images, pixels[[1, 2, 0]].transpose(0, 3, 1, 2))
    assert len(source.files) == 5

    (tmp_path / "toy" / "val" / "bird").mkdir()
    with pytest.raises(DataError, match="bird is a class that"):
        source.read("test", None)


def test_image_folder_without_a_test_split(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="no test split"):
        folder.find("toy", tmp_path)


# --- decoding and finding ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(10, 17), (17, 10), (8, 8), (40, 40), (9, 9)])
def test_resize_and_centre_crop_as_torchvision_does(shape):
    from torchvision.transforms import CenterCrop, Compose, Resize

    pixels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = Compose([Resize(9), CenterCrop(9)])(Image.fromarray(pixels))
    actual = fit_array(pixels.transpose(2, 0, 1), 9)
    np.testing.assert_array_equal(actual, np.asarray(expected).transpose(2, 0, 1))
    np.testing.assert_array_equal(decode(encoded(pixels), "here", 9), actual)


def test_nothing_found_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError) as error:
        find_source("cifar10", tmp_path)
    for word in ("cifar-10-python.tar.gz", "cifar10_train*.parquet", "train/<class>/", "download"):
        assert word in str(error.value)
    with pytest.raises(DataError, match="no path is given"):
        find_source("toy", None)
    with pytest.raises(DataError, match="is not a folder"):
        find_source("toy", tmp_path / "absent")


def test_only_the_official_archives_can_be_downloaded(tmp_path):
    with pytest.raises(DataError, match="'toy' cannot be downloaded"):
        archive.download("toy", tmp_path)
