"""Pooling."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.ops.op import Op, Padding, Side, maps, slide


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
        return emitter.function(type(self).function, (x, *window), (x.shape[0], *slide(x, *window)))


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
        return emitter.function(torch.amax, (x, (2, 3)), (channels,))
