"""Links: several values become one."""

import operator
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from torch.nn import functional as F

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.init import Init
from deepcv.nn.ops.adapters import Adapt, Begin, adapted
from deepcv.nn.ops.op import Activation, Op, Range, activate, features
from deepcv.nn.ops.weights import Constant, begin

Weight = Annotated[float, Range(-1e6, 1e6)]


@dataclass(frozen=True)
class Sum(Op):
    """Residual link: adds its inputs, then the activation if there is one; `scale` weighs all inputs but the first.

    `adapt` says what happens to an input that has not the shape of the first: `error`, `resize`, or `project` (channels too)
    by a 1×1 convolution or, of flat features, a linear layer, which start as `init` says, by default in He's and in torch's
    way.
    """

    many: ClassVar[bool] = True
    activation: Activation = "none"
    scale: Weight = 1.0
    adapt: Adapt = "error"
    _: KW_ONLY
    init: Init | None = None
    init_value: Constant = 0.0
    spectral_norm: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Equal shapes, kept."""
        inputs = adapted(emitter, inputs, self.adapt, _projections(self))
        return activate(emitter, added(emitter, inputs, self.scale), self.activation)


@dataclass(frozen=True)
class Mean(Op):
    """Mean of its inputs, then the activation if there is one; `scale`, `adapt` and `init` as of `sum`."""

    many: ClassVar[bool] = True
    activation: Activation = "none"
    adapt: Adapt = "error"
    _: KW_ONLY
    scale: Weight = 1.0
    init: Init | None = None
    init_value: Constant = 0.0
    spectral_norm: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Equal shapes, kept."""
        total = added(emitter, adapted(emitter, inputs, self.adapt, _projections(self)), self.scale)
        mean = emitter.function(operator.truediv, (total, len(inputs)), total.shape)
        return activate(emitter, mean, self.activation)


@dataclass(frozen=True)
class Max(Op):
    """Largest value of its inputs, place by place (maxout, Goodfellow 2013, arXiv 1302.4389), then the activation if there is one."""

    many: ClassVar[bool] = True
    activation: Activation = "none"
    adapt: Literal["error", "resize"] = "error"

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Equal shapes, kept."""
        inputs = adapted(emitter, inputs, self.adapt)
        largest = inputs[0]
        for x in inputs[1:]:
            _equal(inputs[0], x)
            largest = emitter.function(torch.maximum, (largest, x), x.shape)
        return activate(emitter, largest, self.activation)


@dataclass(frozen=True)
class AbsoluteDifference(Op):
    """|a - b| of two inputs, place by place: how far two images' features lie apart, whichever comes first (Koch 2015)."""

    many: ClassVar[bool] = True
    pair: ClassVar[bool] = True

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Equal shapes, kept."""
        a, b = _two(inputs)
        difference = emitter.function(operator.sub, (a, b), a.shape)
        return emitter.function(torch.abs, (difference,), a.shape)


@dataclass(frozen=True)
class CosineSimilarity(Op):
    """Cosine of the angle between two inputs, from -1 to 1: over the channels of each pixel, over the features of all else."""

    many: ClassVar[bool] = True
    pair: ClassVar[bool] = True

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(F,) to (1,), (C, H, W) to (1, H, W), (T, D) to (T, 1)."""
        a, b = _two(inputs)
        _, axis = features(a)
        flat = emitter.function(F.cosine_similarity, (a, b, axis), (*a.shape[: axis - 1], *a.shape[axis:]))
        return emitter.function(torch.unsqueeze, (flat, axis), (*a.shape[: axis - 1], 1, *a.shape[axis:]))


@dataclass(frozen=True)
class Multiply(Op):
    """Element-wise product: gates. Flat features (C,) gate the channels of maps (C, H, W); sizes of 1 are spread."""

    many: ClassVar[bool] = True
    activation: Activation = "none"

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """The first input's shape, kept."""
        product = inputs[0]
        for x in inputs[1:]:
            gate = x
            if len(x.shape) == 1 and len(product.shape) == 3:
                gate = emitter.function(torch.unflatten, (x, 1, (x.shape[0], 1, 1)), (*x.shape, 1, 1))
            pairs = zip(product.shape, gate.shape, strict=False)
            if len(gate.shape) != len(product.shape) or any(b not in (a, 1) for a, b in pairs):
                raise FitError(f"needs shapes equal to {inputs[0]}, sizes of 1, or a number per channel, got {x}")
            product = emitter.function(operator.mul, (product, gate), product.shape)
        return activate(emitter, product, self.activation)


@dataclass(frozen=True)
class Concat(Op):
    """Dense link: puts its inputs one behind the other along the channels, or tokens along their features.

    `scale` multiplies all inputs but the first.
    """

    many: ClassVar[bool] = True
    adapt: Literal["error", "resize"] = "error"
    _: KW_ONLY
    scale: Weight = 1.0

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C1, H, W), (C2, H, W) … to (C1 + C2 + …, H, W); likewise flat features, and (T, D1), (T, D2) to (T, D1 + D2)."""
        inputs = adapted(emitter, inputs, self.adapt)
        for x in inputs[1:]:
            if len(x.shape) == len(inputs[0].shape) == 2 and x.shape[0] != inputs[0].shape[0]:
                raise FitError(f"needs equally many tokens, got {inputs[0]} and {x}")
            if len(x.shape) != len(inputs[0].shape) or (len(x.shape) == 3 and x.shape[1:] != inputs[0].shape[1:]):
                raise FitError(f"needs equal height and width, got {inputs[0]} and {x}")
        if self.scale != 1:
            scaled = (emitter.function(operator.mul, (x, self.scale), x.shape) for x in inputs[1:])
            inputs = (inputs[0], *scaled)
        if len(inputs[0].shape) == 2:
            return emitter.function(torch.cat, (list(inputs), 2), (inputs[0].shape[0], sum(x.shape[1] for x in inputs)))
        shape = (sum(x.shape[0] for x in inputs), *inputs[0].shape[1:])
        return emitter.function(torch.cat, (list(inputs), 1), shape)


def _projections(op: Sum | Mean) -> Begin:
    """How the projections of an op start; its keys for that are an error where it makes none."""
    if op.adapt != "project" and (op.init is not None or op.init_value != 0 or op.spectral_norm):
        raise FitError(f"init, init_value and spectral_norm are for adapt: project, got adapt: {op.adapt}")
    return partial(begin, init=op.init, value=op.init_value, spectral_norm=op.spectral_norm)


def _two(inputs: tuple[Value, ...]) -> tuple[Value, Value]:
    if len(inputs) != 2:
        raise FitError(f"takes two inputs, got {len(inputs)}")
    _equal(*inputs)
    return inputs[0], inputs[1]


def _equal(first: Value, other: Value) -> None:
    if other.shape != first.shape:
        raise FitError(f"needs equal shapes, got {first} and {other}")


def added(emitter: Emitter, values: tuple[Value, ...], scale: float = 1.0) -> Value:
    """The sum of values of equal shapes, from the first to the last; all but the first count `scale` times."""
    total = values[0]
    for value in values[1:]:
        _equal(values[0], value)
        if scale == 1:
            total = emitter.function(operator.add, (total, value), value.shape)
        else:
            total = emitter.function(torch.add, (total, value), value.shape, alpha=scale)
    return total
