"""Fully connected layers."""

from dataclasses import dataclass

from torch import nn

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.ops.op import Activation, Count, Op, activate


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
        return activate(emitter, x, self.activation)
