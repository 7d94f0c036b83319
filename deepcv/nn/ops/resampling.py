"""Up- and down-sampling without weights; with weights there are `conv`, `transposed_conv` and the poolings."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch.nn import functional as F

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.layers.tensors import resize_like
from deepcv.nn.ops.op import Op, Range, maps

Mode = Literal["nearest", "bilinear", "bicubic"]
Factor = Annotated[int, Range(2, 64)]


@dataclass(frozen=True)
class Upsample(Op):
    """Larger maps, by a whole factor; pixel centres are aligned, not corners."""

    factor: Factor = 2
    mode: Mode = "nearest"

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C, H * factor, W * factor)."""
        (x,) = inputs
        channels, height, width = maps(x)
        shape = (channels, height * self.factor, width * self.factor)
        corners = {} if self.mode == "nearest" else {"align_corners": False}
        factor = float(self.factor)
        return emitter.function(F.interpolate, (x,), shape, scale_factor=factor, mode=self.mode, **corners)


@dataclass(frozen=True)
class ResizeLike(Op):
    """The first input at the height and width of the second, whatever they are at run time."""

    many: ClassVar[bool] = True
    mode: Mode = "nearest"

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) and (D, H', W') to (C, H', W')."""
        if len(inputs) != 2:
            raise FitError(f"takes two inputs, the maps and those whose size they take, got {len(inputs)}")
        x, like = inputs
        channels, _, _ = maps(x)
        _, height, width = maps(like)
        return emitter.function(resize_like, (x, like, self.mode), (channels, height, width))


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
