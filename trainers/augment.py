"""Augmentation of batches on the device, with parameters per sample (`augment_draws`).

Operations follow torchvision's definitions to rounding; pixels are float32 in [0, 1] until they are
normalised. Nothing here waits for the device.

Legend: N images, C channels, H height, W width, B global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from trainers import rng, spec
from trainers.augment_draws import BLOCK_STEPS, AugmentParameters, draw
from trainers.compiled import compiled

__all__ = [
    "BLOCK_STEPS",
    "AugmentParameters",
    "AugmentedBatch",
    "Augmenter",
    "augment",
    "color_jitter",
    "cutmix",
    "draw",
    "grayscale",
    "mix_images",
    "mix_targets",
    "mixup",
    "normalise",
    "resized_crop",
]


def normalise(
    images_NCHW: torch.Tensor,
    mean: Sequence[float] | torch.Tensor,
    std: Sequence[float] | torch.Tensor,
) -> torch.Tensor:
    """uint8 images to (x / 255 − mean) / std, float32 (N, C, H, W): the plain view of evaluation
    and of strategy C's targets. mean, std: per channel, of pixels in [0, 1]."""
    return _standardise(_to_unit(images_NCHW), mean, std)


def _to_unit(images_NCHW: torch.Tensor) -> torch.Tensor:
    return images_NCHW.to(torch.float32).div_(255)


def _standardise(
    views_NCHW: torch.Tensor,
    mean: Sequence[float] | torch.Tensor,
    std: Sequence[float] | torch.Tensor,
) -> torch.Tensor:
    # as_tensor copies nothing if the caller keeps tensors on the device, as Augmenter does.
    mean_C, std_C = (torch.as_tensor(v, device=views_NCHW.device) for v in (mean, std))
    return (views_NCHW - mean_C.view(-1, 1, 1)).div_(std_C.view(-1, 1, 1))


def augment(
    images_NCHW: torch.Tensor,
    parameters: AugmentParameters,
    mean: Sequence[float] | torch.Tensor,
    std: Sequence[float] | torch.Tensor,
) -> torch.Tensor:
    """One view of each image: color jitter, grayscale, crop with flip, normalise (Appendix B).

    images: uint8 (N, C, H, W), square. parameters: (N,), see `AugmentParameters.at`; mixing is left
    to `mix_images`. Returns float32 (N, C, H, W); without any component exactly `normalise`.
    """
    p, views = parameters, _to_unit(images_NCHW)
    if p.color_factors is not None and p.color_order is not None:
        views = color_jitter(views, p.color_factors, p.color_order)
    if p.grayscale is not None:
        views = torch.where(_per_image(p.grayscale), grayscale(views), views)
    if p.crop_box is not None:
        views = resized_crop(views, p.crop_box, views.shape[-1], flip_N=p.flip)
    elif p.flip is not None:
        views = torch.where(_per_image(p.flip), views.flip(-1), views)
    return _standardise(views, mean, std)


def _per_image(values_N: torch.Tensor) -> torch.Tensor:
    return values_N.view(-1, 1, 1, 1)


def grayscale(views_NCHW: torch.Tensor) -> torch.Tensor:
    """ITU-R 601 luma, (N, 1, H, W), with torchvision's digits."""
    red, green, blue = views_NCHW.unbind(dim=1)
    return (0.2989 * red).add_(0.587 * green).add_(0.114 * blue).unsqueeze(1)


def color_jitter(
    views_NCHW: torch.Tensor, factors_N3: torch.Tensor, order_N3: torch.Tensor
) -> torch.Tensor:
    """Brightness, contrast and saturation in each sample's own order.

    Each is clamp(f·x + (1 − f)·base, 0, 1), with base 0 for brightness, the mean luma of the image
    for contrast, the luma for saturation: three blends in all, whatever the orders.
    """
    for operation_N in order_N3.unbind(dim=1):
        factor = _per_image(factors_N3.gather(1, operation_N[:, None]))
        luma = grayscale(views_NCHW)
        flat = _per_image(operation_N == 1) * luma.mean(dim=(1, 2, 3), keepdim=True)
        base = torch.where(_per_image(operation_N == 2), luma, flat)
        views_NCHW = (factor * views_NCHW).add_((1 - factor) * base).clamp_(0, 1)
    return views_NCHW


def resized_crop(
    views_NCHW: torch.Tensor,
    box_N4: torch.Tensor,
    size: int,
    *,
    flip_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """Crops each image to its own box (top, left, height, width) and resizes that to
    (N, C, size, size), bilinear with antialias; flips it horizontally where `flip_N`.

    Interpolation is linear in each axis, so it is two batched matrix products, R x Cᵀ, with a
    matrix per sample. They run in full precision under autocast; TF32 would show in the pixels.
    """
    num, channels, height, width = views_NCHW.shape
    top, left, box_height, box_width = box_N4.unbind(dim=1)
    rows = _interpolation(top, box_height, height, size)
    columns = _interpolation(left, box_width, width, size)
    if flip_N is not None:
        columns = torch.where(flip_N.view(-1, 1, 1), columns.flip(1), columns)
    with torch.autocast(views_NCHW.device.type, enabled=False):
        wide = views_NCHW.reshape(num, channels * height, width) @ columns.mT
        wide = wide.view(num, channels, height, size).transpose(1, 2)
        tall = rows @ wide.reshape(num, height, channels * size)
    return tall.view(num, size, channels, size).transpose(1, 2)


def _interpolation(
    start_N: torch.Tensor, length_N: torch.Tensor, in_size: int, out_size: int
) -> torch.Tensor:
    """Matrices (N, out_size, in_size) that resize `length` pixels from `start` on to `out_size`.

    w_ij ∝ max(0, 1 − |j + ½ − c_i| / max(s, 1)), s = length / out_size, c_i = (i + ½)·s, with j
    counted from `start` and confined to the box; rows sum to one.
    """
    device = start_N.device
    start, length = start_N.view(-1, 1, 1), length_N.view(-1, 1, 1)
    scale = length / out_size
    centre = (torch.arange(out_size, device=device).view(1, -1, 1) + 0.5) * scale
    pixel = torch.arange(in_size, device=device).view(1, 1, -1) - start
    distance = (pixel + 0.5 - centre).abs_().div_(scale.clamp(min=1))
    weights = (1 - distance).clamp_(min=0).mul_((pixel >= 0) & (pixel < length))
    return weights.div_(weights.sum(dim=-1, keepdim=True))


def mixup(
    views_NCHW: torch.Tensor, partners_NCHW: torch.Tensor, lam_N: torch.Tensor
) -> torch.Tensor:
    """λ·x + (1 − λ)·x_partner."""
    lam = _per_image(lam_N)
    return lam * views_NCHW + (1 - lam) * partners_NCHW


def cutmix(
    views_NCHW: torch.Tensor, partners_NCHW: torch.Tensor, box_N4: torch.Tensor
) -> torch.Tensor:
    """x with its partner's pixels inside the box (top, left, bottom, right)."""
    height, width = views_NCHW.shape[-2:]
    top, left, bottom, right = (_per_image(side) for side in box_N4.unbind(dim=1))
    y = torch.arange(height, device=views_NCHW.device).view(1, 1, -1, 1)
    x = torch.arange(width, device=views_NCHW.device).view(1, 1, 1, -1)
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    return torch.where(inside, partners_NCHW, views_NCHW)


def mix_images(
    views_NCHW: torch.Tensor, partners_NCHW: torch.Tensor, parameters: AugmentParameters
) -> torch.Tensor:
    """MixUp or CutMix of each view with its partner's, whichever `parameters` (N,) hold."""
    if parameters.mix_box is not None:
        return cutmix(views_NCHW, partners_NCHW, parameters.mix_box)
    if parameters.lam is not None:
        return mixup(views_NCHW, partners_NCHW, parameters.lam)
    return views_NCHW


def mix_targets(
    targets_NC: torch.Tensor, partner_targets_NC: torch.Tensor, lam_N: torch.Tensor
) -> torch.Tensor:
    """λ·t + (1 − λ)·t_partner, (N, C): the targets of mixed images, one-hot or soft."""
    lam = lam_N.view(-1, 1)
    return lam * targets_NC + (1 - lam) * partner_targets_NC


@dataclass(frozen=True)
class AugmentedBatch:
    """views: float32 (N, C, H, W), mixed if mixing is on. lam: (N,), the share of the own target,
    and partner: int64 (N,), positions of the partners in the global batch; both None without
    mixing. Targets mix as `mix_targets(t[indices[rows]], t[indices[partner_N]], lam_N)`."""

    views_NCHW: torch.Tensor
    lam_N: torch.Tensor | None = None
    partner_N: torch.Tensor | None = None


class Augmenter:
    """Augmented batches, a pure function of (role, seed, step) and the images.

    batch_size: the global batch. image_size: pixels. mean, std: per channel, of pixels in [0, 1].
    compile: whether what is done to pixels is compiled.
    """

    def __init__(
        self,
        augmentation: spec.Augmentation,
        *,
        role: rng.Role,
        seed: int,
        batch_size: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        compile: bool = False,
    ) -> None:
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.image_size = image_size
        self._role: rng.Role = role
        self._seed = seed
        self._mean_C = torch.tensor(mean, device=device)
        self._std_C = torch.tensor(std, device=device)
        # A hundred small kernels become ten: on a GPU as much time as a tenth of a ResNet-18 step.
        self._augment = compiled(augment, wanted=compile)
        self._mix_images = compiled(mix_images, wanted=compile)

    def draw(self, block: int) -> AugmentParameters:
        """The parameters of a block of steps, (S, B), on the CPU."""
        return draw(
            self.augmentation,
            role=self._role,
            seed=self._seed,
            block=block,
            batch_size=self.batch_size,
            image_size=self.image_size,
        )

    def batch(
        self,
        images_of: Callable[[slice | torch.Tensor], torch.Tensor],
        parameters: AugmentParameters,
        rows: slice,
    ) -> AugmentedBatch:
        """The rows of a step's global batch that one rank computes: `slice(r·B/W, (r+1)·B/W)`.

        images_of: uint8 (N, C, H, W) at positions of the global batch, on the device. parameters:
        (B,), there too. A rank sees exactly what a single process would compute there: partners
        outside its rows are augmented here too, with their own parameters.
        """
        own = parameters.rows(rows)
        views = self._views(images_of(rows), own)
        if own.lam is None or own.partner is None:
            return AugmentedBatch(views)
        if rows.stop - rows.start == self.batch_size:
            partners = views.index_select(0, own.partner)
        else:
            partners = self._views(images_of(own.partner), parameters.rows(own.partner))
        return AugmentedBatch(self._mix_images(views, partners, own), own.lam, own.partner)

    def _views(self, images_NCHW: torch.Tensor, parameters: AugmentParameters) -> torch.Tensor:
        return self._augment(images_NCHW, parameters, self._mean_C, self._std_C)
