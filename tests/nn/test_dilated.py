"""Dilated convolutions in bfloat16 on a CPU, whose gradients torch gets wrong."""

import pickle
from typing import Any

import pytest
import torch
from torch import nn

from deepcv.nn.layers.dilated import DilatedConv2d, SpectralDilatedConv2d
from deepcv.nn.spec import build, from_canonical

SHAPE = (24, 32, 32)  # torch errs over maps wider than 30


def network(**options: Any) -> nn.Module:
    node = {"id": "x", "from": ["input"], "op": "conv", "channels": 24, "norm": "none", "activation": "none", **options}
    torch.manual_seed(0)
    net = build(from_canonical({"format": 1, "nodes": [node], "outputs": [["y", "x"]]}), SHAPE, 10)
    return net.to(memory_format=torch.channels_last)


def gradient(net: nn.Module, precision: torch.dtype | None) -> torch.Tensor:
    torch.manual_seed(1)
    images, weights = torch.randn(2, 4, *SHAPE)
    noise = [torch.full((5_000,), 1e3) for _ in range(50)]
    del noise  # memory that may be handed out again
    net.zero_grad()
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        y = net(images.contiguous(memory_format=torch.channels_last))["y"]
    (y.float() * weights).sum().backward()
    found = net.get_parameter("x.conv.weight").grad
    assert found is not None
    return found.clone()


@pytest.mark.parametrize(
    "options",
    [{"dilation": 2}, {"dilation": 3, "groups": 4}, {"dilation": 2, "spectral_norm": True}, {"dilation": 1}],
    ids=str,
)
def test_gradients_in_bfloat16_are_those_of_float32(options: dict[str, Any]) -> None:
    net = network(**options).eval()  # spectral norm holds still
    expected = gradient(net, None)
    for _ in range(4):
        assert (gradient(net, torch.bfloat16) - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"dilation": 2}, DilatedConv2d),
        ({"dilation": 2, "spectral_norm": True}, SpectralDilatedConv2d),
        ({"dilation": 1}, nn.Conv2d),
        ({"op": "separable_conv", "dilation": 2}, nn.Conv2d),  # its second convolution; the first is looked at below
    ],
    ids=str,
)
def test_dilated_convolutions_alone_are_of_another_class_and_keep_their_keys(
    options: dict[str, Any], kind: type[nn.Module]
) -> None:
    net = network(**options)
    assert type(net.get_submodule("x.conv")) is kind
    if options.get("op"):
        assert type(net.get_submodule("x.depthwise")) is DilatedConv2d
    plain = network(**options | {"dilation": 1})
    assert list(net.state_dict()) == list(plain.state_dict())
    assert type(pickle.loads(pickle.dumps(net)).get_submodule("x.conv")) is kind  # noqa: S301  our own bytes


def test_inference_stays_in_bfloat16() -> None:
    net, images = network(dilation=2), torch.randn(1, *SHAPE)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(images)["y"].dtype == torch.float32
        with torch.no_grad():
            assert net(images)["y"].dtype == torch.bfloat16
