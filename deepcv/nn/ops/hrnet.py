"""Links between parallel streams of different resolution, after HRNet (Wang 2020, arXiv 1908.07919)."""

import operator
from dataclasses import KW_ONLY, dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar

import torch
from torch import nn

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.init import Init
from deepcv.nn.layers.resize import Mode, ResizeLike
from deepcv.nn.ops.norms import Norm, normalise
from deepcv.nn.ops.op import Activation, Op, Range, activate, maps
from deepcv.nn.ops.order import biased
from deepcv.nn.ops.weights import Constant, begin

Place = Annotated[int, Range(0, 63)]


@dataclass(frozen=True)
class Fuse(Op):
    """Sum of all streams, brought to the resolution and the channels of stream number `to` (from 0), then the activation.

    The streams go from the highest resolution to the lowest, each half the one before. A lower one gets a 1×1
    convolution, a norm and nearest upsampling to the run-time size of the target; a higher one, for each halving, a 3×3
    convolution of stride 2 and a norm, with the activation between them. The structure follows from the order alone, so that the
    weights fit images of every size.
    """

    many: ClassVar[bool] = True
    inherits = MappingProxyType({"norm": "norm", "activation": "activation"})
    to: Place
    _: KW_ONLY
    init: Init = "he"
    init_value: Constant = 0.0
    spectral_norm: bool = False
    norm: Norm = "batch"
    activation: Activation = "relu"

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C0, H, W), (C1, H / 2, W / 2) … to the shape of number `to`."""
        if self.init == "dirac":
            raise FitError("init: dirac needs one kernel")
        target = _target(inputs, self.to)
        total, *others = (self._brought(emitter, x, target, number) for number, x in enumerate(inputs))
        for x in others:
            total = emitter.function(operator.add, (total, x), target.shape)
        return activate(emitter, total, self.activation)

    def _brought(self, emitter: Emitter, x: Value, target: Value, number: int) -> Value:
        if number == self.to:
            return x
        if number > self.to:
            return self._raised(emitter, x, target, f"from{number}")
        return self._halved(emitter, x, target, self.to - number, f"from{number}")

    def _raised(self, emitter: Emitter, x: Value, target: Value, part: str) -> Value:
        channels, height, width = maps(target)
        if x.shape[1] > height or x.shape[2] > width:
            raise FitError(f"needs its inputs from the highest resolution to the lowest, but {x} comes after {target}")
        x = self._normed(emitter, x, nn.Conv2d(x.shape[0], channels, 1, bias=self._bias), x.shape[1:], part)
        return _resize(emitter, x, target, "nearest", part)

    def _halved(self, emitter: Emitter, x: Value, target: Value, steps: int, part: str) -> Value:
        source = x
        for step in range(steps):
            channels, height, width = maps(x)
            last = step == steps - 1
            layer = nn.Conv2d(channels, target.shape[0] if last else channels, 3, 2, 1, bias=self._bias)
            x = self._normed(emitter, x, layer, ((height + 1) // 2, (width + 1) // 2), f"{part}.{step}")
            x = x if last else activate(emitter, x, self.activation, f"{part}.{step}.activation")
        if x.shape != target.shape:
            raise FitError(
                f"needs each input to be half the one before: {steps} halvings of {source} do not give {target}"
            )
        return x

    def _normed(self, emitter: Emitter, x: Value, layer: nn.Conv2d, sides: tuple[int, ...], part: str) -> Value:
        begun = begin(layer, self.init, self.init_value, "he", self.spectral_norm)
        x = emitter.module(layer, x, (layer.out_channels, *sides), f"{part}.conv", begun)
        return normalise(emitter, x, self.norm, part=f"{part}.norm")

    @property
    def _bias(self) -> bool:
        return biased(None, self.norm)


@dataclass(frozen=True)
class UpsampleConcat(Op):
    """All streams at the height and width of stream number `to`, one behind the other along the channels (HRNetV2)."""

    many: ClassVar[bool] = True
    to: Place = 0
    mode: Mode = "bilinear"

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C0, H, W), (C1, h, w) … to (C0 + C1 + …, H, W)."""
        target = _target(inputs, self.to)
        parts = [
            x if number == self.to else _resize(emitter, x, target, self.mode, f"from{number}")
            for number, x in enumerate(inputs)
        ]
        return emitter.function(torch.cat, (parts, 1), (sum(x.shape[0] for x in inputs), *target.shape[1:]))


def _target(streams: tuple[Value, ...], to: int) -> Value:
    if to >= len(streams):
        raise FitError(f"to: {to} must be the number of an input, from 0 to {len(streams) - 1}")
    for stream in streams:
        maps(stream)
    return streams[to]


def _resize(emitter: Emitter, x: Value, target: Value, mode: Mode, part: str) -> Value:
    return emitter.module(ResizeLike(mode), (x, target), (x.shape[0], *target.shape[1:]), f"{part}.resize")
