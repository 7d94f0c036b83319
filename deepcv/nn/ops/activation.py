"""Non-linearities by themselves."""

from dataclasses import dataclass
from types import MappingProxyType

from deepcv.nn.emitter import Emitter, Value
from deepcv.nn.ops.op import Activation, Op, activate


@dataclass(frozen=True)
class ActivationOp(Op):
    """A non-linearity by itself."""

    inherits = MappingProxyType({"kind": "activation"})
    kind: Activation

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        return activate(emitter, emitter.value(x.node, x.shape), self.kind)
