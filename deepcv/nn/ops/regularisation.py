"""Layers that act in training only."""

from dataclasses import dataclass

from torch import nn

from deepcv.nn.emitter import Emitter, Value
from deepcv.nn.ops.op import Op, Share


@dataclass(frozen=True)
class Dropout(Op):
    """Zeroes a share `p` of the values while training."""

    p: Share = 0.5

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        # A module, not a function: the graph would freeze the function's `training` flag.
        return emitter.module(nn.Dropout(self.p), x, x.shape)
