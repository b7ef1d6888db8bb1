"""Parameters of augmentation, drawn per sample on the CPU.

They are drawn for the *global* batch, 64 steps at a time, from streams "augment" and "mix": a block
is a pure function of (role, seed, block), sent to the device once and sliced per step and rank. So
neither device nor world size nor where a run stopped changes an augmentation. Each component has a
generator of its own, so switching one on or off changes no other's draw.

Legend: S steps of a block, B global batch, N rows of one step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainers import rng, spec
from trainers.errors import UnsuitableError

__all__ = ["BLOCK_STEPS", "AugmentParameters", "draw"]

BLOCK_STEPS = 64
"""Steps drawn at a time. Part of what a seed means: changing it changes every augmented run."""

_ORDERS = np.array(list(itertools.permutations(range(3))))
_CROP_ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class AugmentParameters:
    """Parameters per sample: leading dimensions (S, B) in a block, (N,) after `at`. A component
    that is off is None.

    color_factors: float32 (…, 3), of brightness, contrast and saturation; 1 where jitter does not
    apply. color_order: int64 (…, 3), the operation (0, 1, 2 as above) applied first, second, third.
    grayscale, flip: bool (…). crop_box: int64 (…, 4), top, left, height, width.
    lam: float32 (…), the share of the sample's own target; for CutMix one minus the exact area.
    partner: int64 (…), the position in the global batch that is mixed in.
    mix_box: int64 (…, 4), top, left, bottom, right (exclusive) of the pasted box; CutMix only.
    """

    color_factors: torch.Tensor | None = None
    color_order: torch.Tensor | None = None
    grayscale: torch.Tensor | None = None
    flip: torch.Tensor | None = None
    crop_box: torch.Tensor | None = None
    lam: torch.Tensor | None = None
    partner: torch.Tensor | None = None
    mix_box: torch.Tensor | None = None

    def at(self, step_in_block: int, rows: slice | torch.Tensor) -> AugmentParameters:
        """The parameters of some rows of one step of a block: (N,)."""
        return self._map(lambda tensor: tensor[step_in_block][rows])

    def to(self, device: torch.device | str) -> AugmentParameters:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> AugmentParameters:
        present = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: function(v) for k, v in present.items() if v is not None})


def draw(
    augmentation: spec.Augmentation,
    *,
    role: rng.Role,
    seed: int,
    block: int,
    batch_size: int,
    image_size: int,
) -> AugmentParameters:
    """Parameters of steps 64·block … 64·block + 63 of a global batch, on the CPU.

    image_size: height = width of the images in pixels. Draws follow torchvision's ColorJitter,
    RandomResizedCrop, MixUp and CutMix (v2), per sample; partners are a permutation of the global
    batch per step. Raises UnsuitableError if both MixUp and CutMix are on.
    """
    a, shape = augmentation, (BLOCK_STEPS, batch_size)
    if a.mixup_alpha and a.cutmix_alpha:
        raise UnsuitableError("MixUp and CutMix are both on", "set one alpha to 0")

    def component(stream: rng.Stream, index: int) -> np.random.Generator:
        # Jumps of Philox lie 2^128 draws apart: one key, independent generators.
        bits: Any = rng.generator(role, seed, stream, BLOCK_STEPS * block).bit_generator
        return np.random.Generator(bits.jumped(index))

    drawn: dict[str, npt.NDArray[Any]] = {}
    if a.color_p:
        drawn |= _draw_color(component("augment", 0), shape, a)
    if a.grayscale_p:
        drawn["grayscale"] = component("augment", 1).random(shape) < a.grayscale_p
    if a.flip_p:
        drawn["flip"] = component("augment", 2).random(shape) < a.flip_p
    if a.crop_scale is not None:
        generator = component("augment", 3)
        drawn["crop_box"] = _draw_crop(generator, shape, image_size, a.crop_scale, a.crop_ratio)
    if alpha := a.mixup_alpha or a.cutmix_alpha:
        drawn["lam"] = component("mix", 0).beta(alpha, alpha, shape)
        positions = np.broadcast_to(np.arange(batch_size), shape)
        drawn["partner"] = component("mix", 1).permuted(positions, axis=1)
    if a.cutmix_alpha:
        drawn |= _draw_mix_box(component("mix", 2), drawn["lam"], image_size)
    return AugmentParameters(**{name: _tensor(array) for name, array in drawn.items()})


def _tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array)


def _draw_color(
    generator: np.random.Generator, shape: tuple[int, int], a: spec.Augmentation
) -> dict[str, npt.NDArray[Any]]:
    """Factors uniform in [max(0, 1 − strength), 1 + strength], with probability color_p."""
    strengths = np.array([a.brightness, a.contrast, a.saturation])
    applies = generator.random(shape) < a.color_p
    factors = generator.uniform(np.maximum(0, 1 - strengths), 1 + strengths, (*shape, 3))
    order = _ORDERS[generator.integers(len(_ORDERS), size=shape)]
    return {"color_factors": np.where(applies[..., None], factors, 1.0), "color_order": order}


def _draw_crop(
    generator: np.random.Generator,
    shape: tuple[int, int],
    image_size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> npt.NDArray[np.int64]:
    """torchvision's RandomResizedCrop.get_params: the first of ten boxes that fits, its area
    uniform in `scale`, its ratio log-uniform in `ratio`, its place uniform; else the centre."""
    attempts = (*shape, _CROP_ATTEMPTS)
    area = image_size**2 * generator.uniform(*scale, attempts)
    aspect = np.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1]), attempts))
    sides = np.rint(np.sqrt(np.stack([area / aspect, area * aspect]))).astype(np.int64)
    fits = ((sides > 0) & (sides <= image_size)).all(axis=0)
    first = fits.argmax(axis=-1)[None, ..., None]
    sides = np.take_along_axis(sides, first, axis=-1)[..., 0]
    places = (generator.random((2, *shape)) * (image_size - sides + 1)).astype(np.int64)

    none_fits = ~fits.any(axis=-1)
    central = np.array(_central_sides(image_size, ratio)).reshape(2, 1, 1)
    sides = np.where(none_fits, central, sides)
    places = np.where(none_fits, (image_size - central) // 2, places)
    return np.stack([*places, *sides], axis=-1)


def _central_sides(image_size: int, ratio: tuple[float, float]) -> tuple[int, int]:
    """Height and width of the largest box of an allowed ratio in a square image."""
    if min(ratio) > 1:
        return round(image_size / min(ratio)), image_size
    if max(ratio) < 1:
        return image_size, round(image_size * max(ratio))
    return image_size, image_size


def _draw_mix_box(
    generator: np.random.Generator, lam: npt.NDArray[np.float64], image_size: int
) -> dict[str, npt.NDArray[Any]]:
    """torchvision's v2.CutMix: sides √(1 − λ) of the image around a uniform centre, clipped; λ then
    becomes what is left of the image."""
    half = (0.5 * np.sqrt(1 - lam) * image_size).astype(np.int64)
    centre = generator.integers(image_size, size=(2, *lam.shape))
    low, high = np.maximum(centre - half, 0), np.minimum(centre + half, image_size)
    area = (high - low).prod(axis=0)
    return {"mix_box": np.stack([*low, *high], axis=-1), "lam": 1 - area / image_size**2}
