"""How the weights of an op start: its keys `init`, `init_value` and `spectral_norm` in one function."""

from typing import Annotated

from torch import nn

from deepcv.nn.emitter import FitError, Start
from deepcv.nn.init import Init, start
from deepcv.nn.layers.spectral import Spectral
from deepcv.nn.ops.op import Range

Constant = Annotated[float, Range(-1e6, 1e6)]


def begin(init: Init, value: float, default: Init) -> Start:
    """The function that draws a layer's first weights, where they are not the `default` that `build` has drawn already.

    A layer with spectral norm then finds the singular vectors of these weights.
    """
    if init == "truncated_normal" and value < 0:
        raise FitError(f"init_value: {value:g} is the standard deviation of truncated_normal and must not be negative")

    def draw(layer: nn.Module) -> None:
        if init != default:
            start(init, value)(layer)
        if isinstance(layer, Spectral):
            layer.settle()

    return draw


def begin_parts(layer: nn.Module, init: Init, value: float, default: Init) -> dict[nn.Module, Start]:
    """The same for each convolution and each linear layer within a layer of several."""
    if init == "dirac":
        raise FitError("init: dirac is for convolutions of one kernel")
    begun = begin(init, value, default)
    return {part: begun for part in layer.modules() if isinstance(part, nn.Conv2d | nn.Linear)}
