"""Values moved and rescaled, without weights."""

import math
import operator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch.nn import functional as F

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.ops.op import Op, Range, maps


@dataclass(frozen=True)
class Flatten(Op):
    """All values of a sample in one row."""

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C * H * W,)."""
        (x,) = inputs
        return emitter.function(torch.flatten, (x, 1), (math.prod(x.shape),))


@dataclass(frozen=True)
class PixelUnshuffle(Op):
    """Space to depth: each square of `factor` by `factor` pixels becomes channels."""

    factor: Annotated[int, Range(2, 64)] = 2

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C * factor², H / factor, W / factor)."""
        (x,) = inputs
        channels, height, width = maps(x)
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
