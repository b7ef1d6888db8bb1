"""Blocks of draws: what a row gives back, on the device and on the CPU, in any order of steps."""

import itertools
import threading

import numpy as np
import pytest
import torch
from training_helpers import CPU, batches, image_data

from trainers.augment_draws import BLOCK_STEPS, draw
from trainers.blocks import Blocks, RowLayout
from trainers.data.order import SampleOrder
from trainers.spec import AUGMENTATIONS

BATCH = 6


def fields(block):
    """One field of every dtype and shape that draws have, and one of odd length."""
    generator = np.random.default_rng(block)
    shape = (BLOCK_STEPS, BATCH)
    return {
        "samples": torch.from_numpy(generator.integers(10**9, size=shape)),
        "flip": torch.from_numpy(generator.random(shape) < 0.5),
        "factors": torch.from_numpy(generator.random((*shape, 3)).astype(np.float32)),
        "box": torch.from_numpy(generator.integers(32, size=(*shape, 4))),
        "lam": torch.from_numpy(generator.random(shape).astype(np.float32)),
    }


class Drawing:
    """Draws `fields`, and remembers which blocks and in which threads."""

    def __init__(self):
        self.blocks, self.threads = [], set()

    def __call__(self, block):
        self.blocks.append(block)
        self.threads.add(threading.current_thread().name)
        return fields(block)


def assert_is_step(found, step):
    block, step_in_block = divmod(step, BLOCK_STEPS)
    expected = fields(block)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == expected[name].dtype, name
        assert torch.equal(value, expected[name][step_in_block]), (name, step)


def test_a_row_gives_the_fields_back_and_begins_them_where_any_dtype_may_begin():
    layout = RowLayout(fields(0))
    packed = layout.pack(fields(0), pinned=False)
    assert packed.shape == (BLOCK_STEPS, layout.row_bytes)
    assert layout.row_bytes % 16 == 0
    for step in (0, 17, 63):
        row = packed[step]
        assert_is_step(layout.unpack(row), step)
        starts = [field.data_ptr() - row.data_ptr() for field in layout.unpack(row).values()]
        assert all(start % 16 == 0 for start in starts)


def test_steps_in_any_order_read_their_own_rows():
    blocks = Blocks(fields, CPU)
    for step in (0, 63, 64, 700, 1, 64, 65, 128, 0):
        assert_is_step(blocks.drawn(step + 3), step + 3)  # who decodes ahead looks first
        blocks.stage(step)
        assert_is_step(blocks.row(torch.tensor([step])), step)


def test_a_block_is_drawn_once_while_steps_follow_each_other():
    drawing = Drawing()
    blocks = Blocks(drawing, CPU)
    for step in range(3 * BLOCK_STEPS):
        blocks.stage(step)
        blocks.drawn(step + 2)
    assert drawing.blocks == [0, 1, 2, 3]


def test_blocks_lie_in_the_same_memory():
    """Else a captured step would go on reading the first one."""
    blocks = Blocks(fields, CPU)
    blocks.stage(0)
    (row,) = (blocks._rows,)
    for step in (64, 640, 0):
        blocks.stage(step)
        assert blocks._rows is row


def test_a_thread_draws_the_next_block_and_ends_with_close(monkeypatch):
    drawing = Drawing()
    blocks = Blocks(drawing, CPU)
    monkeypatch.setattr(blocks, "_ahead", True)  # as on a GPU
    for step in itertools.chain(range(130), (5, 64)):
        blocks.stage(step)
        assert_is_step(blocks.row(torch.tensor([step])), step)
    blocks.close()
    assert all(name.startswith("draw") for name in drawing.threads)
    assert not any(thread.name.startswith("draw") for thread in threading.enumerate())
    assert set(drawing.blocks) <= {0, 1, 2, 3}
    blocks.stage(1000)  # it starts again
    assert_is_step(blocks.row(torch.tensor([1000])), 1000)
    blocks.close()


def test_an_error_of_the_thread_reaches_who_needs_the_block(monkeypatch):
    def broken(block):
        if block == 1:
            raise ValueError("no block 1")
        return fields(block)

    blocks = Blocks(broken, CPU)
    monkeypatch.setattr(blocks, "_ahead", True)
    blocks.stage(0)
    with pytest.raises(ValueError, match="no block 1"):
        blocks.stage(64)
    blocks.close()


@pytest.mark.parametrize("augmentation", ["none", "std", "mixup", "cutmix"])
def test_a_batch_is_what_order_and_draws_say(augmentation):
    """Against the two sources themselves, over the border of a block and of an epoch."""
    data = image_data()
    source = batches(data, AUGMENTATIONS[augmentation])
    order = SampleOrder(len(data.train_labels), 20, "student", 0)
    for step in (0, 9, 10, 63, 64, 130):
        batch = source.batch(step)
        assert batch.samples_N.tolist() == order.batch(step).tolist()
        block, step_in_block = divmod(step, BLOCK_STEPS)
        drawn = draw(
            AUGMENTATIONS[augmentation], role="student", seed=0, block=block, batch_size=20,
            image_size=8,
        ).at(step_in_block, slice(None))  # fmt: skip
        if drawn.partner is None:
            assert batch.partners_N is None
        else:
            assert torch.equal(batch.partners_N, batch.samples_N[drawn.partner])
            assert torch.equal(batch.lam_N, drawn.lam)
