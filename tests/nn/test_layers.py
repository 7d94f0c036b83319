"""Whitening and identity-initialised convolutions, by their numbers."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deepcv.nn.init import start
from deepcv.nn.layers.whitening import WhiteningConv2d


@pytest.mark.parametrize(("channels", "kernel"), [(1, 2), (3, 2), (3, 3)])
def test_whitening_gives_uncorrelated_patches_of_unit_variance(channels: int, kernel: int) -> None:
    torch.manual_seed(0)
    mixing = torch.randn(channels, channels) + 2 * torch.eye(channels)
    images = F.avg_pool2d(torch.einsum("ij,njhw->nihw", mixing, torch.randn(64, channels, 18, 18)), 2, stride=1)
    layer = WhiteningConv2d(channels, kernel)
    layer.fit(images)
    half = channels * kernel * kernel
    with torch.no_grad():
        out = layer(images)
    assert torch.equal(out[:, :half], -out[:, half:])
    flat = out[:, :half].transpose(0, 1).reshape(half, -1).double()
    second_moments = (flat @ flat.T / flat.shape[1]).numpy()
    np.testing.assert_allclose(second_moments, np.eye(half), atol=1e-4)
    assert not layer.weight.requires_grad


def test_a_constant_direction_is_not_blown_up() -> None:
    layer = WhiteningConv2d(1, 2)
    layer.fit(torch.randn(50, 1, 1, 1).expand(50, 1, 8, 8))  # all pixels of an image are equal
    assert float(layer.weight.abs().max()) <= 1 / np.sqrt(1e-3) + 1e-3


def test_dirac_convolution_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, padding=1, bias=False)
    start("dirac")(layer)
    images = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        out = layer(images)
    assert torch.equal(out[:, :4], images)
    assert float(out[:, 4:].abs().max()) > 0
