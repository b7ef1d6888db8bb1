"""The order of samples and IPC subsets."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data.order import SampleOrder
from trainers.data.subset import ipc_indices
from trainers.errors import UnsuitableError

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 24))


@given(SIZES, st.integers(0, 9), st.lists(st.integers(0, 200), min_size=1, max_size=20))
@settings(deadline=None, max_examples=60)
def test_any_step_in_any_order_gives_the_same_batch(sizes, seed, steps):
    order = SampleOrder(*sizes, "student", seed)
    for step in steps:
        fresh = SampleOrder(*sizes, "student", seed)
        np.testing.assert_array_equal(order.batch(step), fresh.batch(step))


@given(SIZES)
@settings(deadline=None, max_examples=60)
def test_batches_are_full_and_in_range(sizes):
    num_samples, batch_size = sizes
    order = SampleOrder(num_samples, batch_size, "student", 0)
    for step in range(30):
        batch = order.batch(step)
        assert batch.shape == (batch_size,)
        assert batch.dtype == np.int64
        assert batch.min() >= 0
        assert batch.max() < num_samples


def test_an_epoch_repeats_no_sample_and_drops_the_remainder():
    order = SampleOrder(10, 3, "student", 0)
    for epoch in range(20):
        batches = [order.batch(3 * epoch + i) for i in range(3)]
        assert len(set(np.concatenate(batches))) == 9
    seen = {int(i) for step in range(60) for i in order.batch(step)}
    assert seen == set(range(10))  # the dropped remainder differs from epoch to epoch


def test_few_samples_follow_each_other_without_a_gap():
    order = SampleOrder(5, 12, "student", 3)
    stream = np.concatenate([order.batch(step) for step in range(10)])
    for permutation in stream.reshape(-1, 5):
        assert sorted(permutation) == [0, 1, 2, 3, 4]


def test_epochs_seeds_and_roles_differ():
    batch = SampleOrder(100, 100, "student", 0).batch(0)
    others = [
        SampleOrder(100, 100, "student", 0).batch(1),
        SampleOrder(100, 100, "student", 1).batch(0),
        SampleOrder(100, 100, "teacher", 0).batch(0),
    ]
    assert not any((batch == other).all() for other in others)


def test_golden_order():
    """What a seed means: a change here changes every run."""
    assert SampleOrder(10, 4, "student", 0).batch(0).tolist() == [9, 5, 7, 0]
    assert SampleOrder(10, 4, "student", 0).batch(5).tolist() == [8, 7, 9, 6]


def test_no_samples_is_refused():
    with pytest.raises(ValueError, match="from 0 samples"):
        SampleOrder(0, 4, "student", 0)


LABELS = torch.tensor([0, 1, 2] * 20 + [0] * 5)


def test_full_set_is_every_index():
    assert ipc_indices(LABELS, ipc=None, subset_seed=0).tolist() == list(range(65))


@pytest.mark.parametrize("ipc", [1, 7, 20])
def test_subset_has_ipc_ascending_indices_per_class(ipc):
    indices = ipc_indices(LABELS, ipc=ipc, subset_seed=0)
    assert indices.dtype == torch.int64
    assert torch.equal(indices, indices.sort().values)
    assert LABELS[indices].bincount().tolist() == [ipc] * 3


def test_subsets_nest_and_seeds_differ():
    subsets = [set(ipc_indices(LABELS, ipc=n, subset_seed=4).tolist()) for n in range(1, 21)]
    assert all(small < large for small, large in itertools.pairwise(subsets))
    assert subsets[4] != set(ipc_indices(LABELS, ipc=5, subset_seed=5).tolist())


def test_ipc_beyond_a_class_names_the_class_and_its_size():
    with pytest.raises(UnsuitableError, match="ipc 21 does not fit class 1, which has 20"):
        ipc_indices(LABELS, ipc=21, subset_seed=0)
    with pytest.raises(UnsuitableError, match="ipc 0"):
        ipc_indices(LABELS, ipc=0, subset_seed=0)
