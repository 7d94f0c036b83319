"""The two gates of HCGNet's modules (Yang 2020, arXiv 1908.09699); the rest of a module is conv, sum and concat."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.init import Init
from deepcv.nn.layers.gates import ForgetGate, UpdateGate
from deepcv.nn.ops.op import Count, Op, maps
from deepcv.nn.ops.weights import Constant, begin


@dataclass(frozen=True)
class ForgetGateOp(Op):
    """Each channel times a share from 0 to 1, found from the global context in channels / `reduction` features.

    Without `init` the convolution starts in He's way and the linear layers in torch's.
    """

    reduction: Count = 2
    _: KW_ONLY
    init: Init | None = None
    init_value: Constant = 0.0
    spectral_norm: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W), kept."""
        (x,) = inputs
        layer = ForgetGate(x.shape[0], _hidden(x, self.reduction))
        begun = begin(layer, self.init, self.init_value, spectral_norm=self.spectral_norm)
        return emitter.module(layer, x, x.shape, start=begun)


@dataclass(frozen=True)
class UpdateGateOp(Op):
    """Mixes its inputs channel by channel; the shares, which add up to 1, come from the global context of their sum.

    `init` as of `forget_gate`.
    """

    many: ClassVar[bool] = True
    reduction: Count = 2
    _: KW_ONLY
    init: Init | None = None
    init_value: Constant = 0.0
    spectral_norm: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Equal shapes (C, H, W), kept."""
        first = inputs[0]
        for x in inputs[1:]:
            if x.shape != first.shape:
                raise FitError(f"needs equal shapes, got {first} and {x}")
        hidden = _hidden(first, self.reduction)
        layer = UpdateGate(first.shape[0], len(inputs), hidden)
        begun = begin(layer, self.init, self.init_value, spectral_norm=self.spectral_norm)
        return emitter.module(layer, inputs, first.shape, start=begun)


def _hidden(x: Value, reduction: int) -> int:
    channels, _, _ = maps(x)
    if channels < reduction:
        raise FitError(f"reduction: {reduction} leaves nothing of the channels of {x}")
    return channels // reduction
