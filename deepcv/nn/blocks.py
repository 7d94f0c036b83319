"""The ops of a network file: one frozen dataclass each. Its fields are the keys that the file may give.

A new op is a dataclass here and a line in `OPS`. `emit` checks the shapes that reach it and writes the op down.
"""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.layers import DiracConv2d, WhiteningConv2d


@dataclass(frozen=True)
class Range:
    """The values that a number may take, both ends included."""

    low: float
    high: float


Count = Annotated[int, Range(1, 65_536)]
Side = Annotated[int, Range(1, 1_024)]
Padding = Annotated[int, Range(0, 1_024)]
Activation = Literal["relu", "gelu", "silu", "none"]
ACTIVATIONS: Mapping[str, Callable[..., Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


@dataclass(frozen=True)
class Op(ABC):
    """One kind of node."""

    many: ClassVar[bool] = False  # takes two or more inputs

    @abstractmethod
    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Write the op into the graph; a `FitError` says which shape was expected and which came."""


def _activate(emitter: Emitter, value: Value, activation: str) -> Value:
    return value if activation == "none" else emitter.function(ACTIVATIONS[activation], (value,), value.shape)


def _maps(value: Value) -> tuple[int, int, int]:
    if len(value.shape) != 3:
        raise FitError(f"needs feature maps (C, H, W), got {value}")
    channels, height, width = value.shape
    return channels, height, width


def _slide(value: Value, extent: int, stride: int, padding: int) -> tuple[int, int]:
    """Height and width after a window slid over feature maps."""
    _, height, width = _maps(value)
    if min(height, width) + 2 * padding < extent:
        raise FitError(f"a window of ({extent}, {extent}) is larger than {value} with padding {padding}")
    return (height + 2 * padding - extent) // stride + 1, (width + 2 * padding - extent) // stride + 1


@dataclass(frozen=True)
class Conv(Op):
    """Convolution, then batch norm and ReLU unless told otherwise.

    The padding defaults to half the kernel: an odd kernel keeps the size at stride 1. The bias defaults to off before a
    norm, on without one. `init: dirac` starts the first filters as the identity.
    """

    channels: Count
    kernel: Side = 3
    stride: Side = 1
    padding: Padding | None = None
    dilation: Side = 1
    groups: Count = 1
    bias: bool | None = None
    norm: Literal["batch", "none"] = "batch"
    activation: Activation = "relu"
    init: Literal["he", "dirac"] = "he"

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (channels, H', W')."""
        (x,) = inputs
        channels, _, _ = _maps(x)
        for count, name in ((channels, f"the channels of {x}"), (self.channels, f"channels: {self.channels}")):
            if count % self.groups:
                raise FitError(f"groups: {self.groups} does not divide {name}")
        if self.init == "dirac" and (self.groups > 1 or self.kernel % 2 == 0):
            raise FitError("init: dirac needs an odd kernel and groups: 1")
        extent = self.dilation * (self.kernel - 1) + 1
        padding = extent // 2 if self.padding is None else self.padding
        shape = (self.channels, *_slide(x, extent, self.stride, padding))
        bias = self.norm == "none" if self.bias is None else self.bias
        window = (self.kernel, self.stride, padding, self.dilation)
        kind = nn.Conv2d if self.init == "he" else DiracConv2d
        x = emitter.module(kind(channels, self.channels, *window, self.groups, bias=bias), x, shape, "conv")
        if self.norm == "batch":
            x = emitter.module(nn.BatchNorm2d(self.channels), x, shape, "norm")
        return _activate(emitter, x, self.activation)


@dataclass(frozen=True)
class Whiten(Op):
    """Whitens patches of the input images: a fixed convolution, computed from the training images."""

    kernel: Annotated[int, Range(2, 8)] = 2

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (2 * C * kernel², H - kernel + 1, W - kernel + 1)."""
        (x,) = inputs
        channels, _, _ = _maps(x)
        if x.node.op != "placeholder":
            raise FitError(f"works on the input images only (from: input), got {x}")
        shape = (2 * channels * self.kernel**2, *_slide(x, self.kernel, 1, 0))
        return emitter.module(WhiteningConv2d(channels, self.kernel), x, shape)


@dataclass(frozen=True)
class Linear(Op):
    """Fully connected layer."""

    features: Count
    bias: bool = True
    activation: Activation = "none"

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(F,) to (features,)."""
        (x,) = inputs
        if len(x.shape) != 1:
            raise FitError(f"needs flat features (F,), got {x}: put flatten or global_avg_pool before it")
        x = emitter.module(nn.Linear(x.shape[0], self.features, bias=self.bias), x, (self.features,))
        return _activate(emitter, x, self.activation)


@dataclass(frozen=True)
class _Pool(Op):
    function: ClassVar[Callable[..., Tensor]]
    kernel: Side = 2
    stride: Side | None = None
    padding: Padding = 0

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C, H', W')."""
        (x,) = inputs
        if self.padding > self.kernel // 2:
            raise FitError(f"padding: {self.padding} is more than half of kernel: {self.kernel}")
        window = (self.kernel, self.stride or self.kernel, self.padding)
        return emitter.function(type(self).function, (x, *window), (x.shape[0], *_slide(x, *window)))


@dataclass(frozen=True)
class MaxPool(_Pool):
    """Largest value of each window; the stride defaults to the kernel."""

    function = F.max_pool2d


@dataclass(frozen=True)
class AvgPool(_Pool):
    """Mean of each window, padding counted as zeros; the stride defaults to the kernel."""

    function = F.avg_pool2d


@dataclass(frozen=True)
class GlobalAvgPool(Op):
    """Mean over height and width."""

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C,)."""
        (x,) = inputs
        channels, _, _ = _maps(x)
        return emitter.function(torch.mean, (x, (2, 3)), (channels,))


@dataclass(frozen=True)
class GlobalMaxPool(Op):
    """Largest value over height and width."""

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C,)."""
        (x,) = inputs
        channels, _, _ = _maps(x)
        # Not adaptive_max_pool2d: its backward adds atomically on GPUs, so that runs would not repeat bit for bit.
        return emitter.function(torch.amax, (x, (2, 3)), (channels,))


@dataclass(frozen=True)
class Flatten(Op):
    """All values of a sample in one row."""

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C * H * W,)."""
        (x,) = inputs
        return emitter.function(torch.flatten, (x, 1), (math.prod(x.shape),))


@dataclass(frozen=True)
class ActivationOp(Op):
    """A non-linearity by itself."""

    kind: Activation

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        return _activate(emitter, emitter.value(x.node, x.shape), self.kind)


@dataclass(frozen=True)
class BatchNorm(Op):
    """Batch norm of feature maps or of flat features."""

    momentum: Annotated[float, Range(0, 1)] = 0.1
    eps: Annotated[float, Range(1e-12, 1)] = 1e-5

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) or (F,), kept."""
        (x,) = inputs
        kind = nn.BatchNorm1d if len(x.shape) == 1 else nn.BatchNorm2d
        return emitter.module(kind(x.shape[0], eps=self.eps, momentum=self.momentum), x, x.shape)


@dataclass(frozen=True)
class Dropout(Op):
    """Zeroes a share `p` of the values while training."""

    p: Annotated[float, Range(0, 1)] = 0.5

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        # A module, not a function: the graph would freeze the function's `training` flag.
        return emitter.module(nn.Dropout(self.p), x, x.shape)


@dataclass(frozen=True)
class Sum(Op):
    """Residual link: adds its inputs, then the activation if there is one."""

    many: ClassVar[bool] = True
    activation: Activation = "none"

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Equal shapes, kept."""
        total = inputs[0]
        for x in inputs[1:]:
            if x.shape != inputs[0].shape:
                raise FitError(f"needs equal shapes, got {inputs[0]} and {x}")
            total = emitter.function(operator.add, (total, x), x.shape)
        return _activate(emitter, total, self.activation)


@dataclass(frozen=True)
class Concat(Op):
    """Dense link: puts its inputs one behind the other along the channels."""

    many: ClassVar[bool] = True

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C1, H, W), (C2, H, W) … to (C1 + C2 + …, H, W); likewise flat features."""
        for x in inputs[1:]:
            if x.shape[1:] != inputs[0].shape[1:]:
                raise FitError(f"needs equal height and width, got {inputs[0]} and {x}")
        shape = (sum(x.shape[0] for x in inputs), *inputs[0].shape[1:])
        return emitter.function(torch.cat, (list(inputs), 1), shape)


@dataclass(frozen=True)
class PixelUnshuffle(Op):
    """Space to depth: each square of `factor` by `factor` pixels becomes channels."""

    factor: Annotated[int, Range(2, 64)] = 2

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C * factor², H / factor, W / factor)."""
        (x,) = inputs
        channels, height, width = _maps(x)
        if height % self.factor or width % self.factor:
            parity = "even" if self.factor == 2 else f"multiples of {self.factor}"
            raise FitError(f"needs height and width that are {parity}, got {x}")
        shape = (channels * self.factor**2, height // self.factor, width // self.factor)
        return emitter.function(F.pixel_unshuffle, (x, self.factor), shape)


@dataclass(frozen=True)
class Scale(Op):
    """Multiplies by a constant, e.g. the logits by 0.125."""

    by: Annotated[float, Range(-1e6, 1e6)]

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        return emitter.function(operator.mul, (x, self.by), x.shape)


@dataclass(frozen=True)
class Identity(Op):
    """A name for its input; costs nothing at run time."""

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        return emitter.value(x.node, x.shape)


OPS: Mapping[str, type[Op]] = MappingProxyType(
    {
        "conv": Conv,
        "whiten": Whiten,
        "linear": Linear,
        "max_pool": MaxPool,
        "avg_pool": AvgPool,
        "global_avg_pool": GlobalAvgPool,
        "global_max_pool": GlobalMaxPool,
        "flatten": Flatten,
        "activation": ActivationOp,
        "batch_norm": BatchNorm,
        "dropout": Dropout,
        "sum": Sum,
        "concat": Concat,
        "pixel_unshuffle": PixelUnshuffle,
        "scale": Scale,
        "identity": Identity,
    }
)
