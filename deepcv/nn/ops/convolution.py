"""Convolutions."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from torch import nn

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.init import Init, start
from deepcv.nn.layers.whitening import WhiteningConv2d
from deepcv.nn.ops.op import Activation, Count, Op, Padding, Range, Side, activate, maps, slide


@dataclass(frozen=True)
class Conv(Op):
    """Convolution, then batch norm and ReLU unless told otherwise.

    The padding defaults to half the kernel: an odd kernel keeps the size at stride 1. The bias defaults to off before a
    norm, on without one. `init: dirac` starts the first filters as the identity.
    """

    inherits = MappingProxyType({key: key for key in ("norm", "activation", "bias")})
    channels: Count
    kernel: Side = 3
    stride: Side = 1
    padding: Padding | None = None
    dilation: Side = 1
    groups: Count = 1
    bias: bool | None = None
    norm: Literal["batch", "none"] = "batch"
    activation: Activation = "relu"
    init: Init = "he"

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (channels, H', W')."""
        (x,) = inputs
        channels, _, _ = maps(x)
        for count, name in ((channels, f"the channels of {x}"), (self.channels, f"channels: {self.channels}")):
            if count % self.groups:
                raise FitError(f"groups: {self.groups} does not divide {name}")
        if self.init == "dirac" and (self.groups > 1 or self.kernel % 2 == 0):
            raise FitError("init: dirac needs an odd kernel and groups: 1")
        extent = self.dilation * (self.kernel - 1) + 1
        padding = extent // 2 if self.padding is None else self.padding
        shape = (self.channels, *slide(x, extent, self.stride, padding))
        bias = self.norm == "none" if self.bias is None else self.bias
        window = (self.kernel, self.stride, padding, self.dilation)
        layer = nn.Conv2d(channels, self.channels, *window, self.groups, bias=bias)
        x = emitter.module(layer, x, shape, "conv", None if self.init == "he" else start(self.init))
        if self.norm == "batch":
            x = emitter.module(nn.BatchNorm2d(self.channels), x, shape, "norm")
        return activate(emitter, x, self.activation)


@dataclass(frozen=True)
class Whiten(Op):
    """Whitens patches of the input images: a fixed convolution, computed from the training images."""

    kernel: Annotated[int, Range(2, 8)] = 2

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (2 * C * kernel², H - kernel + 1, W - kernel + 1)."""
        (x,) = inputs
        channels, _, _ = maps(x)
        if x.node.op != "placeholder":
            raise FitError(f"works on the input images only (from: input), got {x}")
        shape = (2 * channels * self.kernel**2, *slide(x, self.kernel, 1, 0))
        return emitter.module(WhiteningConv2d(channels, self.kernel), x, shape)
