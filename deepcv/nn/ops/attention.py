"""Attention: gates on feature maps, and attention of tokens."""

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, ClassVar, Literal

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.init import Init
from deepcv.nn.layers.feature_attention import (
    AttentionGate,
    Cbam,
    EfficientChannelAttention,
    SpatialGate,
    SqueezeExcite,
    eca_kernel,
)
from deepcv.nn.layers.tokens import CrossAttention, SelfAttention
from deepcv.nn.ops.op import ACTIVATIONS, Count, Op, Range, Share, Side, maps
from deepcv.nn.ops.tokens import sequence
from deepcv.nn.ops.weights import Constant, begin


@dataclass(frozen=True)
class SqueezeExciteOp(Op):
    """Gate per channel from the mean over positions (Hu 2018, arXiv 1709.01507).

    The bottleneck has `hidden` features; by default the channels / `reduction`, rounded to a multiple of `divisor`.
    MobileNetV3 has `gate: hardsigmoid`.
    """

    reduction: Count = 16
    divisor: Count = 8
    hidden: Count | None = None
    activation: Literal["relu", "gelu", "silu"] = "relu"
    _: KW_ONLY
    init: Init = "he"
    init_value: Constant = 0.0
    spectral_norm: bool = False
    bias: bool = True
    gate: Literal["sigmoid", "hardsigmoid"] = "sigmoid"

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W), kept."""
        (x,) = inputs
        channels, _, _ = maps(x)
        hidden = self.hidden or _rounded(channels / self.reduction, self.divisor)
        layer = SqueezeExcite(channels, hidden, ACTIVATIONS[self.activation], ACTIVATIONS[self.gate], self.bias)
        begun = begin(layer, self.init, self.init_value, "he", self.spectral_norm)
        return emitter.module(layer, x, x.shape, start=begun)


@dataclass(frozen=True)
class Eca(Op):
    """Gate per channel from its neighbours' means (Wang 2020, arXiv 1910.03151); the kernel follows from the channels."""

    gamma: Annotated[float, Range(0.1, 100)] = 2.0
    b: Annotated[float, Range(-100, 100)] = 1.0
    kernel: Side | None = None
    _: KW_ONLY
    init: Init = "torch"
    init_value: Constant = 0.0
    spectral_norm: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W), kept."""
        (x,) = inputs
        channels, _, _ = maps(x)
        kernel = self.kernel or eca_kernel(channels, self.gamma, self.b)
        layer = EfficientChannelAttention(_odd(kernel))
        begun = begin(layer.conv, self.init, self.init_value, "torch", self.spectral_norm)
        return emitter.module(layer, x, x.shape, start=begun)


@dataclass(frozen=True)
class CbamOp(Op):
    """Gate per channel, then per position (Woo 2018, arXiv 1807.06521)."""

    reduction: Count = 16
    kernel: Side = 7
    _: KW_ONLY
    init: Init = "he"
    init_value: Constant = 0.0
    spectral_norm: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W), kept."""
        (x,) = inputs
        channels, _, _ = maps(x)
        layer = Cbam(channels, _rounded(channels / self.reduction, 1), _odd(self.kernel))
        begun = begin(layer, self.init, self.init_value, "he", self.spectral_norm)
        return emitter.module(layer, x, x.shape, start=begun)


@dataclass(frozen=True)
class SpatialGateOp(Op):
    """Gate per position from the mean and the largest value over the channels: CBAM's second half."""

    kernel: Side = 7
    _: KW_ONLY
    init: Init = "he"
    init_value: Constant = 0.0
    spectral_norm: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W), kept."""
        (x,) = inputs
        maps(x)
        layer = SpatialGate(_odd(self.kernel))
        begun = begin(layer.conv, self.init, self.init_value, "he", self.spectral_norm)
        return emitter.module(layer, x, x.shape, start=begun)


@dataclass(frozen=True)
class AttentionGateOp(Op):
    """Gate per position of a skip link, `from: [skip, gate]`, by coarser, deeper maps (Oktay 2018, arXiv 1804.03999).

    Both meet in `hidden` channels, by default half of the skip link's.
    """

    many: ClassVar[bool] = True
    pair: ClassVar[bool] = True
    hidden: Count | None = None
    _: KW_ONLY
    init: Init = "he"
    init_value: Constant = 0.0
    spectral_norm: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) and (C', h, w) to (C, H, W)."""
        if len(inputs) != 2:
            raise FitError(f"needs two inputs, from: [skip, gate], got {len(inputs)}")
        skip, gate = inputs
        (channels, _, _), (gate_channels, _, _) = maps(skip), maps(gate)
        hidden = self.hidden or max(channels // 2, 1)
        layer = AttentionGate(channels, gate_channels, hidden)
        begun = begin(layer, self.init, self.init_value, "he", self.spectral_norm)
        return emitter.module(layer, inputs, skip.shape, start=begun)


@dataclass(frozen=True)
class Attention(Op):
    """Multi-head attention with its linear layers (Vaswani 2017, arXiv 1706.03762); of two inputs the first asks the second.

    `from: [queries, context]` is cross-attention: keys and values come from the context, whose tokens may be more or wider.
    `dropout` acts on the attention weights, `out_dropout` on the result; `qk_norm` puts a layer norm on the queries and the
    keys of each head (Dehghani 2023, arXiv 2302.05442). A transformer's block is a template of layer_norm, attention, linear
    and sum.
    """

    most: ClassVar[int] = 2
    heads: Count = 8
    qkv_bias: bool = True
    dropout: Share = 0.0
    out_dropout: Share = 0.0
    _: KW_ONLY
    init: Init = "torch"
    init_value: Constant = 0.0
    spectral_norm: bool = False
    proj_bias: bool = True
    qk_norm: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(T, D), kept; (T, D) and (S, E) to (T, D)."""
        x, *context = inputs
        _, features = sequence(x)
        if features % self.heads:
            raise FitError(f"heads: {self.heads} does not divide the features of {x}")
        options = (self.heads, self.qkv_bias, self.dropout, self.out_dropout, self.proj_bias, self.qk_norm)
        layer = (
            CrossAttention(features, sequence(context[0])[1], *options)
            if context
            else SelfAttention(features, *options)
        )
        begun = begin(layer, self.init, self.init_value, "torch", self.spectral_norm)
        return emitter.module(layer, inputs, x.shape, start=begun)


def _rounded(count: float, divisor: int) -> int:
    """The multiple of `divisor` that is nearest, at least one."""
    return max(divisor, int(count + divisor / 2) // divisor * divisor)


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise FitError(f"kernel: {kernel} must be odd, so that the size is kept")
    return kernel
