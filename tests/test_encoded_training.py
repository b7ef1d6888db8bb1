"""Training from shards: what a batch is, whoever decodes it, and runs of every kind."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_helpers import (
    CPU,
    RUNTIME,
    StopAfter,
    a_teacher,
    assert_equal_states,
    final_state,
    only,
    rows,
    run_interrupted,
    run_student,
    soft_targets,
    student_spec,
    teacher_spec,
)

from tests.stand_in_data import wnids, write_imagenet
from trainers.augment import normalise
from trainers.augment_draws import draw_crops
from trainers.batches import Batch, BatchSource
from trainers.data.encoded import EncodedImages
from trainers.data.images import ImageData
from trainers.data.pool import default_threads, threads_of_share
from trainers.data.prepare import Form, prepare
from trainers.data.prepared import load
from trainers.data.views import crop_view, plain_view
from trainers.distributed import World
from trainers.errors import DataError
from trainers.evaluate import evaluation_set, teacher_heads
from trainers.events import Evaluation, Finished, Snapshot
from trainers.pixels import EncodedPixels, Leash, Mark
from trainers.spec import AUGMENTATIONS, Augmentation, Backbone, Request
from trainers.student import train_student
from trainers.targets import compute_targets
from trainers.teacher import train_teacher

SIZE, BATCH = 32, 8
WIDTH_4 = Backbone(name="resnet18", width=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of twelve training and two test pictures of 40 to 64 pixels."""
    root = tmp_path_factory.mktemp("photos")
    write_imagenet(root / "raw")
    prepare("imagenet", out=root / "out", path=root / "raw", form=Form(subset=True))
    return root / "out"


@pytest.fixture(scope="module")
def data(folder: Path) -> ImageData:
    return load(folder, image_size=SIZE)


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert not [t for t in threading.enumerate() if t not in before and "decode" in t.name]


class Watched(EncodedImages):
    """Counts what is read."""

    def __init__(self, other: EncodedImages) -> None:
        vars(self).update(vars(other))
        self.reads: Counter[int] = Counter()

    def read(self, index: int) -> memoryview:
        self.reads[index] += 1
        return super().read(index)


def source(
    data: ImageData,
    augmentation: str | Augmentation = "std",
    world: World | None = None,
    **given: Any,
) -> BatchSource:
    if isinstance(augmentation, str):
        augmentation = AUGMENTATIONS[augmentation]
    samples = given.pop("samples", torch.arange(len(data.train_labels)))
    return BatchSource(
        data, samples, augmentation, role="student", seed=0, batch_size=BATCH,
        world=world or World(), device=CPU, **given,
    )  # fmt: skip


def batch(step: int, *given: Any, **options: Any) -> Batch:
    made = source(*given, **options)
    try:
        return made.batch(step)
    finally:
        made.close()


def same(one: Batch, other: Batch) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


# -- batches ---------------------------------------------------------------------------------------


def test_a_crop_is_taken_out_of_the_whole_picture(data: ImageData) -> None:
    images = data.train_images
    assert isinstance(images, EncodedImages)
    made = batch(70, data, "crop")
    draws = draw_crops(AUGMENTATIONS["crop"], role="student", seed=0, block=1, batch_size=BATCH)
    assert draws is not None
    height, width = images.sizes[made.samples_N.numpy()].astype(np.int64).T
    boxes = draws.at(6, np.arange(BATCH)).boxes(height, width)
    assert len({tuple(size) for size in images.sizes.tolist()}) > 10
    views = [
        crop_view(images.read(index), "", tuple(box), SIZE)
        for index, box in zip(made.samples_N.tolist(), boxes.tolist(), strict=True)
    ]
    expected = normalise(torch.from_numpy(np.stack(views)), data.info.mean, data.info.std)
    assert torch.equal(made.views, expected)


def test_without_a_crop_the_view_is_plain(data: ImageData) -> None:
    images = data.train_images
    made = batch(3, data, "none", samples=torch.tensor([40, 3, 5, 7, 11, 13, 17, 19, 23]))
    assert {40, 3, 5, 7, 11, 13, 17, 19, 23}.issuperset(made.samples_N.tolist())
    views = [plain_view(images.read(index), "", SIZE) for index in made.samples_N.tolist()]
    expected = normalise(torch.from_numpy(np.stack(views)), data.info.mean, data.info.std)
    assert torch.equal(made.views, expected)


def test_a_batch_depends_on_its_step_alone(data: ImageData) -> None:
    """Not on what was asked before, nor on who decodes it."""
    one, three = source(data, decode_threads=1), source(data, decode_threads=3)
    in_order = [one.batch(step) for step in range(6)]
    for step in (5, 0, 3, 3, 62, 63, 64, 4):
        found = three.batch(step)
        assert same(found, in_order[step] if step < 6 else batch(step, data))
    three.close()
    assert same(three.batch(2), in_order[2])  # it starts again
    one.close()
    three.close()


@pytest.mark.parametrize("augmentation", ["none", "std", "mixup", "cutmix"])
@pytest.mark.parametrize("size", [2, 4])
def test_workers_share_one_batch(data: ImageData, augmentation: str, size: int) -> None:
    for step in (0, 64):
        whole = batch(step, data, augmentation)
        parts = [batch(step, data, augmentation, World(rank, size)) for rank in range(size)]
        for name, value in vars(whole).items():
            if value is not None:
                assert torch.equal(torch.cat([getattr(part, name) for part in parts]), value), name


@pytest.mark.parametrize("augmentation", ["std", "mixup"])
def test_only_what_is_needed_is_decoded(data: ImageData, augmentation: str) -> None:
    watched = Watched(data.train_images)  # type: ignore[arg-type]
    own = dataclasses.replace(data, train_images=watched)
    made = source(own, augmentation, World(1, 4))
    steps = [made.batch(step) for step in range(3)]
    made.close()
    needed = Counter[int]()
    for step in steps:
        partners = [] if step.partners_N is None else step.partners_N.tolist()
        needed.update({*step.samples_N.tolist(), *partners})
    ahead = watched.reads - needed
    assert not needed - watched.reads
    assert ahead.total() <= 2 * 2 * (BATCH // 4)  # of the two steps after these


class SlowDevice:
    """Does nothing before somebody waits for it. `asked`, `done`: steps."""

    def __init__(self) -> None:
        self.asked = self.done = 0
        self.waits: list[int] = []

    def mark(self) -> Mark:
        self.asked += 1
        return _Place(self, self.asked)


class _Place:
    def __init__(self, device: SlowDevice, step: int) -> None:
        self._device, self._step = device, step

    def synchronize(self) -> None:
        self._device.done = self._step
        self._device.waits.append(self._step)


def test_the_host_runs_ahead_of_a_device_as_far_as_its_leash() -> None:
    device = SlowDevice()
    leash = Leash(3, device.mark)
    ahead = []
    for _ in range(6):
        leash.go_on()
        ahead.append(device.asked - device.done)
    assert ahead == [1, 2, 3, 3, 3, 3]
    assert device.waits == [1, 2, 3]  # the oldest, once each


def test_a_step_is_marked_once_its_views_are_sent(data: ImageData) -> None:
    made, device = source(data), SlowDevice()
    pixels = made._pixels
    assert isinstance(pixels, EncodedPixels)
    assert pixels._leash is None  # a CPU's copies are over when they return
    sent = []

    def mark() -> Mark:
        sent.append(pixels._views.clone())
        return device.mark()

    pixels._leash = Leash(1, mark)
    for step in range(4):
        made.batch(step)
        assert torch.equal(sent[step], pixels._views)
    made.close()
    assert not any(torch.equal(one, other) for one, other in pairwise(sent))
    assert device.waits == [1, 2, 3]


def test_a_damaged_picture_stops_the_run_by_name(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    data = load(tmp_path / "copy", image_size=SIZE)
    shard = tmp_path / "copy" / "train-00000.arrow"
    content = bytearray(shard.read_bytes())
    place = content.index(bytes(data.train_images.read(9))) + 30
    content[place] ^= 255
    shard.write_bytes(content)
    data = load(tmp_path / "copy", image_size=SIZE)
    made = source(data, samples=torch.tensor([9]))
    with pytest.raises(DataError, match="picture 9 of"):
        made.batch(0)
    made.close()
    with pytest.raises(DataError, match="picture 9 of"):
        list(train_student(student_spec(batch_size=BATCH), data, Request(horizon=9), RUNTIME))


def test_threads_are_shared_among_the_workers_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(9)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [default_threads(), default_threads(2), default_threads(100)] == [9, 4, 1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_threads(16) == 2


def test_threads_follow_the_share_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(9)))
    assert [threads_of_share(share) for share in (1.0, 1 / 3, 0.01, 2.0)] == [9, 3, 1, 9]


# -- runs ------------------------------------------------------------------------------------------


def given(strategy: str, folder: Path, data: ImageData) -> dict[str, Any]:
    if strategy == "A":
        return {}
    teacher = a_teacher(data)
    if strategy == "B":
        return {"teacher": teacher}
    return {"targets": soft_targets(folder, data, teacher)}


@pytest.mark.parametrize("strategy", ["A", "B", "C"])
@pytest.mark.parametrize("augmentation", ["std", "cutmix"])
def test_an_interrupted_student_equals_an_uninterrupted_one(
    data: ImageData, tmp_path: Path, strategy: str, augmentation: str
) -> None:
    spec = student_spec(
        strategy, backbone=WIDTH_4, augmentation=AUGMENTATIONS[augmentation], batch_size=BATCH
    )
    mapping = given(strategy, tmp_path, data)
    once = run_student(spec, data, 12, **mapping)
    threads = dataclasses.replace(RUNTIME, decode_threads=3)
    twice = run_student(spec, data, 12, stops=(5, 4), runtime=threads, **mapping)
    assert_equal_states(final_state(once), final_state(twice))
    assert rows(once) == rows(twice)
    assert only(Evaluation, once)[-1].row["count"] == 8


def test_a_subset_of_encoded_pictures(data: ImageData) -> None:
    spec = student_spec("A", backbone=WIDTH_4, batch_size=BATCH, ipc=2)
    assert only(Finished, run_student(spec, data, 4))[0].step == 4


def test_a_teacher_learns_and_is_validated_after_every_step(data: ImageData) -> None:
    spec = teacher_spec(backbone=WIDTH_4, batch_size=BATCH, augmentation=AUGMENTATIONS["std"])
    request = Request(horizon=40, presets=(50.0,))

    def train(state: Any, stop: Any) -> Iterator[Any]:
        return train_teacher(spec, data, request, RUNTIME, state=state, stop=stop)

    once = run_interrupted(train, ())
    twice = run_interrupted(train, (3,))
    steps = [event.row["step"] for event in only(Evaluation, once)]
    assert steps == list(range(len(steps)))
    assert only(Snapshot, once)
    assert_equal_states(final_state(once), final_state(twice))


def test_a_run_that_is_given_up_leaves_no_thread(data: ImageData) -> None:
    spec = student_spec("A", backbone=WIDTH_4, batch_size=BATCH)
    events = train_student(
        spec, data, Request(horizon=1000, evaluate_at=(1,)), RUNTIME, stop=StopAfter(10**9)
    )
    next(events)
    events.close()  # type: ignore[attr-defined]


def test_targets_are_of_the_plain_views(data: ImageData) -> None:
    teacher = a_teacher(data)
    found = compute_targets(teacher, data, temperature=2.0, device=CPU, decode_threads=2)
    images = data.train_images
    views = np.stack([plain_view(images.read(i), "", SIZE) for i in range(len(images))])
    with torch.inference_mode():
        logits = teacher(normalise(torch.from_numpy(views), data.info.mean, data.info.std))
    np.testing.assert_allclose(found, (logits / 2).softmax(1).numpy(), atol=1e-6)
    half = compute_targets(teacher, data, temperature=2.0, device=CPU, dtype="float16")
    assert half.dtype == np.float16
    assert np.array_equal(half, found.astype(np.float16))


def test_evaluation_sees_the_plain_views_of_all_test_pictures(data: ImageData) -> None:
    teacher = a_teacher(data)
    views = normalise(data.test_images[:], data.info.mean, data.info.std)
    with torch.inference_mode():
        right = int((teacher(views).argmax(1) == data.test_labels).sum())
    tests = evaluation_set(data, device=CPU, world=World(), precision="fp32", part=None)
    assert tests.correct(teacher, teacher_heads) == [right]
    assert tests.count == 2 * len(wnids(4))
    shares = [
        evaluation_set(data, device=CPU, world=World(rank, 3), precision="fp32", part=None)
        for rank in range(3)
    ]
    found = sum(_alone(share).correct(teacher, teacher_heads)[0] for share in shares)
    assert found == right


def _alone(tests: Any) -> Any:
    """A worker's share, counted without the others."""
    tests._world = World()
    return tests
