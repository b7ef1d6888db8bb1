"""Images as torchvision's users load them: one at a time, transformed in DataLoader workers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, RandomSampler
from torchvision import transforms

from baselines.setting import Setting
from trainers.data.images import ImageData
from trainers.spec import AUGMENTATIONS, Augmentation

__all__ = ["Pictures", "loader_options", "pictures", "sampler", "settle_batches"]

_PREFETCH = 2
"""Batches that a worker of a DataLoader makes ahead; torch's default."""


class Pictures(Dataset[tuple[Tensor, int]]):
    """As torchvision's own CIFAR10: uint8 arrays (H, W, 3), a PIL image an item."""

    def __init__(
        self, images_NHWC: npt.NDArray[np.uint8], labels: list[int], transform: Any
    ) -> None:
        self._images_NHWC = images_NHWC
        self._labels = labels
        self._transform = transform

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images_NHWC[index])), self._labels[index]

    def __len__(self) -> int:
        return len(self._labels)


def pictures(setting: Setting) -> Pictures:
    """The training images of `setting`. Raises ValueError for augmentations that mix images: that
    is no transform of one image, and everybody does it elsewhere."""
    return Pictures(_images(setting.data), setting.data.train_labels.tolist(), _transform(setting))


def _images(data: ImageData) -> npt.NDArray[np.uint8]:
    assert isinstance(data.train_images, Tensor)
    return np.ascontiguousarray(data.train_images.permute(0, 2, 3, 1).numpy())


def _transform(setting: Setting) -> transforms.Compose:
    """torchvision's transforms on PIL images: of the four ways it offers (v1 or v2, on PIL images
    or on tensors) the fastest at 32 pixels; v2 on PIL images took 14% longer."""
    wanted, info = AUGMENTATIONS[setting.augmentation], setting.data.info
    steps = [*_steps(wanted, info.image_size)]
    return transforms.Compose(
        [*steps, transforms.ToTensor(), transforms.Normalize(info.mean, info.std)]
    )


def _steps(wanted: Augmentation, size: int) -> list[Any]:
    if wanted.mixup_alpha or wanted.cutmix_alpha:
        raise ValueError("the baselines mix no images")
    steps: list[Any] = []
    if wanted.color_p:
        jitter = transforms.ColorJitter(wanted.brightness, wanted.contrast, wanted.saturation)
        steps.append(transforms.RandomApply([jitter], p=wanted.color_p))
    if wanted.grayscale_p:
        steps.append(transforms.RandomGrayscale(wanted.grayscale_p))
    if wanted.flip_p:
        steps.append(transforms.RandomHorizontalFlip(wanted.flip_p))
    if wanted.crop_scale is not None:
        steps.append(
            transforms.RandomResizedCrop(size, scale=wanted.crop_scale, ratio=wanted.crop_ratio)
        )
    return steps


def sampler(data: Pictures, setting: Setting, steps: int) -> RandomSampler:
    """Fresh permutations for as many batches as a turn takes, so that no epoch ends in it and its
    workers live through it, as persistent ones do."""
    return RandomSampler(data, num_samples=steps * setting.batch)


def loader_options(setting: Setting, workers: int) -> dict[str, Any]:
    return {
        "batch_size": setting.batch,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": setting.device.type == "cuda",
        "drop_last": True,
    }


def settle_batches(workers: int) -> int:
    """Steps before those that count: a batch more than workers are asked for at once, so that
    those which count were asked for, and made, while steps ran."""
    return _PREFETCH * workers + 1
