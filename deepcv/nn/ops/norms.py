"""Norms."""

from dataclasses import dataclass
from typing import Annotated

from torch import nn

from deepcv.nn.emitter import Emitter, Value
from deepcv.nn.ops.op import Op, Range


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
