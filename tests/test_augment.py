"""Each operation against torchvision's functional transform of the same parameters."""

import dataclasses

import pytest
import torch
import torchvision.transforms.functional as tvf
from torchvision.transforms import v2

from trainers import augment as aug
from trainers.augment import BLOCK_STEPS, Augmenter, AugmentParameters, draw
from trainers.spec import AUGMENTATIONS, Augmentation

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
EVERYTHING = {
    "std+mixup": dataclasses.replace(AUGMENTATIONS["std"], mixup_alpha=0.8),
    "std+cutmix": dataclasses.replace(AUGMENTATIONS["std"], cutmix_alpha=1.0),
}
ALL = AUGMENTATIONS | EVERYTHING


@pytest.fixture
def images():
    return torch.randint(
        0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.fixture
def views(images):
    return images / 255


def parameters(augmentation, batch_size=24, image_size=32, step=0):
    drawn = draw(
        augmentation, role="student", seed=0, block=0, batch_size=batch_size, image_size=image_size
    )
    return drawn.at(step, slice(None))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def reference_jitter(view, factors, order):
    operations = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation)
    for index in order.tolist():
        view = operations[index](view, float(factors[index]))
    return view


@pytest.mark.parametrize("operation", [0, 1, 2])
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4, 2.5])
def test_one_color_operation(views, operation, factor):
    factors = torch.ones(24, 3)
    factors[:, operation] = factor
    order = torch.tensor([[0, 1, 2]]).expand(24, 3)
    expected = [reference_jitter(view, factors[0], order[0]) for view in views]
    close(aug.color_jitter(views, factors, order), torch.stack(expected))


def test_color_jitter_in_every_order(views):
    p = parameters(dataclasses.replace(AUGMENTATIONS["color"], color_p=1.0))
    assert len({tuple(order.tolist()) for order in p.color_order}) == 6
    rows = zip(views, p.color_factors, p.color_order, strict=True)
    expected = torch.stack([reference_jitter(*row) for row in rows])
    close(aug.color_jitter(views, p.color_factors, p.color_order), expected)


def test_factor_one_changes_nothing(views):
    order = torch.tensor([[2, 0, 1]]).expand(24, 3)
    assert torch.equal(aug.color_jitter(views, torch.ones(24, 3), order), views)


def test_grayscale(views):
    close(aug.grayscale(views), tvf.rgb_to_grayscale(views))


@pytest.mark.parametrize(("image_size", "size"), [(32, 32), (32, 8), (32, 48), (160, 32)])
def test_resized_crop_with_flip(image_size, size):
    views = torch.rand(24, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))
    p = parameters(AUGMENTATIONS["std"], image_size=image_size)
    expected = [
        tvf.resized_crop(view, *box.tolist(), [size, size], antialias=True)
        for view, box in zip(views, p.crop_box, strict=True)
    ]
    close(aug.resized_crop(views, p.crop_box, size), torch.stack(expected))
    expected = [
        tvf.hflip(v) if flip else v for v, flip in zip(expected, p.flip.tolist(), strict=True)
    ]
    close(aug.resized_crop(views, p.crop_box, size, flip_N=p.flip), torch.stack(expected))


def test_crop_of_the_whole_image_is_the_image(views):
    box = torch.tensor([[0, 0, 32, 32]]).expand(24, 4)
    assert torch.equal(aug.resized_crop(views, box, 32), views)


def test_crop_stays_in_full_precision_under_autocast(views):
    p = parameters(AUGMENTATIONS["crop"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cropped = aug.resized_crop(views, p.crop_box, 32)
    assert torch.equal(cropped, aug.resized_crop(views, p.crop_box, 32))


def test_whole_view_in_the_papers_order(images):
    p = parameters(AUGMENTATIONS["std"])
    expected = []
    for i, view in enumerate(images / 255):
        view = reference_jitter(view, p.color_factors[i], p.color_order[i])
        view = tvf.rgb_to_grayscale(view, 3) if p.grayscale[i] else view
        view = tvf.resized_crop(view, *p.crop_box[i].tolist(), [32, 32], antialias=True)
        view = tvf.hflip(view) if p.flip[i] else view
        expected.append(tvf.normalize(view, MEAN, STD))
    torch.testing.assert_close(
        aug.augment(images, p, MEAN, STD), torch.stack(expected), atol=5e-5, rtol=0
    )


def test_flip_without_crop(images):
    p = parameters(Augmentation(flip_p=0.5))
    expected = [
        tvf.normalize((tvf.hflip(i) if f else i) / 255, MEAN, STD)
        for i, f in zip(images, p.flip.tolist(), strict=True)
    ]
    close(aug.augment(images, p, MEAN, STD), torch.stack(expected))


def test_no_augmentation_is_exactly_normalise(images):
    plain = aug.normalise(images, MEAN, STD)
    assert torch.equal(aug.augment(images, AugmentParameters(), MEAN, STD), plain)
    batch = batch_of(augmenter(AUGMENTATIONS["none"]), images, torch.arange(24), 0)
    assert torch.equal(batch.views_NCHW, plain)
    assert batch.lam_N is None
    assert batch.partner_N is None
    close(plain, tvf.normalize(images / 255, MEAN, STD))


def test_images_are_left_alone(images):
    before = images.clone()
    aug.augment(images, parameters(AUGMENTATIONS["std"]), MEAN, STD)
    assert torch.equal(images, before)


def test_mixup_arithmetic(views):
    transform = v2.MixUp(alpha=0.8, num_classes=10)
    lam = torch.full((24,), 0.3)
    reference = transform.transform(
        views, {"lam": 0.3, "labels": None, "batch_size": 24}
    )  # partner of i is i - 1
    close(aug.mixup(views, views.roll(1, 0), lam), reference)


def test_cutmix_arithmetic(views):
    p = parameters(AUGMENTATIONS["cutmix"])
    transform = v2.CutMix(alpha=1.0, num_classes=10)
    expected = []
    for row, (top, left, bottom, right) in enumerate(p.mix_box.tolist()):
        params = {"box": (left, top, right, bottom), "labels": None, "batch_size": 24}
        expected.append(transform.transform(views, params)[row])
        outside = 1 - (bottom - top) * (right - left) / 32**2
        assert float(p.lam[row]) == pytest.approx(outside)
    close(aug.cutmix(views, views.roll(1, 0), p.mix_box), torch.stack(expected))


def test_mix_targets():
    targets = torch.eye(3)
    mixed = aug.mix_targets(targets, targets.roll(1, 0), torch.tensor([1.0, 0.25, 0.0]))
    assert mixed.tolist() == [[1, 0, 0], [0.75, 0.25, 0], [0, 1, 0]]


def augmenter(augmentation, batch_size=24, seed=0, **options):
    return Augmenter(
        augmentation,
        role="student",
        seed=seed,
        batch_size=batch_size,
        image_size=32,
        mean=MEAN,
        std=STD,
        **options,
    )


def batch_of(made, images, indices, step, rows=None):
    """The rows of a step's batch. images: the whole data set. indices: the samples of the batch."""
    block, step_in_block = divmod(step, BLOCK_STEPS)
    drawn = made.draw(block).at(step_in_block, slice(None))
    return made.batch(
        lambda positions: images[indices[positions]], drawn, rows or slice(0, made.batch_size)
    )


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_see_what_a_single_process_sees(images, name, world_size):
    indices = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    whole = batch_of(augmenter(ALL[name]), images, indices, 70)
    share = 24 // world_size
    parts = [
        batch_of(augmenter(ALL[name]), images, indices, 70, slice(r * share, (r + 1) * share))
        for r in range(world_size)
    ]
    assert torch.equal(torch.cat([part.views_NCHW for part in parts]), whole.views_NCHW)
    for field in ("lam_N", "partner_N"):
        if getattr(whole, field) is not None:
            joined = torch.cat([getattr(part, field) for part in parts])
            assert torch.equal(joined, getattr(whole, field))


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_mixed_batch_is_its_parts(images, name):
    indices = torch.arange(23, -1, -1)
    batch = batch_of(augmenter(ALL[name]), images, indices, 3)
    unmixed = dataclasses.replace(ALL[name], mixup_alpha=0.0, cutmix_alpha=0.0)
    plain = batch_of(augmenter(unmixed), images, indices, 3).views_NCHW
    p = parameters(ALL[name], step=3)
    expected = aug.mix_images(plain, plain[p.partner], p)
    assert torch.equal(batch.views_NCHW, expected)


def test_views_depend_on_step_and_seed(images):
    indices = torch.arange(24)
    first, second, other = (
        batch_of(augmenter(AUGMENTATIONS["std"], seed=seed), images, indices, step).views_NCHW
        for seed, step in ((0, 0), (0, 63), (1, 0))
    )
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_compiles(images):
    """As one graph: nothing depends on a value."""
    p = parameters(AUGMENTATIONS["std"])
    compiled = torch.compile(aug.augment, backend="eager", fullgraph=True)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    close(compiled(images, p, mean, std), aug.augment(images, p, mean, std))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ALL)
def test_device_agrees_and_is_never_waited_for(images, name):
    on_gpu, data = augmenter(ALL[name], device="cuda"), images.cuda()
    indices = torch.arange(24, device="cuda")
    drawn = {
        key: value.cuda() for key, value in on_gpu.draw(0).at(1, slice(None)).present().items()
    }

    def images_of(positions):
        return data[indices[positions]]

    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = on_gpu.batch(images_of, AugmentParameters(**drawn), slice(0, 24))
        half = on_gpu.batch(images_of, AugmentParameters(**drawn), slice(12, 24))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = batch_of(augmenter(ALL[name]), images, torch.arange(24), 1)
    torch.testing.assert_close(batch.views_NCHW.cpu(), expected.views_NCHW, atol=5e-5, rtol=0)
    torch.testing.assert_close(half.views_NCHW, batch.views_NCHW[12:], atol=1e-5, rtol=0)
