"""Dilated convolutions that train in float32 under a CPU's autocast.

In bfloat16, channels last, torch 2.15 (oneDNN, on a CPU with AVX512-BF16) reads memory that is not the convolution's as it computes the
gradient of a dilated kernel over maps wider than 30: the gradient is noise or NaN, another one at each call, and some sizes crash.
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from deepcv.nn.layers.spectral import SpectralConv2d


class DilatedConv2d(nn.Conv2d):
    """A convolution whose gradients are those of float32, and whose output then is float32 too; else torch's own."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002  torch's name
        trained = input.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
        with torch.autocast("cpu", enabled=False) if trained else nullcontext():
            output: Tensor = super()._conv_forward(input.to(weight.dtype) if trained else input, weight, bias)
        return output


class SpectralDilatedConv2d(SpectralConv2d, DilatedConv2d):
    """The same with spectral norm."""


def guard(layer: nn.Module) -> None:
    """Let a dilated convolution train as above. Its class changes, its keys do not; all other layers stay as they are."""
    if isinstance(layer, nn.Conv2d) and max(layer.dilation) > 1:
        layer.__class__ = _KINDS.get(type(layer), type(layer))


_KINDS: dict[type[nn.Conv2d], type[nn.Conv2d]] = {
    nn.Conv2d: DilatedConv2d, SpectralConv2d: SpectralDilatedConv2d,
}  # fmt: skip
