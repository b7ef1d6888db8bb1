"""Strided 1×1 convolutions on CPUs: the same numbers, and gradients that can be trusted."""

import pytest
import torch
import torchvision
from torch import nn

from trainers.models import build_student, build_teacher
from trainers.pointwise import avoid_faulty_gradients
from trainers.spec import Backbone


def strided(channels_in: int, channels: int, **options: object) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(channels_in, channels, 1, 2, **options))  # type: ignore[arg-type]
    return made.to(memory_format=torch.channels_last)


def changed(model: nn.Module) -> list[str]:
    return [name for name, one in model.named_modules() if type(one).__name__ == "_SubsampledFirst"]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("channels", "pixels", "batch"), [(4, 8, 16), (4, 32, 32), (12, 16, 32), (24, 64, 4), (4, 7, 8)]
)
def test_gradients_are_those_of_double_precision(
    channels: int, pixels: int, batch: int, threads: int
) -> None:
    """Without the change: 65% off at 4 channels of 32 pixels with two threads of an AVX2 machine,
    and a damaged heap with one."""
    conv, exact = strided(channels, 2 * channels), strided(channels, 2 * channels).double()
    avoid_faulty_gradients(conv)
    assert changed(conv) == ["0"]
    images = torch.randn(batch, channels, pixels, pixels).to(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for model, given in ((conv, images), (exact, images.double())):
            given.requires_grad_()
            model(given).square().sum().backward()
    finally:
        torch.set_num_threads(before)
    found, expected = (model.get_parameter("0.weight").grad for model in (conv, exact))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, check_dtype=False)


@pytest.mark.parametrize("options", [{"bias": True}, {"bias": False}])
def test_the_output_is_the_same(options: dict[str, bool]) -> None:
    conv, plain = strided(6, 10, **options), strided(6, 10, **options)
    avoid_faulty_gradients(conv)
    assert list(conv.state_dict()) == list(plain.state_dict())
    images = torch.randn(3, 6, 9, 8)
    torch.testing.assert_close(conv(images), plain(images))


def test_only_what_can_meet_the_fault_is_changed() -> None:
    for sound in (
        strided(16, 32),  # full blocks
        strided(4, 8, groups=2),
        strided(4, 8, padding=1),
        nn.Sequential(nn.Conv2d(4, 8, 1)),
        nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1)),
    ):
        avoid_faulty_gradients(sound)
        assert not changed(sound)


def test_narrow_backbones_are_changed_and_the_papers_are_not() -> None:
    narrow = Backbone(name="resnet18", width=4)
    for build in (build_student, build_teacher):
        model = build(narrow, image_size=8, num_classes=10, seed=0)
        assert changed(model) == [f"backbone.layer{n}.0.downsample.0" for n in (2, 3)]
    papers = build_student(
        Backbone(name="resnet18", width=64), image_size=32, num_classes=10, seed=0
    )
    assert not changed(papers)
    regnet = build_student(
        Backbone(name="regnet_y_400mf", stem="standard"), image_size=32, num_classes=10, seed=0
    ).backbone
    theirs = torchvision.models.regnet_y_400mf(weights=None)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(regnet.state_dict())
    assert changed(regnet)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(regnet.eval()(images), theirs.eval()(images))
