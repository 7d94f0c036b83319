"""Layers whose weight is divided by its largest singular value (Miyato 2018, arXiv 1802.05957).

The same numbers as `torch.nn.utils.parametrizations.spectral_norm`, whose layers, though, refuse to be pickled, and whose
keys differ from those of the plain layer; here `weight` is the plain layer's, so that weights move both ways.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FIRST = 15  # power iterations at the start; one per training step follows the slowly changing weight


class Spectral(nn.Module):
    """The power iteration; to stand before a layer of torch that has a `weight` (out, …); (in, out, …) where it is `transposed`."""

    transposed = False  # torch's convolutions say it themselves

    weight: Tensor
    left: Tensor
    right: Tensor

    def _add_vectors(self) -> None:
        rows = self.weight.shape[int(self.transposed)]
        self.register_buffer("left", self.weight.new_empty(rows))
        self.register_buffer("right", self.weight.new_empty(self.weight.numel() // rows))

    def matrix(self) -> Tensor:
        """The weight as (out, all else)."""
        return (self.weight.transpose(0, 1) if self.transposed else self.weight).flatten(1)

    @torch.no_grad()
    def settle(self) -> None:
        """Draw the singular vectors and bring them close to those of the present weight."""
        nn.init.normal_(self.left)
        nn.init.normal_(self.right)
        self._iterate(_FIRST)

    @torch.no_grad()
    def _iterate(self, times: int) -> None:
        matrix = self.matrix()
        for _ in range(times):
            self.left.copy_(F.normalize(matrix @ self.right, dim=0))
            self.right.copy_(F.normalize(matrix.T @ self.left, dim=0))

    def normalised(self) -> Tensor:
        """The weight over its largest singular value; one more iteration while training."""
        if self.training:
            self._iterate(1)
        left, right = self.left.clone(), self.right.clone()  # backward needs these, and a second call changes them
        return self.weight / torch.dot(left, torch.mv(self.matrix(), right))


class SpectralConv2d(Spectral, nn.Conv2d):
    """A convolution with spectral norm; its weight seen as a matrix (out, in * height * width)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
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


class SpectralConvTranspose2d(Spectral, nn.ConvTranspose2d):
    """A transposed convolution with spectral norm; its weight seen as a matrix (out / groups, in * height * width)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        output_padding: int = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int = 1,
    ) -> None:
        nn.ConvTranspose2d.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation
        )
        self._add_vectors()

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002  torch's names
        """(N, C, H, W) to (N, out, H', W')."""
        del output_size  # `output_padding` says it
        options = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return F.conv_transpose2d(input, self.normalised(), self.bias, *options)  # type: ignore[arg-type]


class SpectralLinear(Spectral, nn.Linear):
    """A fully connected layer with spectral norm."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias)
        self._add_vectors()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """(N, …, F) to (N, …, out)."""
        return F.linear(input, self.normalised(), self.bias)
