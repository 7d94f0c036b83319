"""Links: several values become one."""

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.ops.op import Activation, Op, activate


@dataclass(frozen=True)
class Sum(Op):
    """Residual link: adds its inputs, then the activation if there is one."""

    many: ClassVar[bool] = True
    activation: Activation = "none"

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Equal shapes, kept."""
        return activate(emitter, added(emitter, inputs), self.activation)


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


def added(emitter: Emitter, values: tuple[Value, ...]) -> Value:
    """The sum of values of equal shapes, from the first to the last."""
    total = values[0]
    for value in values[1:]:
        if value.shape != values[0].shape:
            raise FitError(f"needs equal shapes, got {values[0]} and {value}")
        total = emitter.function(operator.add, (total, value), value.shape)
    return total
