"""Pooling."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.layers.pooling import AdaptiveMaxPool2d, BlurPool2d, GeneralisedMean
from deepcv.nn.layers.tensors import largest
from deepcv.nn.ops.op import Op, Padding, Range, Side, maps, mirrored, pair, shown, slide


@dataclass(frozen=True)
class _Pool(Op):
    function: ClassVar[Callable[..., Tensor]]
    kernel: Side = 2
    stride: Side | None = None
    padding: Padding = 0
    ceil_mode: bool = False
    _: KW_ONLY
    kernel_width: Side | None = None
    stride_width: Side | None = None
    padding_width: Padding | None = None

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C, H', W')."""
        (x,) = inputs
        kernel, stride = _window(self)
        padding = pair(self.padding, self.padding_width)
        if padding[0] > kernel[0] // 2 or padding[1] > kernel[1] // 2:
            raise FitError(f"padding: {shown(padding)} is more than half of kernel: {shown(kernel)}")
        shape = (x.shape[0], *slide(x, self._extent(kernel), stride, padding, self.ceil_mode))
        return emitter.function(type(self).function, (x, kernel, stride, padding), shape, **self._options())

    def _extent(self, kernel: tuple[int, int]) -> tuple[int, int]:
        return kernel

    def _options(self) -> dict[str, Any]:
        return {"ceil_mode": True} if self.ceil_mode else {}


@dataclass(frozen=True)
class MaxPool(_Pool):
    """Largest value of each window; the stride defaults to the kernel.

    `ceil_mode` lets a last window hang over the far edge; `kernel_width`, `stride_width`, … are for what is not square.
    """

    function = F.max_pool2d
    _: KW_ONLY
    dilation: Side = 1
    dilation_width: Side | None = None

    def _extent(self, kernel: tuple[int, int]) -> tuple[int, int]:
        down, right = pair(self.dilation, self.dilation_width)
        return down * (kernel[0] - 1) + 1, right * (kernel[1] - 1) + 1

    def _options(self) -> dict[str, Any]:
        dilation = pair(self.dilation, self.dilation_width)
        return super()._options() | ({} if dilation == (1, 1) else {"dilation": dilation})


@dataclass(frozen=True)
class AvgPool(_Pool):
    """Mean of each window; the stride defaults to the kernel. Padding counts as zeros unless told otherwise.

    `ceil_mode` lets a last window hang over the far edge; `kernel_width`, `stride_width`, … are for what is not square.
    """

    function = F.avg_pool2d
    count_include_pad: bool = True

    def _options(self) -> dict[str, Any]:
        return super()._options() | ({} if self.count_include_pad else {"count_include_pad": False})


@dataclass(frozen=True)
class LpPool(Op):
    """The p-norm of each window: (sum |x|^p)^(1/p); the stride defaults to the kernel.

    torch's own leaves out the absolute value, which gives NaN for negative sums. With `ceil_mode` the part of a window that
    hangs over counts as the mean of the rest, as in torch. The gradient of a window of zeros is not defined.
    """

    p: Annotated[float, Range(1, 64)] = 2.0
    kernel: Side = 2
    stride: Side | None = None
    ceil_mode: bool = False
    _: KW_ONLY
    kernel_width: Side | None = None
    stride_width: Side | None = None

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C, H', W')."""
        (x,) = inputs
        kernel, stride = _window(self)
        shape = (x.shape[0], *slide(x, kernel, stride, 0, self.ceil_mode))
        x = emitter.function(torch.abs, (x,), x.shape)
        return emitter.function(F.lp_pool2d, (x, self.p, kernel, stride, self.ceil_mode), shape)


def _window(op: _Pool | LpPool) -> tuple[tuple[int, int], tuple[int, int]]:
    """Kernel and stride, height and width of each."""
    kernel = pair(op.kernel, op.kernel_width)
    return kernel, (op.stride or kernel[0], op.stride_width or op.stride or kernel[1])


@dataclass(frozen=True)
class BlurPool(Op):
    """Binomial low-pass filter, then every `stride`-th pixel (Zhang 2019): a strided layer without aliasing."""

    kernel: Annotated[int, Range(2, 9)] = 3
    stride: Side = 2

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C, ceil(H / stride), ceil(W / stride))."""
        (x,) = inputs
        channels, height, width = maps(x)
        mirrored(x, self.kernel // 2, "reflect")
        shape = (channels, -(-height // self.stride), -(-width // self.stride))
        return emitter.module(BlurPool2d(self.kernel, self.stride), x, shape)


@dataclass(frozen=True)
class _AdaptivePool(Op):
    height: Side = 1
    width: Side | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that come out."""
        return self.height, self.width or self.height


@dataclass(frozen=True)
class AdaptiveAvgPool(_AdaptivePool):
    """Mean of windows of about equal size, for an output of a fixed height and width; width defaults to height."""

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C, height, width)."""
        (x,) = inputs
        channels, _, _ = maps(x)
        return emitter.function(F.adaptive_avg_pool2d, (x, self.size), (channels, *self.size))


@dataclass(frozen=True)
class AdaptiveMaxPool(_AdaptivePool):
    """Largest value of windows of about equal size, for an output of a fixed height and width; width defaults to height.

    Its gradient on a GPU is not repeatable bit for bit.
    """

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C, height, width)."""
        (x,) = inputs
        channels, _, _ = maps(x)
        return emitter.module(AdaptiveMaxPool2d(self.size), x, (channels, *self.size))


@dataclass(frozen=True)
class GlobalAvgPool(Op):
    """Mean over height and width."""

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C,)."""
        (x,) = inputs
        channels, _, _ = maps(x)
        return emitter.function(torch.mean, (x, (2, 3)), (channels,))


@dataclass(frozen=True)
class GlobalMaxPool(Op):
    """Largest value over height and width."""

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C,)."""
        (x,) = inputs
        channels, _, _ = maps(x)
        # Not adaptive_max_pool2d: its backward adds atomically on GPUs, so that runs would not repeat bit for bit.
        return emitter.function(largest, (x, (2, 3)), (channels,))


@dataclass(frozen=True)
class GlobalGemPool(Op):
    """Generalised mean over height and width with a learned power that starts at `p` (Radenović 2018)."""

    p: Annotated[float, Range(0.1, 100)] = 3.0

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C,)."""
        (x,) = inputs
        channels, _, _ = maps(x)
        return emitter.module(GeneralisedMean(self.p), x, (channels,))
