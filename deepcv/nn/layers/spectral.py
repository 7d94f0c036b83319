"""Layers whose weight is divided by its largest singular value (Miyato 2018, arXiv 1802.05957).

The same numbers as `torch.nn.utils.parametrizations.spectral_norm`, whose layers, though, refuse to be pickled, and whose
keys differ from those of the plain layer; here `weight` is the plain layer's, so that weights move both ways.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcv.nn.layers.bilinear import Bilinear

_FIRST = 15  # power iterations at the start; one per training step follows the slowly changing weight


class Spectral(nn.Module):
    """The power iteration, before a layer of torch that has a `weight` (out, …), or (in, out, …) where it is `transposed`.

    `make_spectral` makes such a layer of a plain one.
    """

    transposed = False  # torch's convolutions say it themselves

    weight: Tensor
    left: Tensor
    right: Tensor

    def add_vectors(self) -> None:
        """The singular vectors, without values until `settle`."""
        rows = self.weight.shape[int(self.transposed)]
        self.register_buffer("left", self.weight.new_empty(rows))
        self.register_buffer("right", self.weight.new_empty(self.weight.numel() // rows))

    def matrix(self) -> Tensor:
        """The weight as (out, all else)."""
        return (self.weight.transpose(0, 1) if self.transposed else self.weight).flatten(1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + "weight" in state_dict and prefix + "left" not in state_dict:
            self._iterate(_FIRST)  # of a plain layer, whose vectors are others

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


class SpectralConv1d(Spectral, nn.Conv1d):
    """A convolution of sequences with spectral norm; its weight seen as a matrix (out, in * length)."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """(N, C, L) to (N, out, L')."""
        output: Tensor = self._conv_forward(input, self.normalised(), self.bias)
        return output


class SpectralConv2d(Spectral, nn.Conv2d):
    """A convolution with spectral norm; its weight seen as a matrix (out, in * height * width)."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """(N, C, H, W) to (N, out, H', W')."""
        output: Tensor = self._conv_forward(input, self.normalised(), self.bias)
        return output


class SpectralConvTranspose2d(Spectral, nn.ConvTranspose2d):
    """A transposed convolution with spectral norm; its weight seen as a matrix (out / groups, in * height * width)."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002  torch's names
        """(N, C, H, W) to (N, out, H', W')."""
        del output_size  # `output_padding` says it
        options = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return F.conv_transpose2d(input, self.normalised(), self.bias, *options)  # type: ignore[arg-type]


class SpectralLinear(Spectral, nn.Linear):
    """A fully connected layer with spectral norm."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """(N, …, F) to (N, …, out)."""
        return F.linear(input, self.normalised(), self.bias)


class SpectralBilinear(Spectral, Bilinear):
    """A bilinear layer with spectral norm; its weight seen as a matrix (out, in1 * in2)."""

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        """(N, …, F1) and (N, …, F2) to (N, …, out)."""
        return self._by(self.normalised(), input1, input2)


_KINDS: Mapping[type[nn.Module], type[Spectral]] = MappingProxyType(
    {
        nn.Conv1d: SpectralConv1d,
        nn.Conv2d: SpectralConv2d,
        nn.ConvTranspose2d: SpectralConvTranspose2d,
        nn.Linear: SpectralLinear,
        Bilinear: SpectralBilinear,
    }
)


def make_spectral(layer: nn.Module) -> None:
    """Give a layer spectral norm. Its class changes, as torch's parametrizations do it; nothing is drawn."""
    layer.__class__ = _KINDS[type(layer)]
    assert isinstance(layer, Spectral)  # noqa: S101  for mypy
    layer.add_vectors()
