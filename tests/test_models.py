"""Backbones, heads and their initialisation."""

import re

import pytest
import torch
import torchvision
from torch import nn
from training_helpers import RUNTIME, image_data, losses, student_spec

from trainers.distributed import World
from trainers.engine import _draws
from trainers.errors import TrainerError
from trainers.models import (
    ResNet18,
    ResNet50,
    _backbone,
    build_probe,
    build_student,
    build_teacher,
    parameter_count,
)
from trainers.spec import Backbone
from trainers.student import build_engine

FAMILIES = {  # a name of every family of torchvision, and an image size it takes
    "alexnet": 224, "convnext_tiny": 64, "densenet121": 64, "efficientnet_b0": 64,
    "efficientnet_v2_s": 64, "googlenet": 64, "inception_v3": 128, "maxvit_t": 224,
    "mnasnet0_5": 64, "mobilenet_v2": 32, "mobilenet_v3_small": 64, "regnet_y_400mf": 64,
    "resnet50": 32, "resnext50_32x4d": 64, "shufflenet_v2_x0_5": 64, "squeezenet1_1": 64,
    "swin_t": 64, "swin_v2_t": 64, "vgg11_bn": 64, "vit_b_16": 32, "wide_resnet50_2": 64,
}  # fmt: skip


def the_papers_resnet():
    """Appendix B: torchvision's ResNet-18, first convolution 3×3 stride 1, no max-pool."""
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def test_our_resnet18_is_torchvisions_modified_as_appendix_b_says():
    theirs = the_papers_resnet()
    ours = build_teacher(Backbone(name="resnet18", width=64), image_size=32, num_classes=10, seed=0)
    count = sum(parameter.numel() for parameter in ours.parameters())
    assert count == sum(parameter.numel() for parameter in theirs.parameters()) == 11_173_962

    weights = theirs.state_dict()
    ours.classifier.load_state_dict(
        {name: weights.pop(f"fc.{name}") for name in ("weight", "bias")}
    )
    ours.backbone.load_state_dict(weights)
    images = torch.randn(3, 3, 16, 16)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(images), theirs.train(mode)(images))


def test_the_standard_stem_is_torchvisions_own():
    theirs = torchvision.models.resnet18()
    theirs.fc = nn.Identity()
    ours = ResNet18(64, "standard")
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_convolutions_start_as_in_torchvision():
    ours, theirs = ResNet18(64, "small"), the_papers_resnet()
    for name, value in ours.state_dict().items():
        expected = theirs.state_dict()[name]
        assert value.shape == expected.shape
        if value.is_floating_point() and value.numel() > 1000:
            assert value.std().item() == pytest.approx(expected.std().item(), rel=0.1), name


@pytest.mark.parametrize("stem", ["small", "standard"])
@pytest.mark.parametrize("name", FAMILIES)
def test_torchvision_backbones_lose_their_classifier(name, stem):
    size = FAMILIES[name]
    real = name.startswith("regnet")  # computes with tensors when it is built
    with torch.device("cpu" if real else "meta"):
        backbone, features = _backbone(Backbone(name=name, stem=stem), size)
        output = backbone.train()(torch.empty(4, 3, size, size))
    assert output.shape == (4, features)
    assert features != 1000
    final = [module for module in backbone.modules() if getattr(module, "out_features", 0) == 1000]
    assert not final


def test_backbones_the_planner_knows_are_of_these_families():
    from orchestrator.backbones import TORCHVISION_BACKBONES

    def families(names):
        return {re.match("[a-z]+", name)[0] for name in names}

    assert families(TORCHVISION_BACKBONES) == families(FAMILIES)


def test_a_small_stem_keeps_the_resolution_of_resnet50():
    with torch.device("meta"):
        small, _ = _backbone(Backbone(name="resnet50", stem="small"), 32)
        standard, _ = _backbone(Backbone(name="resnet50", stem="standard"), 32)
    assert small.conv1.kernel_size == (3, 3)
    assert isinstance(small.maxpool, nn.Identity)
    assert standard.conv1.stride == (2, 2)


@pytest.mark.parametrize("stem", ["small", "standard"])
def test_our_resnet50_at_width_64_is_torchvisions(stem):
    ours = ResNet50(64, stem)
    theirs, features = _backbone(Backbone(name="resnet50", stem=stem), 64)
    assert ours.features == features == 2048
    ours.load_state_dict(theirs.state_dict())  # every name and shape
    assert list(ours.state_dict()) == list(theirs.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_a_narrow_resnet50_scales_every_stage():
    backbone, features = _backbone(Backbone(name="resnet50", width=8, stem="small"), 32)
    assert features == 8 * 32
    assert backbone(torch.randn(2, 3, 32, 32)).shape == (2, 256)
    wide = ResNet50(64, "small").state_dict()
    for name, value in backbone.state_dict().items():
        for own, theirs in zip(value.shape, wide[name].shape, strict=True):
            assert theirs in (own, 8 * own), name


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0"])
@pytest.mark.parametrize(("size", "left"), [(32, 2), (64, 4)])
def test_what_a_small_stem_leaves_of_small_images(name, size, left):
    """Only the first convolution changes: five halvings become four."""
    with torch.device("meta"):
        backbone, features = _backbone(Backbone(name=name, stem="small"), size)
        final = backbone.features(torch.empty(1, 3, size, size))
    assert final.shape == (1, features, left, left)
    assert backbone.features[0][0].kernel_size == (3, 3)


@pytest.mark.parametrize(("size", "patch"), [(8, 1), (32, 4), (64, 8), (224, 28)])
def test_the_tiny_vit_cuts_eight_patches_a_side(size, patch):
    backbone, features = _backbone(Backbone(name="vit_tiny", stem="standard"), size)
    assert backbone.patch_size == patch
    assert backbone.encoder.pos_embedding.shape == (1, 1 + 64, 64)
    assert len(backbone.encoder.layers) == 4
    assert backbone(torch.randn(2, 3, size, size)).shape == (2, features) == (2, 64)


def test_the_tiny_vit_refuses_images_that_eight_patches_do_not_fill():
    with pytest.raises(TrainerError, match=r"vit_tiny.*30"):
        _backbone(Backbone(name="vit_tiny", stem="standard"), 30)


@pytest.mark.parametrize(("size", "tokens"), [(32, 4), (64, 16), (224, 196)])
def test_tokens_of_the_large_vit(size, tokens):
    with torch.device("meta"):
        backbone, _ = _backbone(Backbone(name="vit_b_16", stem="standard"), size)
    assert backbone.encoder.pos_embedding.shape[1] == tokens + 1


def test_a_probe_takes_a_students_backbone_as_it_is():
    backbone = Backbone(name="resnet50", width=2)
    student = build_student(backbone, image_size=8, num_classes=5, seed=0)
    phi, classifier = build_probe(backbone, image_size=8, num_classes=5, seed=0)
    phi.load_state_dict(student.backbone.state_dict())
    assert classifier.weight.shape == student.classifier.weight.shape == (5, 64)


def test_vit_takes_the_image_size_and_refuses_half_patches():
    count = parameter_count(Backbone(name="vit_b_16"), image_size=224, num_classes=1000)
    body = torchvision.models.get_model_weights("vit_b_16").IMAGENET1K_V1.meta["num_params"]
    assert count == body + 769 * 1000  # a second head
    with pytest.raises(TrainerError, match=r"vit_b_16.*8"):
        parameter_count(Backbone(name="vit_b_16"), image_size=8, num_classes=10)


@pytest.mark.parametrize(
    "backbone",
    [
        Backbone(name="resnet18", width=4),
        Backbone(name="resnet18", width=4, stem="standard"),
        Backbone(name="resnet50", width=4),
        Backbone(name="vit_tiny", stem="standard"),
        Backbone(name="mobilenet_v2"),
        Backbone(name="regnet_x_400mf"),
        Backbone(name="swin_t"),
    ],
)
def test_parameter_count_is_the_real_count(backbone):
    student = build_student(backbone, image_size=8, num_classes=7, seed=0)
    expected = sum(parameter.numel() for parameter in student.parameters())
    assert parameter_count(backbone, image_size=8, num_classes=7) == expected


def test_initial_weights_depend_on_the_seed_alone():
    def weights(seed, **changes):
        backbone = Backbone(name="resnet18", width=2)
        student = build_student(backbone, image_size=8, num_classes=5, seed=seed, **changes)
        return torch.cat([value.double().flatten() for value in student.state_dict().values()])

    torch.manual_seed(1)
    first, state = weights(3), torch.random.get_rng_state()
    torch.manual_seed(2)
    torch.rand(5)
    assert torch.equal(first, weights(3, joint=True))
    assert not torch.equal(first, weights(4))
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)  # building drew nothing from it


def test_dropout_is_drawn_from_the_seed_and_the_step():
    data = image_data()
    spec = student_spec("A", backbone=Backbone(name="mobilenet_v2"))

    def run(seed_before):
        torch.manual_seed(seed_before)
        torch.set_num_threads(1)
        engine = build_engine(spec, data, RUNTIME, World())
        assert any(_draws(module) for module in engine.model.modules())
        return losses(engine, 2)

    assert run(1) == run(2)


@pytest.mark.parametrize(
    ("module", "draws"),
    [
        (nn.Dropout(0.2), True),
        (nn.Dropout2d(0.1), True),
        (nn.Dropout(0.0), False),
        (torchvision.ops.StochasticDepth(0.2, "row"), True),
        (nn.BatchNorm2d(3), False),
    ],
)
def test_what_counts_as_drawing(module, draws):
    assert _draws(module) is draws
