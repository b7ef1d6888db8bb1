"""What the training tests share: a small learnable data set, small specs, recorders."""

import io
import os
import pickle
from dataclasses import replace
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from trainers.batches import BatchSource
from trainers.checkpoint import parse_state, write_state
from trainers.data.images import ImageData
from trainers.data.info import DatasetInfo
from trainers.distributed import World
from trainers.events import Checkpoint, Evaluation, Finished
from trainers.models import build_teacher
from trainers.spec import (
    AUGMENTATIONS,
    AdamW,
    Augmentation,
    Backbone,
    Dataset,
    Request,
    Runtime,
    StudentSpec,
    TeacherRef,
    TeacherSpec,
)
from trainers.student import build_engine, train_student
from trainers.targets import SoftTargets, TargetsIdentity, compute_targets, write_targets

FINGERPRINT = "f" * 64


def join_group(rank, rendezvous, size):
    """The beginning of a worker's process. rendezvous: a file that all of its group name."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size,
        timeout=timedelta(seconds=60),
    )  # fmt: skip


def of_workers(work, folder, size):
    """What each of `size` processes found: work(rank, folder) pickles it as rank-<rank>.pickle."""
    mp.spawn(work, (folder,), nprocs=size)
    return [pickle.loads((folder / f"rank-{rank}.pickle").read_bytes()) for rank in range(size)]


def leave_group():
    """The end of a worker's process whose files are written. Not the interpreter's own end: threads
    of gloo that still run then make C++ abort it (seen once, torch 2.15)."""
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


DATASET = Dataset(name="prototypes", fingerprint=FINGERPRINT)
RUNTIME = Runtime(checkpoint_every_s=1e9)
CPU = torch.device("cpu")
TIMING = ("images_per_s", "wall_time_s", "timestamp_ms")


def image_data(num_train=200, num_test=100, num_classes=10, noise=40, size=8):
    """Each class a random prototype, each image its prototype in noise, labels 0, 1, …, 0, 1, …"""
    rng = np.random.default_rng(5)
    prototypes = rng.uniform(60, 196, (num_classes, 3, size, size))

    def split(count):
        labels = np.arange(count) % num_classes
        images = prototypes[labels] + rng.normal(0, noise, (count, 3, size, size))
        return torch.from_numpy(images.clip(0, 255).astype(np.uint8)), torch.from_numpy(labels)

    train_images, train_labels = split(num_train)
    test_images, test_labels = split(num_test)
    info = DatasetInfo(
        name="prototypes", fingerprint=FINGERPRINT, num_classes=num_classes, num_train=num_train,
        num_test=num_test, smallest_class=num_train // num_classes, balanced=True,
        image_size=size, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
    )  # fmt: skip
    return ImageData(
        info=info,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
    )


def teacher_spec(**changes):
    spec = TeacherSpec(
        dataset=DATASET,
        backbone=Backbone(name="resnet18", width=2),
        augmentation=Augmentation(),
        optimizer=AdamW(lr=1e-3, weight_decay=0.01),
        batch_size=20,
        seed=0,
    )
    return replace(spec, **changes)


def student_spec(strategy="A", **changes):
    """ipc: shorthand for the data set's."""
    soft = {"teacher": TeacherRef(key="0" * 64, accuracy=60.0), "temperature": 2.0}
    spec = StudentSpec(
        dataset=replace(DATASET, ipc=changes.pop("ipc", None), subset_seed=0),
        backbone=Backbone(name="resnet18", width=2),
        augmentation=AUGMENTATIONS["std"],
        strategy=strategy,
        optimizer=AdamW(lr=1e-3, weight_decay=0.01),
        batch_size=20,
        seed=0,
        **({} if strategy == "A" else soft),
    )
    return replace(spec, **changes)


def a_teacher(data, *, seed=7, sharpness=8.0):
    """A teacher at its initialisation whose soft targets are far from uniform."""
    teacher = build_teacher(
        Backbone(name="resnet18", width=2),
        image_size=data.info.image_size,
        num_classes=data.info.num_classes,
        seed=seed,
    )
    with torch.no_grad():
        teacher.classifier.weight.mul_(sharpness)
    return teacher.eval()


def identity(**changes):
    values = {
        "teacher_digest": "d" * 64, "dataset_fingerprint": FINGERPRINT, "split": "train",
        "view": "plain", "temperature": 2.0, "dtype": "float32",
    }  # fmt: skip
    return TargetsIdentity(**{**values, **changes})


def soft_targets(folder, data, teacher, temperature=2.0):
    path = folder / "targets.arrow"
    values = compute_targets(teacher, data, temperature=temperature, device=CPU)
    write_targets(path, values, identity(temperature=temperature))
    return SoftTargets(path, identity(temperature=temperature))


def mapping(strategy, folder, data, temperature=2.0):
    """What a strategy takes, as keyword arguments, always of the same teacher."""
    if strategy == "A":
        return {}
    teacher = a_teacher(data)
    if strategy == "B":
        return {"teacher": teacher}
    return {"targets": soft_targets(folder, data, teacher, temperature)}


def losses(engine, steps):
    """The loss of each of the next steps."""
    recorded, objective = [], engine.objective

    def recording(model, batch):
        loss, means = objective(model, batch)
        recorded.append(loss.item())
        return loss, means

    engine.objective = recording
    for _ in range(steps):
        engine.update()
    engine.objective = objective
    return recorded


def student_losses(spec, data, folder, steps=5):
    torch.set_num_threads(1)
    given = mapping(spec.strategy, folder, data, spec.temperature)
    return losses(build_engine(spec, data, RUNTIME, World(), **given), steps)


def batches(data, augmentation, *, role="student", seed=0, batch_size=20, world=None):
    return BatchSource(
        data, torch.arange(len(data.train_labels)), augmentation, role=role, seed=seed,
        batch_size=batch_size, world=world or World(), device=CPU,
    )  # fmt: skip


class StopAfter:
    """A stop flag that is set from the n-th question on; a single worker asks once a step."""

    def __init__(self, steps):
        self.left = steps

    def is_set(self):
        self.left -= 1
        return self.left <= 0


def rows(events):
    """The rows of a run's evaluations, without what describes an execution; NaN as None."""
    found = [event.row for event in events if isinstance(event, Evaluation)]
    return [
        {key: None if value != value else value for key, value in row.items() if key not in TIMING}
        for row in found
    ]


def only(kind, events):
    return [event for event in events if isinstance(event, kind)]


def final_state(events):
    return only(Checkpoint, events)[-1].state


def run_student(spec, data, horizon, *, stops=(), runtime=RUNTIME, **given):
    """All events of a student interrupted after each of `stops` steps, each time resumed from the
    bytes of its last checkpoint."""
    return run_interrupted(
        lambda state, stop: train_student(
            spec, data, Request(horizon=horizon), runtime, state=state, stop=stop, **given
        ),
        stops,
    )


def run_interrupted(train, stops):
    """train: (state, stop flag, ...) to events. The stop flag is set after so many steps."""
    events, state = [], None
    for steps in stops:
        part = list(train(state, StopAfter(steps)))
        assert part[-1] == Finished(reason="stopped", step=part[-2].step)
        events += part[:-1]
        state = parse_state(state_bytes(final_state(part)))
    return events + list(train(state, None))


def state_bytes(state):
    """What its file would hold."""
    stream = io.BytesIO()
    write_state(state, stream)
    return stream.getvalue()


def assert_equal_states(left, right, path="state"):
    """Bit for bit, whatever the nesting; not the seconds."""
    assert type(left) is type(right), path
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left.keys() - {"elapsed_s"}:
            assert_equal_states(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list):
        assert len(left) == len(right), path
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_equal_states(one, other, f"{path}[{index}]")
    elif isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype, path
        assert torch.equal(left, right), path
    else:
        assert left == right, path
