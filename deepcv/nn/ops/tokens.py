"""From feature maps to tokens, for transformers (Dosovitskiy 2021, arXiv 2010.11929)."""

from dataclasses import KW_ONLY, dataclass

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.init import Init
from deepcv.nn.layers.tokens import ClassToken, PatchEmbedding, Positions
from deepcv.nn.ops.op import Count, Op, Side, maps
from deepcv.nn.ops.weights import Constant, begin


@dataclass(frozen=True)
class PatchEmbed(Op):
    """Embeds square patches of `patch` by `patch` pixels as tokens, row by row."""

    features: Count
    patch: Side = 16
    _: KW_ONLY
    init: Init = "he"
    init_value: Constant = 0.0
    spectral_norm: bool = False
    bias: bool = True

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (H / patch * W / patch, features)."""
        (x,) = inputs
        channels, height, width = maps(x)
        if height % self.patch or width % self.patch:
            raise FitError(f"needs height and width that are multiples of patch: {self.patch}, got {x}")
        shape = ((height // self.patch) * (width // self.patch), self.features)
        layer = PatchEmbedding(channels, self.features, self.patch, self.bias)
        return emitter.module(layer, x, shape, start=begin(layer, self.init, self.init_value, "he", self.spectral_norm))


@dataclass(frozen=True)
class ClassTokenOp(Op):
    """Puts a learned token before the others."""

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(T, D) to (T + 1, D)."""
        (x,) = inputs
        tokens, features = sequence(x)
        return emitter.module(ClassToken(features), x, (tokens + 1, features))


@dataclass(frozen=True)
class PositionsOp(Op):
    """Adds a learned vector to each token by its place; the network then takes images of one size only."""

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(T, D), kept."""
        (x,) = inputs
        return emitter.module(Positions(*sequence(x)), x, x.shape)


def sequence(value: Value) -> tuple[int, int]:
    """Number of tokens and their features; a FitError for anything else."""
    if len(value.shape) != 2:
        raise FitError(f"needs tokens (T, D), got {value}: put patch_embed before it")
    tokens, features = value.shape
    return tokens, features
