"""Pictures whose class was corrected, by a move or in a list, are another data set."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stand_in_data import wnids, write_imagenet, write_tiny_imagenet
from trainers.data.find import find_source
from trainers.data.meta import META, load_info, meta_text, read_meta
from trainers.data.prepare import Form, _source_id, _without_classes, made_from, prepare
from trainers.data.prepared import load

FIRST, SECOND = wnids(2)


def in_folders(root: Path) -> str:
    write_tiny_imagenet(root / "raw", classes=2, per_class=3)
    for split in ("train", "val"):
        shutil.copytree(root / "raw/tiny-imagenet-200/train", root / split)
    shutil.rmtree(root / "raw")
    return "mine"


def in_tiny_imagenets(root: Path) -> str:
    write_tiny_imagenet(root, classes=2, per_class=3)
    return "tinyimagenet"


def in_imagenets(root: Path) -> str:
    write_imagenet(root, classes=2, per_class=3, odd=False)
    return "imagenet"


def with_a_list(root: Path) -> str:
    write_imagenet(root, classes=2, per_class=3, val="txt", odd=False)
    return "imagenet"


def moved(root: Path) -> None:
    """Names and sizes stay."""
    (file,) = root.rglob(f"train/{FIRST}/**/{FIRST}_2.JPEG")
    file.rename(next(root.rglob(f"train/{SECOND}/**/{SECOND}_0.JPEG")).with_name(file.name))


def swapped_in(name: str) -> Callable[[Path], None]:
    def swap(root: Path) -> None:
        (file,) = root.rglob(name)
        text = file.read_text().replace(FIRST, "?").replace(SECOND, FIRST)
        file.write_text(text.replace("?", SECOND))

    return swap


def exchanged(root: Path) -> None:
    """Two pictures of one size that change places: as many of each class as before."""
    (one,) = root.rglob(f"train/{FIRST}/**/{FIRST}_2.JPEG")
    other = next(root.rglob(f"train/{SECOND}/**/{SECOND}_0.JPEG"))
    one.rename(other.with_name(one.name))
    other.rename(one.with_name(other.name))


CASES = pytest.mark.parametrize(
    ("write", "correct"),
    [
        (in_folders, moved),
        (in_folders, exchanged),
        (in_imagenets, exchanged),
        (in_tiny_imagenets, moved),
        (in_tiny_imagenets, swapped_in("val_annotations.txt")),
        (in_imagenets, moved),
        (with_a_list, swapped_in("val_labels.txt")),
    ],
)
Write = Callable[[Path], str]
Correct = Callable[[Path], None]


def form_of(name: str) -> Form:
    return Form(subset=True) if name == "imagenet" else Form()


def labels_in(out: Path) -> list[list[int]]:
    data = load(out)
    return [data.train_labels.tolist(), data.test_labels.tolist()]


def as_prepared_before(out: Path, name: str, root: Path) -> None:
    """When the id was of names and sizes alone."""
    listing = find_source(name, root).listing()
    meta = read_meta(out) | {"source_id": _source_id(_without_classes(listing))}
    (out / META).write_text(meta_text(meta))


@CASES
@pytest.mark.parametrize("before", [False, True], ids=["now", "prepared before"])
def test_corrected_classes_are_noticed(
    tmp_path: Path, write: Write, correct: Correct, before: bool
) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    name = write(root)
    prepare(name, out=out, path=root, form=form_of(name))
    if before:
        as_prepared_before(out, name, root)
    made = (out / META).stat().st_ino
    assert made_from(out, find_source(name, root))
    prepare(name, out=out, path=root, form=form_of(name))
    assert ((out / META).stat().st_ino == made) is not before  # its new id alone is written
    assert made_from(out, find_source(name, root))
    old, labels = load_info(out), labels_in(out)

    correct(root)
    assert not made_from(out, find_source(name, root))
    prepare(name, out=out, path=root, form=form_of(name))
    assert made_from(out, find_source(name, root))
    assert (labels_in(out) != labels) is (correct is not exchanged)
    assert load_info(out).fingerprint != old.fingerprint
    prepare(name, out=tmp_path / "fresh", path=root, form=form_of(name))
    assert load_info(out) == load_info(tmp_path / "fresh")


def test_a_preparation_does_not_go_on_under_other_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shards hold the pictures in the order they had then."""
    monkeypatch.setattr("trainers.data.shards.PICTURES_PER_SHARD", 2)
    root, out = tmp_path / "in", tmp_path / "out"
    name = in_imagenets(root)

    class Killed(BaseException):
        pass

    def die(split: str, done: int, total: int) -> None:
        if done >= 4:
            raise Killed

    with pytest.raises(Killed):
        prepare(name, out=out, path=root, form=form_of(name), progress=die)
    assert list(out.glob("*.arrow"))
    moved(root)
    info = prepare(name, out=out, path=root, form=form_of(name))
    assert info == prepare(name, out=tmp_path / "fresh", path=root, form=form_of(name))
