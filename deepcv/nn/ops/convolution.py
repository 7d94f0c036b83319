"""Convolutions, each followed by a norm and an activation."""

import math
from dataclasses import KW_ONLY, dataclass
from types import MappingProxyType
from typing import Annotated, Literal

import torch
from torch import nn

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.init import Init
from deepcv.nn.layers.whitening import WhiteningConv2d
from deepcv.nn.ops.norms import Norm, normalise
from deepcv.nn.ops.op import Activation, Count, Op, Padding, Range, Share, Side, activate, maps, mirrored, pair, slide
from deepcv.nn.ops.order import biased, surrounded
from deepcv.nn.ops.weights import Constant, begin

INHERITS = MappingProxyType({key: key for key in ("norm", "activation", "bias", "dropout", "pre_activation")})
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
_PYRAMID_GROUPS = (1, 4, 8, 16)  # Duta 2020, table 1: of the kernels 3, 5, 7, 9


@dataclass(frozen=True)
class Conv(Op):
    """Convolution, then batch norm and ReLU unless told otherwise; `pre_activation` puts norm and activation before it.

    The padding defaults to half the kernel: an odd kernel keeps the size at stride 1. The bias defaults to off before a
    norm with a shift of its own, else to on. `init: dirac` starts the first filters as the identity; `init_value` is the
    number of `init: constant`, or the standard deviation of `truncated_normal`, there 0.02 by default. `kernel_width`,
    `stride_width`, … are for what is not square, `norm_groups` for `norm: group`; `dropout` comes last; `zero_init` starts
    the norm's scale at 0.
    """

    inherits = INHERITS
    channels: Count
    kernel: Side = 3
    stride: Side = 1
    padding: Padding | None = None
    dilation: Side = 1
    groups: Count = 1
    bias: bool | None = None
    norm: Norm = "batch"
    activation: Activation = "relu"
    init: Init = "he"
    kernel_width: Side | None = None
    padding_mode: PaddingMode = "zeros"
    pre_activation: bool = False
    norm_groups: Count | None = None
    zero_init: bool = False
    spectral_norm: bool = False
    init_value: Constant = 0.0
    dropout: Share = 0.0
    _: KW_ONLY
    stride_width: Side | None = None
    padding_width: Padding | None = None
    dilation_width: Side | None = None

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (channels, H', W')."""
        (x,) = inputs
        channels, _, _ = maps(x)
        _grouped(x, self.channels, self.groups)
        kernel, stride = pair(self.kernel, self.kernel_width), pair(self.stride, self.stride_width)
        dilation = pair(self.dilation, self.dilation_width)
        extent = (dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1)
        padding = _border(self.padding, self.padding_width, extent)
        mirrored(x, max(padding), self.padding_mode)
        shape = (self.channels, *slide(x, extent, stride, padding))
        bias = biased(self.bias, self.norm, self.pre_activation)
        layer = nn.Conv2d(
            channels, self.channels, kernel, stride, padding, dilation, self.groups,
            bias=bias, padding_mode=self.padding_mode,
        )  # fmt: skip
        begun = begin(layer, self.init, self.init_value, "he", self.spectral_norm)
        return surrounded(
            emitter, x, lambda x: emitter.module(layer, x, shape, "conv", begun), self.norm, self.activation,
            norm_groups=self.norm_groups, zero_init=self.zero_init, pre_activation=self.pre_activation,
            dropout=self.dropout,
        )  # fmt: skip


@dataclass(frozen=True)
class DepthwiseConv(Op):
    """Convolution of each channel by itself, with `multiplier` filters each, then norm and activation as in `conv`."""

    inherits = INHERITS
    multiplier: Count = 1
    kernel: Side = 3
    stride: Side = 1
    padding: Padding | None = None
    dilation: Side = 1
    bias: bool | None = None
    norm: Norm = "batch"
    activation: Activation = "relu"
    init: Init = "he"
    padding_mode: PaddingMode = "zeros"
    init_value: Constant = 0.0
    _: KW_ONLY
    pre_activation: bool = False
    dropout: Share = 0.0
    spectral_norm: bool = False
    norm_groups: Count | None = None
    zero_init: bool = False
    kernel_width: Side | None = None
    stride_width: Side | None = None
    padding_width: Padding | None = None
    dilation_width: Side | None = None

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C * multiplier, H', W')."""
        (x,) = inputs
        channels, _, _ = maps(x)
        return Conv(
            channels * self.multiplier, self.kernel, self.stride, self.padding, self.dilation, channels, self.bias,
            self.norm, self.activation, self.init, padding_mode=self.padding_mode, init_value=self.init_value,
            pre_activation=self.pre_activation, norm_groups=self.norm_groups, zero_init=self.zero_init,
            spectral_norm=self.spectral_norm, dropout=self.dropout, kernel_width=self.kernel_width,
            stride_width=self.stride_width, padding_width=self.padding_width, dilation_width=self.dilation_width,
        ).emit(emitter, x)  # fmt: skip


@dataclass(frozen=True)
class SeparableConv(Op):
    """Depthwise convolution (`id.depthwise`), then one of 1 x 1 (`id.conv`), norm and activation (Chollet 2017).

    `between` puts norm and activation after the depthwise convolution too, as MobileNet does (Howard 2017). `bias` is that of
    both; by default each has one where no norm with a shift of its own follows at once.
    """

    inherits = INHERITS
    channels: Count
    kernel: Side = 3
    stride: Side = 1
    padding: Padding | None = None
    dilation: Side = 1
    norm: Norm = "batch"
    activation: Activation = "relu"
    between: bool = False
    init: Init = "he"
    init_value: Constant = 0.0
    _: KW_ONLY
    pre_activation: bool = False
    dropout: Share = 0.0
    spectral_norm: bool = False
    bias: bool | None = None
    norm_groups: Count | None = None
    zero_init: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (channels, H', W')."""
        (x,) = inputs
        channels, _, _ = maps(x)
        extent = self.dilation * (self.kernel - 1) + 1
        padding = extent // 2 if self.padding is None else self.padding
        shape = (channels, *slide(x, extent, self.stride, padding))
        norm, activation = (self.norm, self.activation) if self.between else ("none", "none")
        window = (self.kernel, self.stride, padding, self.dilation)
        bias = self.norm == "none" if self.bias is None else self.bias
        each = nn.Conv2d(channels, channels, *window, channels, bias=bias)
        begun = begin(each, self.init, self.init_value, "he", self.spectral_norm)
        mix = Conv(
            self.channels, 1, bias=biased(self.bias, self.norm, self.pre_activation), norm="none", activation="none",
            init=self.init, init_value=self.init_value, spectral_norm=self.spectral_norm,
        )  # fmt: skip

        def both(x: Value) -> Value:
            x = emitter.module(each, x, shape, "depthwise", begun)
            x = normalise(emitter, x, norm, self.norm_groups, part="depthwise_norm")
            return mix.emit(emitter, activate(emitter, x, activation, "depthwise_activation"))

        return surrounded(
            emitter, x, both, self.norm, self.activation, norm_groups=self.norm_groups, zero_init=self.zero_init,
            pre_activation=self.pre_activation, dropout=self.dropout,
        )  # fmt: skip


@dataclass(frozen=True)
class TransposedConv(Op):
    """Transposed convolution, then norm and activation as in `conv`; the defaults double height and width."""

    inherits = INHERITS
    channels: Count
    kernel: Side = 2
    stride: Side = 2
    padding: Padding = 0
    output_padding: Padding = 0
    dilation: Side = 1
    groups: Count = 1
    bias: bool | None = None
    norm: Norm = "batch"
    activation: Activation = "relu"
    init: Init = "he"
    norm_groups: Count | None = None
    zero_init: bool = False
    init_value: Constant = 0.0
    _: KW_ONLY
    pre_activation: bool = False
    dropout: Share = 0.0
    spectral_norm: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (channels, H', W'), H' = (H - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1."""
        (x,) = inputs
        channels, *sides = maps(x)
        _grouped(x, self.channels, self.groups)
        if self.output_padding >= max(self.stride, self.dilation):
            raise FitError(f"output_padding: {self.output_padding} must be less than the stride or the dilation")
        if self.init == "dirac":
            raise FitError("init: dirac is not for transposed convolutions")
        more = self.dilation * (self.kernel - 1) + self.output_padding + 1 - 2 * self.padding
        high, wide = ((side - 1) * self.stride + more for side in sides)
        if min(high, wide) < 1:
            raise FitError(f"padding: {self.padding} leaves nothing of {x}")
        bias = biased(self.bias, self.norm, self.pre_activation)
        layer = nn.ConvTranspose2d(
            channels, self.channels, self.kernel, self.stride, self.padding, self.output_padding, self.groups,
            bias, self.dilation,
        )  # fmt: skip
        begun = begin(layer, self.init, self.init_value, "he", self.spectral_norm)
        return surrounded(
            emitter, x, lambda x: emitter.module(layer, x, (self.channels, high, wide), "conv", begun), self.norm,
            self.activation, norm_groups=self.norm_groups, zero_init=self.zero_init,
            pre_activation=self.pre_activation, dropout=self.dropout,
        )  # fmt: skip


@dataclass(frozen=True)
class PyramidConv(Op):
    """Convolutions with kernels 3, 5, 7, 9 side by side, their channels one behind the other (PyConv, Duta 2020).

    arXiv 2006.11538: `levels` kernels. All levels have an equal share of the output channels, but of three the last has
    half, as in table 1. The level's groups are those of the paper (1, 4, 8, 16), or their greatest common divisor with
    the input channels and the level's. Then norm and activation over all channels as in `conv`.
    """

    inherits = INHERITS
    channels: Count
    levels: Annotated[int, Range(1, 4)] = 4
    stride: Side = 1
    bias: bool | None = None
    norm: Norm = "batch"
    activation: Activation = "relu"
    init: Init = "he"
    norm_groups: Count | None = None
    zero_init: bool = False
    init_value: Constant = 0.0
    _: KW_ONLY
    pre_activation: bool = False
    dropout: Share = 0.0
    spectral_norm: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (channels, H', W')."""
        (x,) = inputs
        channels, _, _ = maps(x)
        if self.init == "dirac":
            raise FitError("init: dirac needs one kernel")
        share = self.channels // (1, 2, 4, 4)[self.levels - 1]
        if not share:
            raise FitError(f"channels: {self.channels} are fewer than one for each of levels: {self.levels}")
        bias = biased(self.bias, self.norm, self.pre_activation)
        sides = slide(x, 3, self.stride, 1)

        def levels(x: Value) -> Value:
            parts = []
            for level in range(self.levels):
                count = share if level < self.levels - 1 else self.channels - share * level
                groups = math.gcd(_PYRAMID_GROUPS[level], channels, count)
                layer = nn.Conv2d(channels, count, 2 * level + 3, self.stride, level + 1, 1, groups, bias)
                begun = begin(layer, self.init, self.init_value, "he", self.spectral_norm)
                parts.append(emitter.module(layer, x, (count, *sides), f"level{level}", begun))
            return emitter.function(torch.cat, (parts, 1), (self.channels, *sides)) if len(parts) > 1 else parts[0]

        return surrounded(
            emitter, x, levels, self.norm, self.activation, norm_groups=self.norm_groups, zero_init=self.zero_init,
            pre_activation=self.pre_activation, dropout=self.dropout,
        )  # fmt: skip


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


def _border(height: int | None, width: int | None, extent: tuple[int, int]) -> tuple[int, int]:
    """The padding of height and width; where none is given, half of what the kernel covers."""
    above = extent[0] // 2 if height is None else height
    return above, width if width is not None else extent[1] // 2 if height is None else height


def _grouped(x: Value, channels: int, groups: int) -> None:
    for count, name in ((x.shape[0], f"the channels of {x}"), (channels, f"channels: {channels}")):
        if count % groups:
            raise FitError(f"groups: {groups} does not divide {name}")
