"""Non-linearities by themselves."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch

from deepcv.nn.emitter import Emitter, Value
from deepcv.nn.ops.op import Activation, Op, activate, features


@dataclass(frozen=True)
class ActivationOp(Op):
    """A non-linearity by itself; `softmax` is over the channels of maps, over the features of all else."""

    inherits = MappingProxyType({"kind": "activation"})
    kind: Literal[Activation, "softmax"]

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        x = emitter.value(x.node, x.shape)
        if self.kind == "softmax":
            return emitter.function(torch.softmax, (x, features(x)[1]), x.shape)
        return activate(emitter, x, self.kind, part="")
