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

__all__ = ["BLOCK_STEPS", "AugmentParameters", "CropDraws", "draw", "draw_crops"]

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

    def rows(self, rows: slice | torch.Tensor) -> AugmentParameters:
        """The parameters of some rows of a step's, (B,): (N,)."""
        return self._map(lambda tensor: tensor[rows])

    def present(self) -> dict[str, torch.Tensor]:
        """What is not None, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> AugmentParameters:
        return replace(self, **{k: function(v) for k, v in self.present().items()})


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
        return _component(role, seed, block, stream, index)

    drawn: dict[str, npt.NDArray[Any]] = {}
    if a.color_p:
        drawn |= _draw_color(component("augment", 0), shape, a)
    if a.grayscale_p:
        drawn["grayscale"] = component("augment", 1).random(shape) < a.grayscale_p
    if a.flip_p:
        drawn["flip"] = component("augment", 2).random(shape) < a.flip_p
    if a.crop_scale is not None:
        crops = _draw_crops(component("augment", _CROP), shape, a.crop_scale, a.crop_ratio)
        drawn["crop_box"] = crops.boxes(np.array(image_size), np.array(image_size))
    if alpha := a.mixup_alpha or a.cutmix_alpha:
        drawn["lam"] = component("mix", 0).beta(alpha, alpha, shape)
        positions = np.broadcast_to(np.arange(batch_size), shape)
        drawn["partner"] = component("mix", 1).permuted(positions, axis=1)
    if a.cutmix_alpha:
        drawn |= _draw_mix_box(component("mix", 2), drawn["lam"], image_size)
    return AugmentParameters(**{name: _tensor(array) for name, array in drawn.items()})


_CROP = 3
"""The component of stream "augment" that crops are drawn from."""


def _component(
    role: rng.Role, seed: int, block: int, stream: rng.Stream, index: int
) -> np.random.Generator:
    # Jumps of Philox lie 2^128 draws apart: one key, independent generators.
    bits: Any = rng.generator(role, seed, stream, BLOCK_STEPS * block).bit_generator
    return np.random.Generator(bits.jumped(index))


def draw_crops(
    augmentation: spec.Augmentation, *, role: rng.Role, seed: int, block: int, batch_size: int
) -> CropDraws | None:
    """What `draw` draws for the crops of a block, before it is known how large the pictures are;
    None without a crop."""
    if augmentation.crop_scale is None:
        return None
    generator = _component(role, seed, block, "augment", _CROP)
    shape = (BLOCK_STEPS, batch_size)
    return _draw_crops(generator, shape, augmentation.crop_scale, augmentation.crop_ratio)


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


def _draw_crops(
    generator: np.random.Generator,
    shape: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> CropDraws:
    """Areas uniform in `scale`, ratios log-uniform in `ratio`, places uniform."""
    attempts = (*shape, _CROP_ATTEMPTS)
    area = generator.uniform(*scale, attempts)
    aspect = np.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1]), attempts))
    return CropDraws(area, aspect, generator.random((2, *shape)), ratio)


@dataclass(frozen=True)
class CropDraws:
    """Random-resized crops as torchvision's get_params draws them, for pictures of any size.

    area: (…, 10), shares of the picture that ten attempts ask for. aspect: (…, 10), their width by
    height. place: (2, …), uniform in [0, 1), down and across. ratio: the range of aspects.
    """

    area: npt.NDArray[np.float64]
    aspect: npt.NDArray[np.float64]
    place: npt.NDArray[np.float64]
    ratio: tuple[float, float]

    def at(self, step_in_block: int, rows: npt.NDArray[np.int64]) -> CropDraws:
        """The draws of some rows of one step of a block: (N, …)."""
        return replace(
            self,
            area=self.area[step_in_block, rows],
            aspect=self.aspect[step_in_block, rows],
            place=self.place[:, step_in_block, rows],
        )

    def boxes(
        self, height: npt.NDArray[np.int64], width: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Top, left, height, width, int64 (…, 4), in pictures of these sizes, (…) or one for all:
        the first attempt that fits, else the largest centre box of an allowed ratio."""
        limits = np.stack(np.broadcast_arrays(height, width, self.place[0])[:2])
        area = (limits[0] * limits[1])[..., None] * self.area
        sides = np.rint(np.sqrt(np.stack([area / self.aspect, area * self.aspect])))
        sides = sides.astype(np.int64)
        fits = ((sides > 0) & (sides <= limits[..., None])).all(axis=0)
        first = fits.argmax(axis=-1)[None, ..., None]
        sides = np.take_along_axis(sides, first, axis=-1)[..., 0]
        places = (self.place * (limits - sides + 1)).astype(np.int64)

        none_fits = ~fits.any(axis=-1)
        central = _central_sides(limits, self.ratio)
        sides = np.where(none_fits, central, sides)
        places = np.where(none_fits, (limits - central) // 2, places)
        return np.stack([*places, *sides], axis=-1)


def _central_sides(
    limits: npt.NDArray[np.int64], ratio: tuple[float, float]
) -> npt.NDArray[np.int64]:
    """Heights and widths, (2, …), of the largest boxes of an allowed ratio in pictures of
    `limits`."""
    height, width = limits
    low = np.where(width < min(ratio) * height, np.rint(width / min(ratio)), height)
    high = np.where(width > max(ratio) * height, np.rint(height * max(ratio)), width)
    return np.stack([low, high]).astype(np.int64)


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
