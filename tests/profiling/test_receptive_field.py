"""The arithmetic against the gradient: the input pixels on which a value in the middle does depend."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchvision import models

from deepcv.profiling.observe import observe
from deepcv.profiling.receptive_field import Fields

SIDE = 96


class Branches(nn.Module):
    """Two ways of different size and offset that meet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, stride=2)
        self.left = nn.Conv2d(2, 2, (5, 1), padding=(2, 0), dilation=1)
        self.right = nn.Conv2d(2, 2, 3, padding=2, dilation=2, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.stem(x), (1, 0, 2, 1))
        return torch.cat([F.avg_pool2d(self.left(x) + self.right(x), 2), F.avg_pool2d(self.right(x), 2)], 1)


class ChannelsLast(nn.Module):
    """As ConvNeXt: a linear layer over channels that lie last, then a convolution again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 7, padding=3), nn.Conv2d(8, 4, 3, stride=3)
        self.linear = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.gelu(self.linear(self.first(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2))


class Shuffles(nn.Module):
    """Channels shuffled by views, space to depth and back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.group = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 5, padding=2, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.pixel_unshuffle(x, 2))
        n, c, h, w = x.shape
        return self.group(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


class Slices(nn.Module):
    """Patch merging as in Swin, and a crop: every second place, four times, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)[..., 8:-8, -80:]
        quarters = [x[..., row::2, column::2] for row in (0, 1) for column in (0, 1)]
        return self.second(torch.cat(quarters, 1)) + F.pad(self.first(x[:, :1, ::2, ::2])[:, :1, 1:], (0, 0, 0, 1))


def positive(module: nn.Module) -> nn.Module:
    """All weights positive, so that no gradient cancels out."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.abs_().add_(0.01)
    return module.double()


def measured(module: nn.Module, side: int = SIDE) -> tuple[int, int]:
    """Height and width of the input on which the middle value of the output depends."""
    x = torch.rand(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    y = module(x)
    y[0, :, y.shape[2] // 2, y.shape[3] // 2].sum().backward()
    assert x.grad is not None
    places = x.grad[0, 0].nonzero()
    height, width = (places.amax(0) - places.amin(0) + 1).tolist()
    return height, width


def computed(module: nn.Module, side: int = SIDE) -> tuple[int | None, int | None]:
    x = torch.rand(1, 1, side, side, dtype=torch.float64)
    with torch.no_grad(), Fields(x) as fields:
        field = fields.of(module(x))
    assert field is not None, fields.unknown
    return field.y.size, field.x.size


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(1, 1, 3),
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2).eval(), nn.Sigmoid(), nn.Conv2d(2, 1, (1, 7))),
        nn.Sequential(
            nn.Conv2d(1, 2, 7, 2, 3), nn.AvgPool2d(3, 2, 1), nn.Conv2d(2, 2, 3, dilation=4), nn.Conv2d(2, 1, 1)
        ),
        Branches(),
        ChannelsLast(),
        Shuffles(),
        Slices(),
        nn.Sequential(nn.Conv2d(1, 2, 2, 2), nn.ConvTranspose2d(2, 1, 2, 2)),
        nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1), nn.ReflectionPad2d(2), nn.Conv2d(1, 1, 5)),
    ],
    ids=["one", "wide", "strides", "branches", "channels-last", "shuffles", "slices", "transposed", "padded"],
)
def test_size_is_that_of_the_gradient(module: nn.Module) -> None:
    positive(module)
    assert computed(module) == measured(module)


layer = st.tuples(
    st.sampled_from(["conv", "pool"]), st.integers(1, 4), st.integers(1, 3), st.integers(0, 1), st.integers(1, 2)
)


@settings(max_examples=40, deadline=None)
@given(st.lists(layer, min_size=1, max_size=4))
def test_any_chain_of_windows(layers: list[tuple[str, int, int, int, int]]) -> None:
    chain = nn.Sequential(
        *(
            nn.Conv2d(1, 1, kernel, stride, padding, dilation)
            if kind == "conv"
            else nn.AvgPool2d(kernel, stride, min(padding, kernel // 2))
            for kind, kernel, stride, padding, dilation in layers
        )
    )
    positive(chain)
    side = 256  # the middle value sees no border
    assert computed(chain, side) == measured(chain, side)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.AdaptiveAvgPool2d(1), "whole"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 94 * 94, 3)), "whole"),
        (nn.Sequential(nn.Conv2d(1, 1, 16, 16), nn.Flatten(2)), "16"),
        (nn.Sequential(nn.Conv2d(1, 4, 16, 16), nn.Flatten(2), nn.Linear(36, 5)), "whole"),
        (nn.AvgPool2d((SIDE, 1)), "96×1"),
        (nn.Sequential(nn.AdaptiveAvgPool2d((1, None)), nn.Conv2d(1, 1, 3, padding=1)), "whole×3"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1), nn.Upsample(scale_factor=2), nn.Conv2d(1, 1, 3, padding=1)), "5"),
    ],
)
def test_whole_images_and_upper_bounds(module: nn.Module, expected: str) -> None:
    assert str(observe(fx.symbolic_trace(nn.Sequential(module)), (1, SIDE, SIDE))[-1].field) == expected


def test_a_gate_sees_what_it_is_made_of() -> None:
    class Squeeze(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.mean((2, 3), keepdim=True).sigmoid()

    nodes = observe(fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 1, 3), Squeeze())), (1, 9, 9))
    assert [str(node.field) for node in nodes] == ["1", "3", "whole", "whole", "whole"]


def test_an_operation_that_is_not_known_is_not_guessed() -> None:
    class Sorts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(dim=3).values + x

    assert observe(fx.symbolic_trace(Sorts()), (1, 9, 9))[-1].field is None


@pytest.mark.parametrize(("name", "node", "expected"), [("vgg16", "_30", "212"), ("alexnet", "_12", "195")])
def test_published_fields(name: str, node: str, expected: str) -> None:
    """Araujo et al. 2019, table of networks: VGG-16 and AlexNet."""
    with torch.device("meta"):  # weights do not matter
        features = models.get_model(name, weights=None).features
    nodes = {one.name: one for one in observe(fx.symbolic_trace(features.to_empty(device="cpu")), (3, 64, 64))}
    assert str(nodes[node].field) == expected
