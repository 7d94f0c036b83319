"""Up- and down-sampling without weights; with weights there are `conv`, `transposed_conv` and the poolings."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, ClassVar

from torch.nn import functional as F

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.layers.resize import Mode
from deepcv.nn.ops.adapters import resized
from deepcv.nn.ops.op import Op, Range, Side, maps, pair

Factor = Annotated[int, Range(2, 64)]


@dataclass(frozen=True)
class Upsample(Op):
    """Larger maps, by a whole `factor`, by any `scale`, or to `height` and `width`; pixel centres are aligned, not corners.

    A scale below 1 makes them smaller, without a low-pass filter: `avg_pool` and `blur_pool` have one.
    """

    factor: Factor = 2
    mode: Mode = "nearest"
    _: KW_ONLY
    scale: Annotated[float, Range(1 / 64, 64)] | None = None
    height: Side | None = None
    width: Side | None = None

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C, H * factor, W * factor), rounded down with `scale`; to (C, height, width) where these are given."""
        (x,) = inputs
        channels, *sides = maps(x)
        corners = {} if self.mode == "nearest" else {"align_corners": False}
        if self.width is not None and self.height is None:
            raise FitError(f"width: {self.width} needs a height too")
        if self.height is not None:
            size = pair(self.height, self.width)
            return emitter.function(F.interpolate, (x,), (channels, *size), size=size, mode=self.mode, **corners)
        factor = float(self.factor) if self.scale is None else self.scale
        shape = (channels, *(math.floor(side * factor) for side in sides))
        if min(shape) < 1:
            raise FitError(f"scale: {factor:g} leaves nothing of {x}")
        return emitter.function(F.interpolate, (x,), shape, scale_factor=factor, mode=self.mode, **corners)


@dataclass(frozen=True)
class ResizeLike(Op):
    """The first input at the height and width of the second, whatever they are at run time."""

    many: ClassVar[bool] = True
    pair: ClassVar[bool] = True
    mode: Mode = "nearest"

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) and (D, H', W') to (C, H', W')."""
        if len(inputs) != 2:
            raise FitError(f"takes two inputs, the maps and those whose size they take, got {len(inputs)}")
        x, like = inputs
        return resized(emitter, x, like, self.mode)


@dataclass(frozen=True)
class PixelShuffle(Op):
    """Depth to space: `factor`² channels become a square of pixels (Shi 2016)."""

    factor: Factor = 2

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C / factor², H * factor, W * factor)."""
        (x,) = inputs
        channels, height, width = maps(x)
        if channels % self.factor**2:
            raise FitError(f"needs channels that are a multiple of {self.factor**2}, got {x}")
        shape = (channels // self.factor**2, height * self.factor, width * self.factor)
        return emitter.function(F.pixel_shuffle, (x, self.factor), shape)


@dataclass(frozen=True)
class PixelUnshuffle(Op):
    """Space to depth: each square of `factor` by `factor` pixels becomes channels."""

    factor: Factor = 2

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C * factor², H / factor, W / factor)."""
        (x,) = inputs
        channels, height, width = maps(x)
        if height % self.factor or width % self.factor:
            parity = "even" if self.factor == 2 else f"multiples of {self.factor}"
            raise FitError(f"needs height and width that are {parity}, got {x}")
        shape = (channels * self.factor**2, height // self.factor, width // self.factor)
        return emitter.function(F.pixel_unshuffle, (x, self.factor), shape)
