"""Meta-convolution."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch import nn

from deepcv.nn.emitter import Emitter, Value
from deepcv.nn.layers.meta_convolution import MetaConv2d
from deepcv.nn.ops.op import Activation, Count, Op, Padding, Side, activate, maps, slide


@dataclass(frozen=True)
class MetaConv(Op):
    """Convolution whose kernel changes with the input by a matrix of `rank`; then batch norm and ReLU, as in `conv`.

    A net of one hidden layer, of the input channels / `reduction` and at least 8, infers the change from the mean over
    positions.
    """

    inherits = MappingProxyType({key: key for key in ("norm", "activation", "bias")})
    channels: Count
    kernel: Side = 3
    stride: Side = 1
    padding: Padding | None = None
    rank: Count = 1
    reduction: Count = 4
    bias: bool | None = None
    norm: Literal["batch", "none"] = "batch"
    activation: Activation = "relu"

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (channels, H', W')."""
        (x,) = inputs
        channels, _, _ = maps(x)
        padding = self.kernel // 2 if self.padding is None else self.padding
        shape = (self.channels, *slide(x, self.kernel, self.stride, padding))
        bias = self.norm == "none" if self.bias is None else self.bias
        hidden = max(channels // self.reduction, 8)
        layer = MetaConv2d(channels, self.channels, self.kernel, self.stride, padding, self.rank, hidden, bias)
        x = emitter.module(layer, x, shape, "conv")
        if self.norm == "batch":
            x = emitter.module(nn.BatchNorm2d(self.channels), x, shape, "norm")
        return activate(emitter, x, self.activation)
