"""A layer with what surrounds it: norm, activation and dropout, in one order for every op that has them."""

from collections.abc import Callable

from torch import nn

from deepcv.nn.emitter import Emitter, Value
from deepcv.nn.ops.norms import WITHOUT_SHIFT, normalise
from deepcv.nn.ops.op import activate


def surrounded(
    emitter: Emitter,
    x: Value,
    layer: Callable[[Value], Value],
    norm: str,
    activation: str,
    *,
    norm_groups: int | None = None,
    zero_init: bool = False,
    pre_activation: bool = False,
    dropout: float = 0.0,
) -> Value:
    """The layer, then norm and activation, which `pre_activation` puts before it (He 2016, arXiv 1603.05027); dropout comes last."""

    def normed(x: Value) -> Value:
        return activate(emitter, normalise(emitter, x, norm, norm_groups, zero_init), activation)

    x = layer(normed(x)) if pre_activation else normed(layer(x))
    return emitter.module(nn.Dropout(dropout), x, x.shape, "dropout") if dropout else x


def biased(bias: bool | None, norm: str, pre_activation: bool = False) -> bool:
    """Whether a layer has a bias: where the file leaves it open, not before a norm that has a shift of its own."""
    return (norm in WITHOUT_SHIFT or pre_activation) if bias is None else bias
