"""Values rescaled, named and framed, without weights."""

import operator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch.nn import functional as F

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.layers.tensors import add_coordinates
from deepcv.nn.ops.op import Op, Padding, Range, features, maps

Move = Annotated[int, Range(-1_024, 1_024)]


@dataclass(frozen=True)
class Scale(Op):
    """Multiplies by a constant, e.g. the logits by 0.125."""

    by: Annotated[float, Range(-1e6, 1e6)]

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        return emitter.function(operator.mul, (x, self.by), x.shape)


@dataclass(frozen=True)
class Normalise(Op):
    """Divides by the Euclidean length, to 1: over the channels of each pixel of maps, over the features of all else.

    So are embeddings whose angles a loss compares. Lengths below `eps` count as `eps`.
    """

    eps: Annotated[float, Range(1e-12, 1)] = 1e-12

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        return emitter.function(F.normalize, (x,), x.shape, dim=features(x)[1], eps=self.eps)


@dataclass(frozen=True)
class Identity(Op):
    """A name for its input; costs nothing at run time."""

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        return emitter.value(x.node, x.shape)


@dataclass(frozen=True)
class Detach(Op):
    """The same values, from which no gradient goes back: what is learned after it teaches nothing before it, as a probe should."""

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        return emitter.function(torch.detach, (x,), x.shape)


@dataclass(frozen=True)
class Coordinates(Op):
    """Adds two channels, row and column from -1 to 1; with `radius` a third, the distance from the centre (CoordConv, Liu 2018)."""

    radius: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C + 2, H, W), or (C + 3, H, W)."""
        (x,) = inputs
        channels, height, width = maps(x)
        if min(height, width) < 2:
            raise FitError(f"needs two rows and two columns, got {x}")
        return emitter.function(add_coordinates, (x, self.radius), (channels + 2 + self.radius, height, width))


@dataclass(frozen=True)
class Pad(Op):
    """A border around maps; `mode: constant` fills it with `value`."""

    left: Padding = 0
    right: Padding = 0
    top: Padding = 0
    bottom: Padding = 0
    mode: Literal["constant", "reflect", "replicate", "circular"] = "constant"
    value: Annotated[float, Range(-1e6, 1e6)] = 0.0

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C, top + H + bottom, left + W + right)."""
        (x,) = inputs
        channels, height, width = maps(x)
        if self.mode in ("reflect", "circular"):
            less = self.mode == "reflect"
            if max(self.top, self.bottom) > height - less or max(self.left, self.right) > width - less:
                raise FitError(f"a border by {self.mode} must be smaller than the maps, got {x}")
        border = (self.left, self.right, self.top, self.bottom)
        shape = (channels, self.top + height + self.bottom, self.left + width + self.right)
        options = {"value": self.value} if self.mode == "constant" else {}
        return emitter.function(F.pad, (x, border), shape, mode=self.mode, **options)


@dataclass(frozen=True)
class Crop(Op):
    """Maps without so many pixels of each side."""

    left: Padding = 0
    right: Padding = 0
    top: Padding = 0
    bottom: Padding = 0

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C, H - top - bottom, W - left - right)."""
        (x,) = inputs
        channels, height, width = maps(x)
        shape = (channels, height - self.top - self.bottom, width - self.left - self.right)
        if min(shape) < 1:
            raise FitError(f"nothing is left of {x}")
        rows, columns = slice(self.top, -self.bottom or None), slice(self.left, -self.right or None)
        return emitter.function(operator.getitem, (x, (slice(None), slice(None), rows, columns)), shape)


@dataclass(frozen=True)
class Shift(Op):
    """Maps moved by so many pixels, to the left or up where negative; zeros move in."""

    right: Move = 0
    down: Move = 0

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W), kept."""
        (x,) = inputs
        _, height, width = maps(x)
        if abs(self.right) >= width or abs(self.down) >= height:
            raise FitError(f"a shift by ({self.down}, {self.right}) leaves nothing of {x}")
        return emitter.function(F.pad, (x, (self.right, -self.right, self.down, -self.down)), x.shape)
