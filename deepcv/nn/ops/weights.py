"""How the weights of an op start: its keys `init`, `init_value` and `spectral_norm` in one function."""

from collections.abc import Mapping
from typing import Annotated

from torch import nn

from deepcv.nn.emitter import FitError, Start
from deepcv.nn.init import Init, start
from deepcv.nn.layers.spectral import Spectral, make_spectral
from deepcv.nn.ops.op import Range

Constant = Annotated[float, Range(-1e6, 1e6)]
_WithKernel = nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Bilinear


def begin(
    layer: nn.Module, init: Init | None, value: float, default: Init | None = None, spectral_norm: bool = False
) -> Mapping[nn.Module, Start]:
    """What draws the first weights of a layer, or of each convolution and each linear layer within a layer of several.

    Nothing is drawn where `init` is the `default`, which `build` has drawn already. With `spectral_norm` these layers get
    it, and find the singular vectors of their first weights.
    """
    if init == "truncated_normal" and value < 0:
        raise FitError(f"init_value: {value:g} is the standard deviation of truncated_normal and must not be negative")
    if init == "dirac":
        _one_kernel(layer)
    if spectral_norm and (init == "zeros" or (init == "constant" and value == 0)):
        raise FitError(f"spectral_norm divides by the largest singular value, which is 0 after init: {init}")

    def draw(part: nn.Module) -> None:
        if init is not None and init != default:
            start(init, value)(part)
        if isinstance(part, Spectral):
            part.settle()

    parts = [part for part in layer.modules() if isinstance(part, _WithKernel)]
    if spectral_norm:
        for part in parts:
            make_spectral(part)
    return dict.fromkeys(parts, draw)


def _one_kernel(layer: nn.Module) -> None:
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        raise FitError("init: dirac is for convolutions of one kernel")
    if layer.groups > 1 or any(side % 2 == 0 for side in layer.kernel_size):
        raise FitError("init: dirac needs an odd kernel and groups: 1")
