"""The soft-target store: keyed by sample, refused under another identity, mapped, not copied."""

import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest
import torch
from training_helpers import (
    CPU,
    RUNTIME,
    a_teacher,
    identity,
    image_data,
    losses,
    soft_targets,
    student_spec,
)

from trainers.augment import normalise
from trainers.data.subset import ipc_indices
from trainers.distributed import World
from trainers.errors import TargetsError
from trainers.student import StudentObjective, build_engine
from trainers.targets import SoftTargets, _seal, compute_targets, seal_targets, write_targets

DATA = image_data()


def recognisable(path, rows=200, classes=10, **changes):
    """A file in which sample i has the target (i, i, …)."""
    values = np.repeat(np.arange(rows, dtype=np.float32)[:, None], classes, axis=1)
    write_targets(path, values, identity(**changes))
    return SoftTargets(path, identity(**changes))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "targets.arrow"


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_targets_are_the_teachers_softmax_on_the_plain_view(temperature, path):
    teacher = a_teacher(DATA).train()  # it is put into evaluation mode
    values = compute_targets(teacher, DATA, temperature=temperature, device=CPU)
    views = normalise(DATA.train_images, DATA.info.mean, DATA.info.std)
    with torch.no_grad():
        expected = torch.softmax(teacher.eval()(views) / temperature, 1)
    np.testing.assert_allclose(values, expected.numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(values.sum(1), 1, rtol=1e-5)

    write_targets(path, values, identity(temperature=temperature))
    stored = SoftTargets(path, identity(temperature=temperature))
    assert len(stored) == 200
    assert np.array_equal(stored.rows(torch.arange(200)).numpy(), values)


def test_each_sample_gets_its_own_row_in_any_order(path):
    stored = recognisable(path)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stored.rows(order)[:, 0], order.float())
    assert torch.equal(stored.rows(torch.arange(200))[order], stored.rows(order))
    assert stored.rows(torch.tensor([5, 5, 0]))[:, 3].tolist() == [5, 5, 0]
    assert stored.rows(torch.tensor([], dtype=torch.int64)).shape == (0, 10)


@pytest.mark.parametrize("ipc", [1, 7, None])
def test_subsets_read_the_rows_of_the_full_training_set(ipc, path):
    spec = student_spec("C", ipc=ipc)
    engine = build_engine(spec, DATA, RUNTIME, World(), targets=recognisable(path))
    subset = set(ipc_indices(DATA.train_labels, ipc=ipc, subset_seed=0).tolist())
    objective = engine.objective
    assert isinstance(objective, StudentObjective)
    seen = set()
    for step in range(12):
        batch = engine.batches.batch(step)
        targets = objective.targets(batch, objective.one_hot_targets(batch))
        assert torch.equal(targets[:, 0], batch.samples_N.float())
        seen |= set(batch.samples_N.tolist())
    assert seen == subset


def test_half_precision_is_kept_in_the_file_and_widened_in_the_loss(path):
    values = compute_targets(a_teacher(DATA), DATA, temperature=2.0, device=CPU)
    write_targets(path, values, identity(dtype="float16"))
    stored = SoftTargets(path, identity(dtype="float16"))
    assert stored.rows(torch.arange(3)).dtype == torch.float16
    spec = student_spec("C")
    half = losses(build_engine(spec, DATA, RUNTIME, World(), targets=stored), 3)
    full = soft_targets(path.parent, DATA, a_teacher(DATA))
    exact = losses(build_engine(spec, DATA, RUNTIME, World(), targets=full), 3)
    assert half != exact
    assert half == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("teacher_digest", "e" * 64),
        ("dataset_fingerprint", "0" * 64),
        ("split", "test"),
        ("view", "crop"),
        ("temperature", 1.0),
        ("dtype", "float16"),
    ],
)
def test_another_identity_is_refused_by_name(field, value, path):
    recognisable(path)
    with pytest.raises(TargetsError, match=field) as caught:
        SoftTargets(path, identity(**{field: value}))
    assert str(value) in str(caught.value)


def test_truncated_files_are_refused(path):
    recognisable(path)
    data = path.read_bytes()
    for length in (0, 7, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(TargetsError, match=path.name):
            SoftTargets(path, identity())


def test_a_flipped_byte_anywhere_is_noticed_or_changes_nothing(path):
    rng = np.random.default_rng(0)
    values = rng.random((6, 3), dtype=np.float32)
    write_targets(path, values, identity())
    data = path.read_bytes()
    noticed = 0
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        try:
            read = SoftTargets(path, identity()).rows(torch.arange(6)).numpy()
        except TargetsError:
            noticed += 1
        else:
            assert np.array_equal(read, values), at
    assert noticed == len(data)


@pytest.mark.parametrize("at", [5, 4000, -9])
def test_changed_values_are_damage_and_named_so(path, at):
    recognisable(path)
    data = bytearray(path.read_bytes())
    start = data.index(np.full(10, 7, np.float32).tobytes())
    data[start + at if at > 0 else start - 9] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(TargetsError, match="its checksum does not fit"):
        SoftTargets(path, identity())


def test_a_file_of_before_checksums_is_refused_until_it_is_sealed(path, tmp_path):
    stored = recognisable(path)
    write_arrow(path, pa.FixedSizeListArray.from_arrays(pa.array(stored_values(stored)), 10), META)
    with pytest.raises(TargetsError, match="its checksum is missing"):
        SoftTargets(path, identity())
    seal_targets(path, tmp_path / "sealed.arrow")
    sealed = SoftTargets(tmp_path / "sealed.arrow", identity())
    assert torch.equal(sealed.rows(torch.arange(200)), stored.rows(torch.arange(200)))
    with pytest.raises(TargetsError, match="has a checksum already"):
        seal_targets(tmp_path / "sealed.arrow", path)


def stored_values(stored):
    return stored.rows(torch.arange(len(stored))).numpy().ravel()


def write_arrow(path, column, metadata):
    schema = pa.schema([("target", column.type)], metadata)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        if len(column):
            writer.write_batch(pa.record_batch([column], schema=schema))


ROWS = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(20, np.float32)), 10)
META = {b"targetsweep.identity": json.dumps(asdict(identity())).encode()}


@pytest.mark.parametrize(
    ("column", "metadata"),
    [
        (ROWS, None),
        (ROWS, {b"targetsweep.identity": b"{}"}),
        (ROWS, {b"targetsweep.identity": b"no json"}),
        (ROWS, {b"targetsweep.identity": b"[1]"}),
        (pa.array(np.zeros(20, np.float32)), META),
        (pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(20)), 10), META),
        (pa.FixedSizeListArray.from_arrays(pa.array([None] * 20, pa.float32()), 10), META),
        (ROWS[:0], META),
    ],
    ids="nothing empty text list flat double null none".split(),
)
def test_foreign_arrow_files_are_refused(column, metadata, path):
    write_arrow(path, column, metadata)
    _seal(path)
    with pytest.raises(TargetsError, match="not a soft-target file"):
        SoftTargets(path, identity())


def test_files_that_are_no_arrow_files_are_refused(path):
    with pytest.raises(TargetsError):
        SoftTargets(path, identity())
    path.write_text("targets")
    with pytest.raises(TargetsError):
        SoftTargets(path, identity())


@pytest.mark.parametrize("samples", [[0, 200], [-1, 3], [10_000]])
def test_a_sample_without_a_row_is_an_error_that_names_it(samples, path):
    stored = recognisable(path)
    missing = next(sample for sample in samples if not 0 <= sample < 200)
    with pytest.raises(TargetsError, match=f"sample {missing} .*200 rows"):
        stored.rows(torch.tensor(samples))


def test_a_file_for_a_smaller_training_set_is_an_error(path):
    stored = recognisable(path, rows=150)
    with pytest.raises(TargetsError, match="sample 150"):
        build_engine(student_spec("C"), DATA, RUNTIME, World(), targets=stored)


def test_opening_a_file_copies_nothing(path):
    before = pa.total_allocated_bytes()
    stored = recognisable(path, rows=50_000, classes=20)  # 4 MB
    assert pa.total_allocated_bytes() - before < 100_000
    array = stored._targets_SC
    assert not array.flags.owndata
    assert not array.flags.writeable
    with path.open("rb+") as file:  # the array is the file's own pages
        content = file.read()
        place = content.index(np.full(20, 7, np.float32).tobytes())
        file.seek(place)
        file.write(np.full(20, 9, np.float32).tobytes())
    assert stored.rows(torch.tensor([7]))[0, 0] == 9
