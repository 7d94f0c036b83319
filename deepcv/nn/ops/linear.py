"""Fully connected layers."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

from torch import nn

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.init import Init
from deepcv.nn.layers.bilinear import Bilinear as BilinearLayer
from deepcv.nn.ops.op import Activation, Count, Op, Share
from deepcv.nn.ops.order import surrounded
from deepcv.nn.ops.weights import Constant, begin


@dataclass(frozen=True)
class Linear(Op):
    """Fully connected layer, on flat features or on each token; then norm, activation and dropout where asked for.

    It inherits none of the `defaults`: mostly it is a head, which has neither norm nor activation.
    Its weights are `id.weight` and `id.bias`; where the node has further modules, `id.linear.weight` and so on.
    """

    features: Count
    bias: bool = True
    activation: Activation = "none"
    norm: Literal["batch", "layer", "rms", "layer_mean_batch", "none"] = "none"
    dropout: Share = 0.0
    init: Init = "torch"
    init_value: Constant = 0.0
    spectral_norm: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(F,) to (features,), or (T, F) to (T, features)."""
        (x,) = inputs
        if len(x.shape) > 2:
            raise FitError(
                f"needs flat features (F,) or tokens (T, F), got {x}: put flatten or global_avg_pool before it"
            )
        layer = nn.Linear(x.shape[-1], self.features, bias=self.bias)
        several = self.norm != "none" or self.activation == "prelu" or self.dropout > 0
        begun = begin(layer, self.init, self.init_value, "torch", self.spectral_norm)
        shape, part = (*x.shape[:-1], self.features), "linear" if several else ""
        return surrounded(
            emitter, x, lambda x: emitter.module(layer, x, shape, part, begun), self.norm, self.activation,
            dropout=self.dropout,
        )  # fmt: skip


@dataclass(frozen=True)
class Bilinear(Op):
    """Each feature a product of two inputs and a matrix of its own, x₁ᵀ A x₂ + b; on flat features or token by token."""

    many: ClassVar[bool] = True
    pair: ClassVar[bool] = True
    features: Count
    bias: bool = True
    init: Init = "torch"
    init_value: Constant = 0.0
    _: KW_ONLY
    spectral_norm: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(F1,) and (F2,) to (features,), or (T, F1) and (T, F2) to (T, features)."""
        if len(inputs) != 2:
            raise FitError(f"takes two inputs, got {len(inputs)}")
        x, other = inputs
        if len(x.shape) > 2 or len(other.shape) != len(x.shape) or other.shape[:-1] != x.shape[:-1]:
            raise FitError(f"needs flat features or equally many tokens, got {x} and {other}")
        layer = BilinearLayer(x.shape[-1], other.shape[-1], self.features, bias=self.bias)
        begun = begin(layer, self.init, self.init_value, "torch", self.spectral_norm)
        return emitter.module(layer, inputs, (*x.shape[:-1], self.features), start=begun)
