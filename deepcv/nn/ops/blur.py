"""Blur."""

from dataclasses import dataclass
from typing import Annotated

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.layers.blur import Blur
from deepcv.nn.ops.op import Op, Range, maps


@dataclass(frozen=True)
class BlurOp(Op):
    """Gaussian blur of each channel, weaker as training goes on where that is said (Sinha 2020, arXiv 2003.01367).

    `train.schedules: {blur: {kind: linear, start: 1.0}}` changes sigma of all blur nodes, as does
    `layers.blur.set_blur` from Python. In pixels; off at 0, where it starts by default. `max_sigma` fixes the window.
    """

    max_sigma: Annotated[float, Range(0.1, 32)] = 1.0
    sigma: Annotated[float, Range(0, 32)] = 0.0

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W), kept."""
        (x,) = inputs
        maps(x)
        if self.sigma > self.max_sigma:
            raise FitError(f"sigma: {self.sigma:g} is more than max_sigma: {self.max_sigma:g}")
        return emitter.module(Blur(self.max_sigma, self.sigma), x, x.shape)
