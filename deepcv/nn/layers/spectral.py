"""Layers whose weight is divided by its largest singular value (Miyato 2018, arXiv 1802.05957).

The same numbers as `torch.nn.utils.parametrizations.spectral_norm`, whose layers, though, refuse to be pickled, and whose
keys differ from those of the plain layer; here `weight` is the plain layer's, so that weights move both ways.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FIRST = 15  # power iterations at the start; one per training step follows the slowly changing weight


class _Spectral(nn.Module):
    """The power iteration; to stand before a layer of torch that has a `weight` (out, …)."""

    weight: Tensor
    left: Tensor
    right: Tensor

    def _add_vectors(self) -> None:
        self.register_buffer("left", self.weight.new_empty(self.weight.shape[0]))
        self.register_buffer("right", self.weight.new_empty(math.prod(self.weight.shape[1:])))

    @torch.no_grad()
    def settle(self) -> None:
        """Draw the singular vectors and bring them close to those of the present weight."""
        nn.init.normal_(self.left)
        nn.init.normal_(self.right)
        self._iterate(_FIRST)

    @torch.no_grad()
    def _iterate(self, times: int) -> None:
        matrix = self.weight.flatten(1)
        for _ in range(times):
            self.left.copy_(F.normalize(matrix @ self.right, dim=0))
            self.right.copy_(F.normalize(matrix.T @ self.left, dim=0))

    def normalised(self) -> Tensor:
        """The weight over its largest singular value; one more iteration while training."""
        if self.training:
            self._iterate(1)
        left, right = self.left.clone(), self.right.clone()  # backward needs these, and a second call changes them
        return self.weight / torch.dot(left, torch.mv(self.weight.flatten(1), right))


class SpectralConv2d(_Spectral, nn.Conv2d):
    """A convolution with spectral norm; its weight seen as a matrix (out, in * height * width)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
    ) -> None:
        nn.Conv2d.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        )
        self._add_vectors()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """(N, C, H, W) to (N, out, H', W')."""
        output: Tensor = self._conv_forward(input, self.normalised(), self.bias)
        return output


class SpectralLinear(_Spectral, nn.Linear):
    """A fully connected layer with spectral norm."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias)
        self._add_vectors()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """(N, …, F) to (N, …, out)."""
        return F.linear(input, self.normalised(), self.bias)
