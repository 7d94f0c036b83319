"""Non-linearities by themselves."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.layers.regularisation import RandomSlope
from deepcv.nn.ops.op import ACTIVATIONS, Activation, Op, Range, activate, features

_SOFT = MappingProxyType({"softmax": torch.softmax, "log_softmax": torch.log_softmax})
# Key to the kinds that take it, and what torch calls it there.
_KEYS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "slope": {"leaky_relu": "negative_slope", "prelu": "init"},
        "alpha": {"elu": "alpha", "celu": "alpha"},
        "per_channel": {"prelu": "num_parameters"},
        "approximate": {"gelu": "approximate"},
        "beta": {"softplus": "beta"},
        "threshold": {"softplus": "threshold", "hardshrink": "lambd", "softshrink": "lambd", "threshold": "threshold"},
        "value": {"threshold": "value"},
        "low": {"hardtanh": "min_val", "rrelu": "lower"},
        "high": {"hardtanh": "max_val", "rrelu": "upper"},
    }
)
Bound = Annotated[float, Range(-1e6, 1e6)]


@dataclass(frozen=True)
class ActivationOp(Op):
    """A non-linearity by itself; `softmax` and `log_softmax` are over the channels of maps, over the features of all else.

    `slope` is that of `leaky_relu` below zero (0.01), and that from which `prelu` starts (0.25); `alpha` is that of `elu` and
    `celu` (1). `per_channel` gives `prelu` a weight for each channel instead of one. `approximate: tanh` is the gelu of BERT and
    GPT-2. `beta` is that of `softplus` (1), which is its input above `threshold` / `beta` (20); `hardshrink` and `softshrink`
    give zero from -`threshold` to it (0.5), `threshold` gives `value` (0) up to it (0). `low` and `high` are the bounds of
    `hardtanh` (-1, 1), and those of the slope of `rrelu` (1/8, 1/3), drawn for each value while training (Xu 2015, arXiv
    1505.00853).
    """

    inherits = MappingProxyType({"kind": "activation"})
    kind: Literal[Activation, "softmax", "log_softmax", "rrelu", "threshold"]
    _: KW_ONLY
    slope: Annotated[float, Range(-1e3, 1e3)] | None = None
    alpha: Annotated[float, Range(1e-6, 1e3)] | None = None
    per_channel: bool = False
    approximate: Literal["tanh"] | None = None
    beta: Annotated[float, Range(1e-6, 1e3)] | None = None
    threshold: Bound | None = None
    value: Bound | None = None
    low: Bound | None = None
    high: Bound | None = None

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        x = emitter.value(x.node, x.shape)
        given = self._given()
        if self.kind in _SOFT:
            return emitter.function(_SOFT[self.kind], (x, features(x)[1]), x.shape)
        if self.kind == "prelu":
            return self._learned(emitter, x)
        if self.kind == "rrelu":
            return emitter.module(RandomSlope(**given), x, x.shape)
        if self.kind == "threshold":
            return emitter.function(F.threshold, (x,), x.shape, **{"threshold": 0.0, "value": 0.0, **given})
        if given:
            return emitter.function(ACTIVATIONS[self.kind], (x,), x.shape, **given)
        return activate(emitter, x, self.kind)

    def _given(self) -> dict[str, Any]:
        """The keys that the file gives, by torch's names; a FitError for one of another kind, or bounds the wrong way round."""
        given = {}
        for key, kinds in _KEYS.items():
            value = getattr(self, key)
            if value is None or value is False:  # 0.0 == False
                continue
            if self.kind not in kinds:
                raise FitError(f"{key} is for kind: {' and '.join(kinds)}, got kind: {self.kind}")
            given[kinds[self.kind]] = value
        low, high = (-1.0, 1.0) if self.kind == "hardtanh" else (1 / 8, 1 / 3)
        low, high = low if self.low is None else self.low, high if self.high is None else self.high
        if low >= high:
            raise FitError(f"low must be less than high, got low: {low:g}, high: {high:g}")
        if self.kind.endswith("shrink") and (self.threshold or 0) < 0:
            raise FitError(f"threshold: {self.threshold:g} must not be negative")
        return given

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
