"""Non-linearities by themselves."""

from dataclasses import KW_ONLY, dataclass
from types import MappingProxyType
from typing import Annotated, Literal

import torch
from torch import nn
from torch.nn import functional as F

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.ops.op import ACTIVATIONS, Activation, Op, Range, activate, features

_SOFT = MappingProxyType({"softmax": torch.softmax, "log_softmax": torch.log_softmax})
_KEYS = (("slope", ("leaky_relu", "prelu")), ("alpha", ("elu", "celu")), ("per_channel", ("prelu",)))


@dataclass(frozen=True)
class ActivationOp(Op):
    """A non-linearity by itself; `softmax` and `log_softmax` are over the channels of maps, over the features of all else.

    `slope` is that of `leaky_relu` below zero (0.01), and that from which `prelu` starts (0.25); `alpha` is that of `elu` and
    `celu` (1). `per_channel` gives `prelu` a weight for each channel instead of one.
    """

    inherits = MappingProxyType({"kind": "activation"})
    kind: Literal[Activation, "softmax", "log_softmax"]
    _: KW_ONLY
    slope: Annotated[float, Range(-1e3, 1e3)] | None = None
    alpha: Annotated[float, Range(1e-6, 1e3)] | None = None
    per_channel: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        x = emitter.value(x.node, x.shape)
        for key, kinds in _KEYS:
            value = getattr(self, key)
            if value is not None and value is not False and self.kind not in kinds:  # 0.0 == False
                raise FitError(f"{key} is for kind: {' and '.join(kinds)}, got kind: {self.kind}")
        if self.kind in _SOFT:
            return emitter.function(_SOFT[self.kind], (x, features(x)[1]), x.shape)
        if self.kind == "prelu":
            return self._learned(emitter, x)
        if self.slope is not None or self.alpha is not None:
            parameter = self.alpha if self.slope is None else self.slope
            return emitter.function(ACTIVATIONS[self.kind], (x, parameter), x.shape)
        return activate(emitter, x, self.kind)

    def _learned(self, emitter: Emitter, x: Value) -> Value:
        if self.per_channel and len(x.shape) == 2:
            raise FitError(f"per_channel is for feature maps (C, H, W) and flat features (F,), got {x}")
        layer = nn.PReLU(x.shape[0] if self.per_channel else 1, 0.25 if self.slope is None else self.slope)
        return emitter.module(layer, x, x.shape)


@dataclass(frozen=True)
class Glu(Op):
    """Gated linear unit: the first half of the channels times the sigmoid of the second (Dauphin 2017, arXiv 1612.08083)."""

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C / 2, H, W), (F,) to (F / 2,), (T, D) to (T, D / 2)."""
        (x,) = inputs
        count, axis = features(x)
        if count % 2:
            raise FitError(f"needs an even number of channels or features, got {x}")
        shape = (x.shape[0], count // 2) if axis == 2 else (count // 2, *x.shape[1:])
        return emitter.function(F.glu, (x, axis), shape)
