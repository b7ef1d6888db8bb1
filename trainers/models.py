"""Backbone φ, projection head g, linear classifier h (paper, section 2.2 and Appendix B)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trainers import spec
from trainers.convolutions import fit_for_cpus
from trainers.errors import UnsuitableError
from trainers.rng import Role, seeded_torch

if TYPE_CHECKING:
    from torchvision.models.resnet import BasicBlock, Bottleneck

    _Block = type[BasicBlock] | type[Bottleneck]

__all__ = [
    "ResNet18",
    "ResNet50",
    "Student",
    "Teacher",
    "build_probe",
    "build_student",
    "build_teacher",
    "parameter_count",
]


class _ResNet(nn.Module):
    """A residual network of four stages as the paper modifies ResNet-18: first convolution 3×3,
    stride 1, no max-pool (stem `small`), no final linear layer. Parts are named as torchvision
    names them, so that its weights fit. (N, 3, H, W) images to (N, features)."""

    def __init__(self, block: _Block, depths: Sequence[int], width: int, stem: str) -> None:
        super().__init__()
        if stem == "small":
            self.conv1 = nn.Conv2d(3, width, 3, stride=1, padding=1, bias=False)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        out = block.expansion
        self.layer1 = _stage(block, depths[0], width, width, stride=1)
        self.layer2 = _stage(block, depths[1], out * width, 2 * width, stride=2)
        self.layer3 = _stage(block, depths[2], 2 * out * width, 4 * width, stride=2)
        self.layer4 = _stage(block, depths[3], 4 * out * width, 8 * width, stride=2)
        self.features = 8 * out * width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return torch.flatten(self.avgpool(x), 1)


def _stage(
    block: _Block, depth: int, channels_in: int, planes: int, *, stride: int
) -> nn.Sequential:
    """`depth` blocks; the first one changes resolution and channels."""
    channels = planes * block.expansion
    shortcut = None
    if stride != 1 or channels_in != channels:
        shortcut = nn.Sequential(
            nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False),
            nn.BatchNorm2d(channels),
        )
    first = block(channels_in, planes, stride, shortcut)
    return nn.Sequential(first, *(block(channels, planes) for _ in range(depth - 1)))


class ResNet18(_ResNet):
    """The paper's ResNet-18 at width 64; 8·width features."""

    def __init__(self, width: int, stem: str) -> None:
        from torchvision.models.resnet import BasicBlock

        super().__init__(BasicBlock, (2, 2, 2, 2), width, stem)


class ResNet50(_ResNet):
    """torchvision's ResNet-50 with the channels of every stage scaled: the same parameters, by name
    and number, at width 64; 32·width features."""

    def __init__(self, width: int, stem: str) -> None:
        from torchvision.models.resnet import Bottleneck

        super().__init__(Bottleneck, (3, 4, 6, 3), width, stem)


def _tiny_vit(image_size: int) -> tuple[nn.Module, int]:
    """A ViT that a CPU can train: 8 × 8 patches, 4 layers of 4 heads, 64 features."""
    from torchvision.models.vision_transformer import VisionTransformer

    if image_size % 8:
        raise UnsuitableError(
            f"backbone vit_tiny cuts 8 × 8 patches, which do not fill {image_size} pixels",
            "choose an image_size that is a multiple of 8, or another backbone",
        )
    model = VisionTransformer(
        image_size=image_size, patch_size=image_size // 8, num_layers=4, num_heads=4, hidden_dim=64,
        mlp_dim=128,
    )  # fmt: skip
    model.heads = nn.Identity()
    return model, 64


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
    """Lets small images keep their resolution: the first convolution gets stride 1 (3×3 in ResNets,
    whose max-pool goes), and nothing else changes: of 32 pixels MobileNetV2 and EfficientNet keep
    2×2 at their end, of 64 pixels 4×4. (Some ports to CIFAR-10 take away one more stride, to keep
    4×4 of 32 pixels; the paper tells of none, and a changed stem would need a name of its own.)"""
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
    ours: _ResNet | None = None
    if backbone.name == "resnet18":
        ours = ResNet18(backbone.width or 64, backbone.stem)
    elif backbone.name == "resnet50" and backbone.width is not None:
        ours = ResNet50(backbone.width, backbone.stem)
    elif backbone.name == "vit_tiny":
        return _tiny_vit(image_size)
    if ours is not None:
        return ours, ours.features
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
    `joint`. projection: None where g and h are one classifier, as in conventional distillation.
    """

    def __init__(
        self,
        backbone: nn.Module,
        projection: nn.Linear | None,
        classifier: nn.Linear,
        *,
        joint: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = projection
        self.classifier = classifier
        self.joint = joint

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        if self.projection is None:
            logits = self.classifier(features)
            return logits, logits
        return (
            self.projection(features),
            self.classifier(features if self.joint else features.detach()),
        )


def _seeded_backbone(
    backbone: spec.Backbone, image_size: int, role: Role, seed: int
) -> tuple[nn.Module, int]:
    with seeded_torch(role, seed, "init", 0):
        phi, features = _backbone(backbone, image_size)
    fit_for_cpus(phi)
    return phi, features


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
    one_classifier: bool = False,
) -> Student:
    """A student at its random initialisation, on the CPU. Each part draws from a counter of its
    own, so the same seed gives every strategy and every loss the same φ, g and h. one_classifier:
    h alone, whose loss reaches φ."""
    phi, features = _seeded_backbone(backbone, image_size, "student", seed)
    projection: nn.Linear | None = None
    if not one_classifier:
        with seeded_torch("student", seed, "init", 1):
            projection = nn.Linear(features, num_classes)
    with seeded_torch("student", seed, "init", 2):
        classifier = nn.Linear(features, num_classes)
    return Student(phi, projection, classifier, joint=joint)


def build_probe(
    backbone: spec.Backbone, *, image_size: int, num_classes: int, seed: int
) -> tuple[nn.Module, nn.Linear]:
    """A student's backbone, whose weights are still to be loaded, and a linear classifier at its
    random initialisation, on the CPU. The classifier draws as no student's does."""
    phi, features = _seeded_backbone(backbone, image_size, "probe", seed)
    with seeded_torch("probe", seed, "init", 1):
        return phi, nn.Linear(features, num_classes)


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
