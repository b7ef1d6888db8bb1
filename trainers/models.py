"""Backbone φ, projection head g, linear classifier h (paper, section 2.2 and Appendix B)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trainers import spec
from trainers.errors import UnsuitableError
from trainers.rng import Role, seeded_torch

__all__ = ["ResNet18", "Student", "Teacher", "build_student", "build_teacher", "parameter_count"]


class ResNet18(nn.Module):
    """ResNet-18 as the paper modifies it: first convolution 3×3, stride 1, no max-pool, no final
    linear layer. (N, 3, H, W) images to (N, 8·width) features; width 64 is the paper's."""

    def __init__(self, width: int, stem: str) -> None:
        super().__init__()
        if stem == "small":
            self.conv1 = nn.Conv2d(3, width, 3, stride=1, padding=1, bias=False)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return torch.flatten(self.avgpool(x), 1)


def _stage(channels_in: int, channels: int, *, stride: int) -> nn.Sequential:
    """Two basic blocks, named as torchvision names them so that its weights fit."""
    from torchvision.models.resnet import BasicBlock

    shortcut = None
    if stride != 1 or channels_in != channels:
        shortcut = nn.Sequential(
            nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False),
            nn.BatchNorm2d(channels),
        )
    return nn.Sequential(
        BasicBlock(channels_in, channels, stride, shortcut), BasicBlock(channels, channels)
    )


def _torchvision_backbone(name: str, stem: str, image_size: int) -> tuple[nn.Module, int]:
    """A torchvision classification model without its last linear layer, and its feature width."""
    import torchvision

    options = _torchvision_options(name, image_size)
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    except (AssertionError, ValueError) as error:
        raise UnsuitableError(
            f"backbone {name} does not take images of {image_size} pixels: {error}",
            "choose another backbone, or image_size",
        ) from error
    if stem == "small":
        _shrink_stem(model, name)
    if name.startswith("squeezenet"):  # whose classifier is a 1×1 convolution, then ReLU and mean
        classifier = "classifier.1"
    else:
        classifier = [key for key, part in model.named_modules() if isinstance(part, nn.Linear)][-1]
    parent, _, child = classifier.rpartition(".")
    last: Any = model.get_submodule(classifier)
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model, last.in_features if isinstance(last, nn.Linear) else last.in_channels


def _torchvision_options(name: str, image_size: int) -> dict[str, Any]:
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit"):
        return {"input_size": (image_size, image_size)}
    if name in ("googlenet", "inception_v3"):  # auxiliary heads would change what forward returns
        return {"aux_logits": False, "init_weights": True}
    return {}


def _shrink_stem(model: nn.Module, name: str) -> None:
    """Lets small images keep their resolution: the first convolution gets stride 1 (3×3 in
    ResNets, whose max-pool goes)."""
    if name.startswith(("vit_", "maxvit")):
        return  # their patches and windows are made for the stem they have
    conv1 = getattr(model, "conv1", None)
    if hasattr(model, "maxpool") and isinstance(conv1, nn.Conv2d):
        model.conv1 = nn.Conv2d(3, conv1.out_channels, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
        return
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.stride = (1, 1)


def _backbone(backbone: spec.Backbone, image_size: int) -> tuple[nn.Module, int]:
    if backbone.name == "resnet18":
        width = backbone.width or 64
        return ResNet18(width, backbone.stem), 8 * width
    return _torchvision_backbone(backbone.name, backbone.stem, image_size)


class Teacher(nn.Module):
    """φ and one linear classifier; (N, 3, H, W) to logits (N, C)."""

    def __init__(self, backbone: nn.Module, features: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.backbone(images))
        return logits


class Student(nn.Module):
    """φ with g and h; (N, 3, H, W) to the logits of g and of h, each (N, C).

    h sees detached features, so its loss sends no gradient into φ (equations 1 to 3), unless
    `joint`.
    """

    def __init__(
        self, backbone: nn.Module, projection: nn.Linear, classifier: nn.Linear, *, joint: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = projection
        self.classifier = classifier
        self.joint = joint

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        return (
            self.projection(features),
            self.classifier(features if self.joint else features.detach()),
        )


def _seeded_backbone(
    backbone: spec.Backbone, image_size: int, role: Role, seed: int
) -> tuple[nn.Module, int]:
    with seeded_torch(role, seed, "init", 0):
        return _backbone(backbone, image_size)


def build_teacher(
    backbone: spec.Backbone, *, image_size: int, num_classes: int, seed: int
) -> Teacher:
    """A teacher at its random initialisation, on the CPU."""
    phi, features = _seeded_backbone(backbone, image_size, "teacher", seed)
    with seeded_torch("teacher", seed, "init", 1):
        return Teacher(phi, features, num_classes)


def build_student(
    backbone: spec.Backbone,
    *,
    image_size: int,
    num_classes: int,
    seed: int,
    joint: bool = False,
) -> Student:
    """A student at its random initialisation, on the CPU. Each part draws from a counter of its
    own, so the same seed gives every strategy the same φ, g and h."""
    phi, features = _seeded_backbone(backbone, image_size, "student", seed)
    with seeded_torch("student", seed, "init", 1):
        projection = nn.Linear(features, num_classes)
    with seeded_torch("student", seed, "init", 2):
        classifier = nn.Linear(features, num_classes)
    return Student(phi, projection, classifier, joint=joint)


class _Unallocated(TorchFunctionMode):
    """Puts the parameters that modules make on the meta device, and nothing else there: RegNet's
    constructor computes with tensors, which `torch.device("meta")` would break."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        where = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **where})


def parameter_count(backbone: spec.Backbone, *, image_size: int, num_classes: int) -> int:
    """Parameters of a student; allocates none of them."""
    with _Unallocated():
        phi, features = _backbone(backbone, image_size)
    heads = 2 * (features + 1) * num_classes
    return sum(parameter.numel() for parameter in phi.parameters()) + heads
