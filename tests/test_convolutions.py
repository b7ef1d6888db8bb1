"""Convolutions on CPUs: the same numbers, gradients that can be trusted, small ones as products."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from training_helpers import RUNTIME, image_data, losses, student_spec

from trainers.convolutions import CpuConv2d, fit_for_cpus
from trainers.distributed import World
from trainers.models import build_student, build_teacher
from trainers.spec import Backbone
from trainers.student import build_engine


def convolution(channels_in: int, channels: int, *sizes: int, **options: Any) -> nn.Sequential:
    """sizes: kernel, stride, padding."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(channels_in, channels, *sizes, **options))
    return made.to(memory_format=torch.channels_last)


def changed(model: nn.Module) -> list[str]:
    return [name for name, one in model.named_modules() if type(one).__name__ == "CpuConv2d"]


def compiled(model: nn.Module, called: list[str]) -> Callable[[Tensor], Tensor]:
    """The model as torch.compile sees it, without the minutes of generating code. called: gets the
    names of what it calls."""

    torch.compiler.reset()  # torch counts variants over all models of a process

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        called.extend(getattr(n.target, "__name__", str(n.target)) for n in graph.graph.nodes)
        return graph.forward

    return torch.compile(model, backend=backend, fullgraph=True, dynamic=False)


def gradients(model: Callable[[Tensor], Tensor], of: nn.Module, images: Tensor) -> list[Tensor]:
    images = images.clone().requires_grad_()
    model(images).square().sum().backward()
    found = [images.grad, *(parameter.grad for parameter in of.parameters())]
    return [one for one in found if one is not None]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("channels", "pixels", "batch"), [(4, 8, 16), (4, 32, 32), (12, 16, 32), (24, 64, 4), (4, 7, 8)]
)
def test_gradients_are_those_of_double_precision(
    channels: int, pixels: int, batch: int, threads: int
) -> None:
    """Without the change: 65% off at 4 channels of 32 pixels with two threads of an AVX2 machine,
    and a damaged heap with one."""
    made, exact = (convolution(channels, 2 * channels, 1, 2) for _ in range(2))
    fit_for_cpus(made)
    images = torch.randn(batch, channels, pixels, pixels).to(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = gradients(made, made, images)
        expected = gradients(exact.double(), exact, images.double())
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, check_dtype=False)


SIZES: list[tuple[Any, ...]] = [
    (3, 1, 1), (3, 2, 1), (3, 2, 0), (2, 2, 0), (1, 1, 0), (1, 2, 0), (1, 2, 1), (1, (2, 1), 0),
    (1, 2, "valid"), ((1, 3), 1, (0, 1)),
]  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_output_is_the_same(sizes: tuple[Any, ...], bias: bool) -> None:
    made, plain = (convolution(6, 10, *sizes, bias=bias) for _ in range(2))
    fit_for_cpus(made)
    assert changed(made) == ["0"]
    assert list(made.state_dict()) == list(plain.state_dict())
    images = torch.randn(3, 6, 9, 8)
    torch.testing.assert_close(made(images), plain(images))
    torch.testing.assert_close(made(images[0]), plain(images[0]))


def test_only_what_can_meet_the_fault_takes_the_pixels_first() -> None:
    def takes(*arguments: Any) -> bool:
        conv = nn.Conv2d(*arguments)
        fit_for_cpus(conv)
        assert isinstance(conv, CpuConv2d)
        return conv._is_exposed()

    assert takes(4, 8, 1, 2)
    assert takes(24, 8, 1, (1, 2), "valid")
    for sound in ((16, 32, 1, 2), (4, 8, 1), (4, 8, 1, 2, 1), (4, 8, 3, 2, 1)):
        assert not takes(*sound)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_compiled_small_ones_are_one_product_with_the_same_gradients(
    sizes: tuple[Any, ...], bias: bool
) -> None:
    made, exact = (convolution(6, 10, *sizes, bias=bias) for _ in range(2))
    fit_for_cpus(made)
    images = torch.randn(3, 6, 9, 8).to(memory_format=torch.channels_last)
    called: list[str] = []
    found = gradients(compiled(made, called), made, images)
    assert called.count("linear") == 1
    assert not [name for name in called if "conv" in name]
    expected = gradients(exact.double(), exact, images.double())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, check_dtype=False)
    output = compiled(made, [])(images)
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, exact.float()(images))


@pytest.mark.slow
def test_what_torch_makes_of_them_trains_as_uncompiled_code_does() -> None:
    """With torch's own compiler, half a minute. Losses of later steps part as two CPUs' do."""
    spec, data = student_spec("A"), image_data()
    torch.compiler.reset()
    expected, found = (
        losses(build_engine(spec, data, replace(RUNTIME, compile=compile), World()), 5)
        for compile in (False, True)
    )
    assert found == pytest.approx(expected, rel=1e-5)
    assert found != expected  # last bits


def test_images_smaller_than_the_kernel_are_torchs_to_refuse() -> None:
    made = convolution(6, 10, 3)
    fit_for_cpus(made)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        made(torch.randn(3, 6, 2, 2))


def test_large_ones_stay_with_onednn_and_none_is_a_product_that_is_not_compiled() -> None:
    made = convolution(4, 4, 3, 1, 1)
    fit_for_cpus(made)
    for batch, is_product in ((16, True), (64, False)):
        called: list[str] = []
        compiled(made, called)(torch.randn(batch, 4, 8, 8))
        assert ("conv2d" not in called) == is_product
    with torch.profiler.profile() as profile:
        made(torch.randn(16, 4, 8, 8))
    assert "aten::conv2d" in {event.key for event in profile.key_averages()}


def test_other_kinds_of_convolution_are_left_alone() -> None:
    for other in (
        convolution(4, 8, 3, groups=2),
        convolution(4, 8, 3, dilation=2),
        convolution(4, 8, 3, padding="same"),
        convolution(4, 8, 3, padding=1, padding_mode="circular"),
        convolution(4, 8, 7, 2, 3),
    ):
        fit_for_cpus(other)
        assert not changed(other)


def test_every_backbone_is_fitted_and_computes_what_it_did() -> None:
    narrow = Backbone(name="resnet18", width=4)
    for build in (build_student, build_teacher):
        model = build(narrow, image_size=8, num_classes=10, seed=0)
        assert len(changed(model)) == 20
        assert "backbone.layer2.0.downsample.0" in changed(model)
    regnet = build_student(
        Backbone(name="regnet_y_400mf", stem="standard"), image_size=32, num_classes=10, seed=0
    ).backbone
    theirs = torchvision.models.regnet_y_400mf(weights=None)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(regnet.state_dict())
    assert changed(regnet)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(regnet.eval()(images), theirs.eval()(images))


def test_products_under_autocast_are_those_of_bfloat16() -> None:
    made, plain = convolution(6, 10, 3, 1, 1), convolution(6, 10, 3, 1, 1)
    fit_for_cpus(made)
    images = torch.randn(3, 6, 9, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, expected = compiled(made, [])(images), plain(images)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
