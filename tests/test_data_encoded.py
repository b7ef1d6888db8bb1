"""Pictures that stay encoded: shards, kills in the middle, what is verified, and their views."""

from __future__ import annotations

import io
import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from tests.stand_in_data import encoded, picture, wnids, write_imagenet, write_parquet
from tests.test_data_prepare import write_folder
from trainers.data import encoded as encoded_module
from trainers.data import shards
from trainers.data.encoded import EncodedImages
from trainers.data.images import ImageData
from trainers.data.meta import load_info, read_meta
from trainers.data.pool import PlainViews, plain_batches
from trainers.data.prepare import Form, prepare
from trainers.data.prepared import load
from trainers.data.views import crop_view, plain_shorter_side, plain_view
from trainers.errors import DataError

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
SUBSET = Form(subset=True)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_imagenet(tmp_path_factory.mktemp("raw"), classes=3, per_class=5)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pictures a shard, in two record batches."""
    for module in (encoded_module, shards):
        monkeypatch.setattr(module, "PICTURES_PER_SHARD", 4)
        monkeypatch.setattr(module, "PICTURES_PER_BATCH", 2)


def make(raw: Path, out: Path, form: Form = SUBSET, **options: Any) -> ImageData:
    prepare("imagenet", out=out, path=raw, form=form, **options)
    return load(out, image_size=16)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# -- preparing -------------------------------------------------------------------------------------


def test_shards_hold_the_bytes_as_they_are(tmp_path: Path, raw: Path, small_shards: None) -> None:
    calls: list[tuple[str, int, int]] = []
    data = make(raw, tmp_path, progress=lambda *call: calls.append(call))
    assert sorted(contents(tmp_path)) == [
        "meta.json", "test-00000.arrow", "test-00001.arrow", "test-digests.npy",
        "test-labels.npy", "test-sizes.npy", "train-00000.arrow", "train-00001.arrow",
        "train-00002.arrow", "train-00003.arrow", "train-digests.npy", "train-labels.npy",
        "train-sizes.npy",
    ]  # fmt: skip
    files = [f for wnid in wnids(3) for f in sorted((raw / "train" / wnid).iterdir())]
    assert [bytes(data.train_images.read(i)) for i in range(15)] == [f.read_bytes() for f in files]
    sizes = [Image.open(file).size[::-1] for file in files]
    assert [tuple(size) for size in data.train_images.sizes.tolist()] == sizes
    assert data.train_labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert data.test_images.shape == (6, 3, 16, 16)
    assert calls[0] == ("train", 0, 15)
    assert ("train", 6, 15) in calls
    assert calls[-1] == ("test", 6, 6)
    meta = read_meta(tmp_path)
    assert (meta["encoded"], meta["subset"], meta["source"]) == (True, True, "imagenet")
    assert load_info(tmp_path).image_size == 224


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("split", "done", "kept_shards"),
    [("train", 0, 0), ("train", 4, 0), ("train", 6, 1), ("train", 15, 3), ("test", 0, 4)],
)
def test_a_killed_prepare_goes_on_with_the_next_shard(
    tmp_path: Path, raw: Path, small_shards: None, split: str, done: int, kept_shards: int
) -> None:
    """A shard of which the last batch was written, but which was not renamed, is not there."""

    def die(*now: object) -> None:
        if now[:2] == (split, done):
            raise Killed

    whole = make(raw, tmp_path / "whole").info
    out = tmp_path / "out"
    with pytest.raises(Killed):
        make(raw, out, progress=die)
    kept = {file: (out / file).stat().st_ino for file in contents(out) if file.endswith(".arrow")}
    assert len(kept) == kept_shards
    with pytest.raises(DataError):
        load_info(out)
    (out / ".train-00003.arrow.0123").write_bytes(b"half")  # what kill -9 leaves
    first: list[tuple[str, int, int]] = []
    assert make(raw, out, progress=lambda *call: first.append(call)).info == whole
    assert first[0] == ("train", min(4 * kept_shards, 15), 15)
    assert {file: (out / file).stat().st_ino for file in kept} == kept
    assert contents(out) == contents(tmp_path / "whole")


def test_shards_of_another_origin_are_not_taken(
    tmp_path: Path, raw: Path, small_shards: None
) -> None:
    def die(split: str, done: int, total: int) -> None:
        if done >= 8:
            raise Killed

    with pytest.raises(Killed):
        make(raw, tmp_path / "out", Form(subset=True, shorter_side=20), progress=die)
    assert make(raw, tmp_path / "out").info == make(raw, tmp_path / "whole").info


def test_prepared_once(tmp_path: Path, raw: Path) -> None:
    info = make(raw, tmp_path).info
    made = (tmp_path / "meta.json").stat().st_ino
    assert make(raw, tmp_path).info == info
    prepare("imagenet", out=tmp_path, form=SUBSET)  # the source may be gone by now
    assert (tmp_path / "meta.json").stat().st_ino == made
    with pytest.raises(DataError, match="no path is given"):
        prepare("imagenet", out=tmp_path)


def test_missing_pictures_are_one_clear_error(tmp_path: Path, raw: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare("imagenet", out=tmp_path, path=raw)
    assert caught.value.problem == (
        "data set 'imagenet' has 15 training and 6 test images of 3 classes, "
        "not 1,281,167 training and 50,000 test images of 1,000 classes"
    )
    assert "--subset" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="leave subset out"):
        prepare("mine", out=tmp_path, path=raw, form=SUBSET)


def test_a_damaged_picture_is_found_when_it_is_prepared(tmp_path: Path) -> None:
    raw = write_imagenet(tmp_path / "raw", classes=2, per_class=4)
    file = raw / "train" / wnids(2)[1] / f"{wnids(2)[1]}_2.JPEG"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match=rf"{file.name} cannot be decoded"):
        make(raw, tmp_path / "out")


def test_encoding_again_is_another_data_set(tmp_path: Path, raw: Path) -> None:
    forms = {
        "same": SUBSET,
        "small": Form(subset=True, shorter_side=32),
        "poor": Form(subset=True, jpeg_quality=30),
        "large": Form(subset=True, shorter_side=500),  # nobody is upscaled
    }
    made = {name: make(raw, tmp_path / name, form) for name, form in forms.items()}
    prints = {name: data.info.fingerprint for name, data in made.items()}
    assert len(set(prints.values())) == 3
    assert prints["large"] == prints["same"]
    before, after = made["same"].train_images, made["small"].train_images
    assert before.sizes.min(axis=1).max() > 32
    assert (after.sizes.min(axis=1) == 32).all()
    ratios = [sizes.sizes[:, 0] / sizes.sizes[:, 1] for sizes in (before, after)]
    np.testing.assert_allclose(*ratios, rtol=0.04)
    poor = made["poor"].train_images
    assert (poor.sizes == before.sizes).all()
    for index in range(len(poor)):
        with Image.open(io.BytesIO(poor.read(index))) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")


def test_which_data_sets_stay_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = write_folder(tmp_path / "mine")
    out = tmp_path / "out"

    def made(**options: Any) -> bool:
        prepare("mine", out=out, path=mine, **options)
        is_encoded = bool(read_meta(out).get("encoded"))
        assert (out / "train-images.npy").exists() is not is_encoded
        assert (out / "train-00000.arrow").exists() is is_encoded
        return is_encoded

    assert not made()
    assert made(form=Form(encoded=True))
    assert made()  # that will do
    assert not made(image_size=8)
    assert made(form=Form(jpeg_quality=80))
    (out / "meta.json").unlink()
    module = sys.modules["trainers.data.prepare"]  # its name is the function's too
    monkeypatch.setattr(module, "DECODED_LIMIT", 6 * 3 * 8 * 8 - 1)
    assert made()
    assert not made(image_size=8)
    with pytest.raises(DataError, match="leave image_size out"):
        prepare("mine", out=out, path=mine, form=Form(encoded=True, image_size=8))
    with pytest.raises(DataError, match="no encoded pictures"):
        prepare("digits", out=out, form=Form(encoded=True))


def test_moments_of_a_data_set_that_nobody_knows(tmp_path: Path) -> None:
    grey = [encoded(Image.new("RGB", (30, 40), (255, 51, 0)), "PNG")] * 3
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", grey, [0, 1, 1])
    info = prepare("mine", out=tmp_path / "out", path=tmp_path, form=Form(encoded=True))
    assert (info.mean, info.std) == ((1.0, 0.2, 0.0), (0.0, 0.0, 0.0))


# -- reading ---------------------------------------------------------------------------------------


def test_what_was_prepared_is_verified(tmp_path: Path, raw: Path) -> None:
    data = make(raw, tmp_path)
    shard = tmp_path / "train-00000.arrow"
    content = shard.read_bytes()
    place = content.index(bytes(data.train_images.read(7))) + 40
    with shard.open("r+b") as file:
        file.seek(place)
        file.write(bytes([content[place] ^ 1]))
    again = load(tmp_path, image_size=16).train_images
    again.read(6)
    with pytest.raises(DataError, match=r"picture 7 of .*train-00000.arrow is not what was"):
        again.read(7)
    labels = np.load(tmp_path / "train-labels.npy")
    np.save(tmp_path / "train-labels.npy", labels[::-1].copy())
    with pytest.raises(DataError, match="not those that were prepared"):
        load(tmp_path, image_size=16)


def test_a_missing_shard(tmp_path: Path, raw: Path) -> None:
    data = make(raw, tmp_path)
    (tmp_path / "train-00000.arrow").unlink()
    with pytest.raises(DataError, match="not a readable shard"):
        data.train_images.read(0)
    (tmp_path / "test-sizes.npy").unlink()
    with pytest.raises(DataError, match="lacks an array"):
        load(tmp_path, image_size=16)


def test_views_are_decoded_once_and_only_where_somebody_looks(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make(raw, tmp_path).train_images
    expected = torch.cat(list(plain_batches(images, 24)))
    read: list[int] = []
    whole = EncodedImages.read

    def counting(self: EncodedImages, index: int) -> memoryview:
        read.append(index)
        return whole(self, index)

    monkeypatch.setattr(EncodedImages, "read", counting)
    monkeypatch.setattr("trainers.data.pool._BATCH", 4)
    views = PlainViews(images, 24, threads=2)
    assert (views.shape, len(views), read) == ((15, 3, 24, 24), 15, [])
    rows = torch.arange(15)[1::3]
    assert torch.equal(views[rows], expected[rows])
    assert sorted(read) == [1, 4, 7, 10, 13]
    assert torch.equal(views[3:9], expected[3:9])
    assert torch.equal(views[torch.tensor([14, 2, 2])], expected[[14, 2, 2]])
    assert torch.equal(views[:], expected)
    assert sorted(read) == list(range(15))


def test_plain_batches_are_in_order_whatever_the_threads(tmp_path: Path, raw: Path) -> None:
    images = make(raw, tmp_path).train_images
    one_by_one = torch.stack(
        [torch.from_numpy(plain_view(images.read(i), "", 24)) for i in range(len(images))]
    )
    before = threading.active_count()
    for threads, batch in ((1, 4), (3, 4), (2, 100)):
        made = torch.cat(list(plain_batches(images, 24, threads=threads, batch=batch)))
        assert torch.equal(made, one_by_one)
    partly = plain_batches(images, 24, threads=2, batch=2)
    next(partly)
    partly.close()
    assert threading.active_count() == before


# -- views -----------------------------------------------------------------------------------------


def test_the_plain_view_is_torchvisions() -> None:
    assert [plain_shorter_side(size) for size in (224, 32, 160)] == [256, 37, 183]
    for height, width in ((300, 400), (411, 300), (256, 256)):
        image = picture(1, 0, (height, width))
        expected = F.center_crop(F.resize(image, 256), 224)
        found = plain_view(encoded(image, "PNG"), "", 224)
        assert np.array_equal(found, np.asarray(expected).transpose(2, 0, 1))


def test_the_cropped_view_is_torchvisions() -> None:
    image, box = picture(2, 0, (90, 120)), (11, 23, 60, 71)
    expected = F.resized_crop(image, *box, [32, 32])
    found = crop_view(encoded(image, "PNG"), "", box, 32)
    assert np.array_equal(found, np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize("scale", [2, 5, 9])
def test_a_large_jpeg_is_decoded_at_a_reduced_scale(scale: int) -> None:
    """What is left out does not show in a view that is smaller still."""
    size = 16
    image = picture(3, 0, (67 * scale, 81 * scale), noise=0)
    content = encoded(image)
    decoded = Image.open(io.BytesIO(content)).convert("RGB")
    box = (5 * scale, 3 * scale, 40 * scale + 1, 52 * scale)
    for found, expected in (
        (crop_view(content, "", box, size), F.resized_crop(decoded, *box, [size, size])),
        (plain_view(content, "", size), F.center_crop(F.resize(decoded, 18), size)),
    ):
        assert np.abs(found - np.asarray(expected, dtype=float).transpose(2, 0, 1)).mean() < 2


@pytest.mark.parametrize(("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG")])
def test_every_picture_becomes_rgb(mode: str, kind: str) -> None:
    image = picture(1, 0, (50, 60), noise=0)
    content = encoded(image.convert(mode), kind)
    reference = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=float)
    assert plain_view(content, "", 32).shape == (3, 32, 32)
    whole = crop_view(content, "", (0, 0, 50, 60), 50)
    assert whole.mean(axis=(1, 2)) == pytest.approx(reference.mean(axis=(0, 1)), abs=1.5)


def test_a_damaged_picture_names_itself() -> None:
    content = encoded(picture(0, 0, (64, 64)))
    for damaged in (b"nothing", content[:300], content[: len(content) // 2]):
        for view in (
            lambda c: plain_view(c, "picture 3 of x", 16),
            lambda c: crop_view(c, "picture 3 of x", (0, 0, 64, 64), 16),
        ):
            with pytest.raises(DataError, match="picture 3 of x cannot be decoded"):
                view(damaged)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real images on this machine")
def test_real_imagenet_pictures(tmp_path: Path) -> None:
    table = pq.read_table(SHARED / "imagenet1k_sample_s160.parquet").slice(0, 60)
    for split in ("train", "val"):
        pq.write_table(table, tmp_path / f"imagenet_{split}.parquet")
    info = prepare("imagenet", out=tmp_path / "out", path=tmp_path, form=SUBSET)
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["source"] == "parquet"
    data = load(tmp_path / "out", image_size=64)
    assert (info.num_train, data.info.image_size) == (60, 64)
    assert (data.train_images.sizes.min(axis=1) == 160).all()
    reference = v2.Compose([v2.Resize(73), v2.CenterCrop(64)])
    for index in range(0, 60, 7):
        image = Image.open(io.BytesIO(data.train_images.read(index))).convert("RGB")
        expected = np.asarray(reference(image), dtype=float).transpose(2, 0, 1)
        assert np.abs(data.test_images[index : index + 1][0].numpy() - expected).mean() < 3
