"""The two gates of HCGNet's modules (Yang 2020, arXiv 1908.09699); the rest of a module is conv, sum and concat."""

from dataclasses import dataclass
from typing import ClassVar

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.layers.gates import ForgetGate, UpdateGate
from deepcv.nn.ops.op import Count, Op, maps


@dataclass(frozen=True)
class ForgetGateOp(Op):
    """Each channel times a share from 0 to 1, found from the global context in channels / `reduction` features."""

    reduction: Count = 2

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W), kept."""
        (x,) = inputs
        return emitter.module(ForgetGate(x.shape[0], _hidden(x, self.reduction)), x, x.shape)


@dataclass(frozen=True)
class UpdateGateOp(Op):
    """Mixes its inputs channel by channel; the shares, which add up to 1, come from the global context of their sum."""

    many: ClassVar[bool] = True
    reduction: Count = 2

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Equal shapes (C, H, W), kept."""
        first = inputs[0]
        for x in inputs[1:]:
            if x.shape != first.shape:
                raise FitError(f"needs equal shapes, got {first} and {x}")
        hidden = _hidden(first, self.reduction)
        return emitter.module(UpdateGate(first.shape[0], len(inputs), hidden), inputs, first.shape)


def _hidden(x: Value, reduction: int) -> int:
    channels, _, _ = maps(x)
    if channels < reduction:
        raise FitError(f"reduction: {reduction} leaves nothing of the channels of {x}")
    return channels // reduction
