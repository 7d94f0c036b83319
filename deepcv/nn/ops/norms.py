"""Norms, by themselves and as the `norm` of another op."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from torch import nn

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.init import zero_scale
from deepcv.nn.layers.norms import ChannelLayerNorm, ChannelRMSNorm, LayerMeanBatchNorm
from deepcv.nn.ops.op import Count, Op, Range, features, maps

Norm = Literal["batch", "layer", "instance", "group", "rms", "layer_mean_batch", "local_response", "none"]
WITHOUT_SHIFT = ("none", "rms", "local_response")  # a layer before one of these keeps its bias
Epsilon = Annotated[float, Range(1e-12, 1)]
Momentum = Annotated[float, Range(0, 1)]
_GROUPS = 32  # Wu and He 2018


def normalise(
    emitter: Emitter,
    x: Value,
    kind: str,
    groups: int | None = None,
    zero_init: bool = False,
    part: str = "norm",
) -> Value:
    """Apply a norm by its name in `norm`, with torch's defaults; `none` leaves the value as it is."""
    if kind == "none":
        if zero_init:
            raise FitError("zero_init is for a norm's scale, and there is no norm")
        return x
    if kind == "local_response" and zero_init:
        raise FitError("zero_init is for a norm's scale, and local response norm has none")
    layer = group_norm(x, groups) if kind == "group" else _NORMS[kind](x)
    return emitter.module(layer, x, x.shape, part, zero_scale if zero_init else None)


def batch_norm(x: Value, eps: float = 1e-5, momentum: float = 0.1) -> nn.Module:
    """Batch norm of maps or flat features."""
    if len(x.shape) == 2:
        raise FitError(f"batch norm needs feature maps (C, H, W) or flat features (F,), got {x}: use layer norm")
    kind = nn.BatchNorm1d if len(x.shape) == 1 else nn.BatchNorm2d
    return kind(x.shape[0], eps=eps, momentum=momentum)


def layer_norm(x: Value, eps: float = 1e-5) -> nn.Module:
    """Layer norm over the channels of each pixel, over the features of each token or of a flat sample."""
    kind = ChannelLayerNorm if len(x.shape) == 3 else nn.LayerNorm
    return kind(features(x)[0], eps=eps)


def instance_norm(x: Value, eps: float = 1e-5) -> nn.Module:
    """Instance norm of maps, with scale and shift."""
    channels, height, width = maps(x)
    if height * width == 1:
        raise FitError(f"instance norm needs more than one pixel, got {x}")
    return nn.InstanceNorm2d(channels, eps=eps, affine=True)


def group_norm(x: Value, groups: int | None, eps: float = 1e-5) -> nn.Module:
    """Group norm of maps; without a number of groups, as many of 32 as divide the channels (their common divisor)."""
    channels, _, _ = maps(x)
    if channels % (groups or 1):
        raise FitError(f"group norm: {groups} groups do not divide the channels of {x}")
    return nn.GroupNorm(groups or math.gcd(_GROUPS, channels), channels, eps=eps)


def rms_norm(x: Value, eps: float = 1e-6) -> nn.Module:
    """Root-mean-square norm over the same axis as layer norm."""
    kind = ChannelRMSNorm if len(x.shape) == 3 else nn.RMSNorm
    return kind(features(x)[0], eps=eps)


def layer_mean_batch_norm(x: Value, eps: float = 1e-5, momentum: float = 0.1) -> nn.Module:
    """Layer norm, then mean-only batch norm."""
    return LayerMeanBatchNorm(features(x)[0], eps, momentum)


def local_response_norm(x: Value, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> nn.Module:
    """Local response norm of maps over neighbouring channels."""
    maps(x)
    return nn.LocalResponseNorm(size, alpha, beta, k)


_NORMS: Mapping[str, Callable[[Value], nn.Module]] = MappingProxyType(
    {
        "batch": batch_norm,
        "layer": layer_norm,
        "instance": instance_norm,
        "rms": rms_norm,
        "layer_mean_batch": layer_mean_batch_norm,
        "local_response": local_response_norm,
    }
)


@dataclass(frozen=True)
class BatchNorm(Op):
    """Batch norm of feature maps or of flat features. `zero_init` starts its scale at 0, at the end of a residual branch."""

    momentum: Momentum = 0.1
    eps: Epsilon = 1e-5
    zero_init: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) or (F,), kept."""
        (x,) = inputs
        layer = batch_norm(x, self.eps, self.momentum)
        return emitter.module(layer, x, x.shape, start=zero_scale if self.zero_init else None)


@dataclass(frozen=True)
class LayerNorm(Op):
    """Layer norm: over the channels of each pixel of maps, over the features of each token or flat sample."""

    eps: Epsilon = 1e-5
    zero_init: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        return emitter.module(layer_norm(x, self.eps), x, x.shape, start=zero_scale if self.zero_init else None)


@dataclass(frozen=True)
class RMSNorm(Op):
    """Root-mean-square norm (Zhang and Sennrich 2019), over the same axis as layer norm; no mean, no shift."""

    eps: Epsilon = 1e-6
    zero_init: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        return emitter.module(rms_norm(x, self.eps), x, x.shape, start=zero_scale if self.zero_init else None)


@dataclass(frozen=True)
class InstanceNorm(Op):
    """Instance norm of feature maps: each channel of each sample by itself (Ulyanov 2016)."""

    eps: Epsilon = 1e-5
    zero_init: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W), kept."""
        (x,) = inputs
        return emitter.module(instance_norm(x, self.eps), x, x.shape, start=zero_scale if self.zero_init else None)


@dataclass(frozen=True)
class GroupNorm(Op):
    """Group norm of feature maps (Wu and He 2018); without `groups`, the greatest common divisor of 32 and the channels."""

    groups: Count | None = None
    eps: Epsilon = 1e-5
    zero_init: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W), kept."""
        (x,) = inputs
        layer = group_norm(x, self.groups, self.eps)
        return emitter.module(layer, x, x.shape, start=zero_scale if self.zero_init else None)


@dataclass(frozen=True)
class LayerMeanBatch(Op):
    """Layer norm, then mean-only batch norm (Salimans and Kingma 2016); the formula stands with the layer."""

    momentum: Momentum = 0.1
    eps: Epsilon = 1e-5
    zero_init: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        layer = layer_mean_batch_norm(x, self.eps, self.momentum)
        return emitter.module(layer, x, x.shape, start=zero_scale if self.zero_init else None)


@dataclass(frozen=True)
class LocalResponseNorm(Op):
    """Local response norm over `size` neighbouring channels (Krizhevsky 2012), with torch's defaults."""

    size: Annotated[int, Range(1, 1_024)] = 5
    alpha: Annotated[float, Range(0, 1e3)] = 1e-4
    beta: Annotated[float, Range(0, 10)] = 0.75
    k: Annotated[float, Range(0, 1e3)] = 1.0

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W), kept."""
        (x,) = inputs
        return emitter.module(local_response_norm(x, self.size, self.alpha, self.beta, self.k), x, x.shape)
