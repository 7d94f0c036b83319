"""Layers that act in training only, and the small scale of a residual branch."""

from dataclasses import dataclass
from typing import Annotated

from torch import nn

from deepcv.nn.emitter import Emitter, Value
from deepcv.nn.layers.regularisation import DropPath, GaussianNoise, LayerScale
from deepcv.nn.ops.op import Op, Range, Share, features, maps


@dataclass(frozen=True)
class Dropout(Op):
    """Zeroes a share `p` of the values while training."""

    p: Share = 0.5

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        # A module, not a function: the graph would freeze the function's `training` flag.
        return emitter.module(nn.Dropout(self.p), x, x.shape)


@dataclass(frozen=True)
class ChannelDropout(Op):
    """Zeroes a share `p` of whole channels while training (Tompson 2015)."""

    p: Share = 0.5

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W), kept."""
        (x,) = inputs
        maps(x)
        return emitter.module(nn.Dropout2d(self.p), x, x.shape)


@dataclass(frozen=True)
class AlphaDropout(Op):
    """Dropout for `selu`: a share `p` of the values saturates while training, mean and variance stay (Klambauer 2017)."""

    p: Share = 0.5

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        return emitter.module(nn.AlphaDropout(self.p), x, x.shape)


@dataclass(frozen=True)
class FeatureAlphaDropout(Op):
    """Alpha dropout of whole channels."""

    p: Share = 0.5

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W), kept."""
        (x,) = inputs
        maps(x)
        return emitter.module(nn.FeatureAlphaDropout(self.p), x, x.shape)


@dataclass(frozen=True)
class DropPathOp(Op):
    """Stochastic depth: while training, zeroes a share `p` of the samples; the end of a residual branch, before its sum."""

    p: Share = 0.1

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        return emitter.module(DropPath(self.p), x, x.shape)


@dataclass(frozen=True)
class LayerScaleOp(Op):
    """A learned factor per channel that starts at `start`; the end of a residual branch, before its sum."""

    start: Annotated[float, Range(-1e6, 1e6)] = 1e-4

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        return emitter.module(LayerScale(features(x)[0], self.start, 2 if len(x.shape) == 3 else 0), x, x.shape)


@dataclass(frozen=True)
class GaussianNoiseOp(Op):
    """Adds normal noise of standard deviation `sigma` while training."""

    sigma: Annotated[float, Range(0, 1e3)] = 0.1

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Any shape, kept."""
        (x,) = inputs
        return emitter.module(GaussianNoise(self.sigma), x, x.shape)
