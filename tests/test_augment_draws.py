"""What is drawn: purity, independence of components, and torchvision's distributions."""

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop, v2

from trainers.augment_draws import BLOCK_STEPS, AugmentParameters, draw, draw_crops
from trainers.errors import UnsuitableError
from trainers.spec import AUGMENTATIONS, Augmentation

STD = AUGMENTATIONS["std"]
FULL = dataclasses.replace(STD, cutmix_alpha=1.0)


def drawn(augmentation, **changes):
    values = {"role": "student", "seed": 0, "block": 0, "batch_size": 128, "image_size": 32}
    return draw(augmentation, **(values | changes))


def tensors(parameters):
    return {k: v for k, v in vars(parameters).items() if v is not None}


def equal(first, second):
    a, b = tensors(first), tensors(second)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_draw_is_a_pure_function():
    assert equal(drawn(FULL), drawn(FULL))
    for change in ({"seed": 1}, {"role": "teacher"}, {"block": 1}):
        assert not equal(drawn(FULL), drawn(FULL, **change))


def test_shapes_and_types():
    expected = {
        "color_factors": (torch.float32, (3,)),
        "color_order": (torch.int64, (3,)),
        "grayscale": (torch.bool, ()),
        "flip": (torch.bool, ()),
        "crop_box": (torch.int64, (4,)),
        "lam": (torch.float32, ()),
        "partner": (torch.int64, ()),
        "mix_box": (torch.int64, (4,)),
    }
    block = tensors(drawn(FULL))
    assert {k: (v.dtype, v.shape[2:]) for k, v in block.items()} == expected
    assert all(v.shape[:2] == (BLOCK_STEPS, 128) for v in block.values())
    assert tensors(drawn(AUGMENTATIONS["none"])) == {}


@pytest.mark.parametrize(
    ("field", "off"),
    [
        ("color_factors", {"color_p": 0.0}),
        ("grayscale", {"grayscale_p": 0.0}),
        ("flip", {"flip_p": 0.0}),
        ("crop_box", {"crop_scale": None}),
        ("lam", {"cutmix_alpha": 0.0}),
    ],
)
def test_a_component_changes_no_other(field, off):
    full, without = tensors(drawn(FULL)), tensors(drawn(dataclasses.replace(FULL, **off)))
    assert field not in without
    assert all(torch.equal(full[name], without[name]) for name in without)


def test_components_are_not_one_sequence():
    a = Augmentation(grayscale_p=0.5, flip_p=0.5)
    p = drawn(a)
    agreement = (p.grayscale == p.flip).float().mean().item()
    assert agreement == pytest.approx(0.5, abs=0.03)


def test_at_slices_and_gathers():
    block = drawn(FULL)
    rows = torch.tensor([5, 3, 3])
    gathered = block.at(7, rows)
    for name, tensor in tensors(block).items():
        assert torch.equal(getattr(gathered, name), tensor[7, rows])
    assert equal(block.at(7, slice(3, 6)), block.at(7, torch.arange(3, 6)))


def test_partners_are_permutations():
    partner = drawn(FULL).partner
    assert torch.equal(partner.sort(dim=1).values, torch.arange(128).expand(BLOCK_STEPS, 128))
    assert not torch.equal(partner[0], partner[1])


def test_color():
    p = drawn(STD)
    jittered = (p.color_factors != 1).all(dim=-1)
    assert jittered.float().mean() == pytest.approx(0.8, abs=0.02)
    assert ((p.color_factors == 1).all(dim=-1) | jittered).all()
    factors = p.color_factors[jittered]
    assert factors.min() >= 0.6
    assert factors.max() <= 1.4
    assert factors.mean(dim=0).tolist() == pytest.approx([1.0] * 3, abs=0.02)
    codes = (p.color_order * torch.tensor([9, 3, 1])).sum(dim=-1).flatten()
    _, counts = codes.unique(return_counts=True)
    assert (counts / counts.sum()).tolist() == pytest.approx([1 / 6] * 6, abs=0.02)


def test_strengths_above_one_stop_at_zero():
    factors = drawn(Augmentation(color_p=1.0, brightness=1.5)).color_factors
    assert factors[..., 0].min() >= 0
    assert (factors[..., 1:] == 1).all()


def test_flags():
    p = drawn(STD)
    assert p.grayscale.float().mean() == pytest.approx(0.2, abs=0.02)
    assert p.flip.float().mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("scale", "ratio"),
    [
        ((0.08, 1.0), (3 / 4, 4 / 3)),
        ((0.5, 0.6), (0.5, 1.0)),
        ((1.0, 1.0), (2.0, 3.0)),  # nothing fits: the centre
        ((1.0, 1.0), (0.3, 0.4)),
    ],
)
def test_crop_boxes_are_distributed_as_torchvisions(scale, ratio):
    boxes = drawn(Augmentation(crop_scale=scale, crop_ratio=ratio)).crop_box.reshape(-1, 4).double()
    top, left, height, width = boxes.unbind(dim=1)
    assert (boxes >= 0).all()
    assert (top + height).max() <= 32
    assert (left + width).max() <= 32
    image = torch.empty(3, 32, 32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = torch.tensor(
            [RandomResizedCrop.get_params(image, scale, ratio) for _ in range(2000)]
        ).double()
    np.testing.assert_allclose(boxes.mean(dim=0), reference.mean(dim=0), atol=0.6)
    np.testing.assert_allclose(boxes.std(dim=0), reference.std(dim=0), atol=0.5)


def test_lambda_and_boxes_as_torchvisions():
    mixup = drawn(AUGMENTATIONS["mixup"])
    assert mixup.mix_box is None
    assert mixup.lam.mean() == pytest.approx(0.5, abs=0.02)
    assert mixup.lam.var() == pytest.approx(0.25 / 2.6, abs=0.01)  # Beta(0.8, 0.8)

    cutmix = drawn(AUGMENTATIONS["cutmix"])
    transform = v2.CutMix(alpha=1.0, num_classes=10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = [transform.make_params([torch.empty(1, 3, 32, 32)]) for _ in range(2000)]
    lam = np.array([p["lam_adjusted"] for p in params])
    assert cutmix.lam.mean() == pytest.approx(lam.mean(), abs=0.02)
    assert cutmix.lam.std() == pytest.approx(lam.std(), abs=0.02)
    left, top, right, bottom = np.array([p["box"] for p in params]).T
    reference = np.stack([top, left, bottom, right]).mean(axis=1)
    boxes = cutmix.mix_box.double().mean(dim=(0, 1))
    np.testing.assert_allclose(boxes, reference, atol=0.8)
    assert cutmix.mix_box.min() >= 0
    assert cutmix.mix_box.max() <= 32


def test_both_mixes_are_refused():
    with pytest.raises(UnsuitableError, match="both on"):
        drawn(Augmentation(mixup_alpha=1.0, cutmix_alpha=1.0))


def test_golden_draw():
    """What a seed means: a change here changes every augmented run."""
    p = drawn(FULL, batch_size=2).at(0, slice(None))
    assert p.crop_box.tolist() == [[3, 6, 16, 15], [12, 13, 18, 17]]
    assert p.partner.tolist() == [0, 1]
    assert p.lam.tolist() == pytest.approx([0.6338, 0.6699], abs=1e-4)


def test_rows_of_a_step_are_rows_of_its_block():
    step = drawn(FULL).at(5, slice(None))
    assert equal(step.rows(slice(3, 9)), drawn(FULL).at(5, slice(3, 9)))
    some = torch.tensor([7, 0, 7])
    assert equal(step.rows(some), drawn(FULL).at(5, some))
    assert equal(AugmentParameters(**step.present()), step)
    assert AugmentParameters().rows(slice(3)).present() == {}


# -- crops of pictures of any size -----------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (40, 400), (30, 31)])
@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (0.2, 0.25)])
def test_crops_of_oblong_pictures_are_distributed_as_torchvisions(height, width, ratio):
    scale = (0.08, 1.0)
    crops = draw_crops(
        Augmentation(crop_scale=scale, crop_ratio=ratio),
        role="student", seed=0, block=0, batch_size=128,
    )  # fmt: skip
    boxes = crops.boxes(np.array(height), np.array(width)).reshape(-1, 4).astype(float)
    top, left, tall, wide = boxes.T
    assert boxes.min() >= 0
    assert tall.min() >= 1
    assert (top + tall).max() <= height
    assert (left + wide).max() <= width
    area = tall * wide / (height * width)
    assert area.max() <= 1
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = np.array(
            [RandomResizedCrop.get_params(image, scale, ratio) for _ in range(4000)], dtype=float
        )
    spread = np.array([height, width, height, width])
    np.testing.assert_allclose(boxes.mean(0) / spread, reference.mean(0) / spread, atol=0.015)
    np.testing.assert_allclose(boxes.std(0) / spread, reference.std(0) / spread, atol=0.015)


def test_a_crop_asks_for_the_same_share_of_every_picture():
    """One draw, resolved with each picture's own size; `draw` resolves the same one."""
    crops = draw_crops(STD, role="student", seed=3, block=2, batch_size=16)
    sizes = np.full((64, 16), 32)
    assert torch.equal(
        torch.from_numpy(crops.boxes(sizes, sizes)),
        drawn(STD, seed=3, block=2, batch_size=16).crop_box,
    )
    rows = np.array([5, 1, 9])
    picked = crops.at(7, rows)
    small = picked.boxes(np.full(3, 100), np.full(3, 100))
    large = picked.boxes(np.array([1000, 100, 1000]), np.array([1000, 100, 1000]))
    assert np.abs(large[[0, 2]] / 10 - small[[0, 2]]).max() <= 1
    assert (large[1] == small[1]).all()
    assert draw_crops(AUGMENTATIONS["color"], role="student", seed=0, block=0, batch_size=2) is None


def test_without_a_crop_the_rest_is_drawn_alike():
    """What encoded pictures rely on: their crops are resolved elsewhere."""
    whole, rest = drawn(FULL), drawn(dataclasses.replace(FULL, crop_scale=None))
    assert rest.crop_box is None
    assert equal(dataclasses.replace(whole, crop_box=None), rest)
