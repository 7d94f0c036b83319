"""The axes of a value: moved, folded, reduced and cut. No weights."""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.layers.tensors import fold_like, largest, smallest, to_maps_like
from deepcv.nn.ops.op import Count, Op, Padding, Range, Side, maps, slide

Axis = Literal["channels", "height", "width", "tokens", "features"]
Place = Annotated[int, Range(-65_536, 65_536)]
_AXES = {1: ("features",), 2: ("tokens", "features"), 3: ("channels", "height", "width")}
REDUCTIONS: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {"mean": torch.mean, "sum": torch.sum, "max": largest, "min": smallest}
)


def _axis(x: Value, name: str) -> int:
    """The place of an axis in one sample, by name."""
    if name not in _AXES[len(x.shape)]:
        raise FitError(f"{x} has no axis {name}; it has {', '.join(_AXES[len(x.shape)])}")
    return _AXES[len(x.shape)].index(name)


@dataclass(frozen=True)
class Flatten(Op):
    """All values of a sample in one row."""

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C * H * W,)."""
        (x,) = inputs
        return emitter.function(torch.flatten, (x, 1), (math.prod(x.shape),))


@dataclass(frozen=True)
class Unflatten(Op):
    """Flat features as maps of a given size."""

    channels: Count
    height: Side
    width: Side

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C * H * W,) to (C, H, W)."""
        (x,) = inputs
        shape = (self.channels, self.height, self.width)
        if x.shape != (math.prod(shape),):
            raise FitError(f"needs {math.prod(shape)} flat features for {shape}, got {x}")
        return emitter.function(torch.unflatten, (x, 1, shape), shape)


@dataclass(frozen=True)
class ToTokens(Op):
    """Each pixel of maps becomes a token, row by row."""

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (H * W, C)."""
        (x,) = inputs
        channels, height, width = maps(x)
        flat = emitter.function(torch.flatten, (x, 2), (channels, height * width))
        return emitter.function(torch.transpose, (flat, 1, 2), (height * width, channels))


@dataclass(frozen=True)
class ToMaps(Op):
    """Tokens as the pixels of maps, row by row; without a height the maps are square."""

    height: Side | None = None

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(H * W, C) to (C, H, W)."""
        (x,) = inputs
        tokens, channels = _tokens(x)
        height = self.height or math.isqrt(tokens)
        if tokens % height or (self.height is None and height * height != tokens):
            wanted = f"a multiple of height: {height}" if self.height else "a square"
            raise FitError(f"needs a number of tokens that is {wanted}, got {x}")
        turned = emitter.function(torch.transpose, (x, 1, 2), (channels, tokens))
        sides = (height, tokens // height)
        return emitter.function(torch.unflatten, (turned, 2, sides), (channels, *sides))


@dataclass(frozen=True)
class ToMapsLike(Op):
    """Tokens as maps with the height and width of the second input, whatever they are at run time."""

    many: ClassVar[bool] = True
    pair: ClassVar[bool] = True

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(H * W, C) and (D, H, W) to (C, H, W)."""
        if len(inputs) != 2:
            raise FitError(f"takes two inputs, the tokens and the maps whose size they take, got {len(inputs)}")
        x, like = inputs
        tokens, channels = _tokens(x)
        _, height, width = maps(like)
        if tokens != height * width:
            raise FitError(f"needs {height * width} tokens for {like}, got {x}")
        return emitter.function(to_maps_like, (x, like), (channels, height, width))


@dataclass(frozen=True)
class Permute(Op):
    """The axes in another order, by their places in the sample: `order: 3 1 2` makes (W, C, H) of (C, H, W)."""

    order: str

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(S1, S2, …) to its sizes in the new order."""
        (x,) = inputs
        places = [int(word) if word.isdecimal() else 0 for word in self.order.split()]
        wanted = list(range(1, len(x.shape) + 1))
        if sorted(places) != wanted:
            raise FitError(f"order must hold each of {' '.join(map(str, wanted))} once, got {self.order!r} for {x}")
        return emitter.function(torch.permute, (x, (0, *places)), tuple(x.shape[place - 1] for place in places))


@dataclass(frozen=True)
class Reduce(Op):
    """Mean, sum, largest or smallest value over an axis; `space` is height and width. `keep` leaves a size of 1."""

    over: Literal[Axis, "space"]
    kind: Literal["mean", "sum", "max", "min"] = "mean"
    keep: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """E.g. (C, H, W) over channels to (H, W), or (1, H, W) with keep; a sample keeps at least one axis."""
        (x,) = inputs
        names = ("height", "width") if self.over == "space" else (self.over,)
        places = [_axis(x, name) for name in names]
        shape = tuple(1 if i in places else size for i, size in enumerate(x.shape) if self.keep or i not in places)
        if not shape:
            raise FitError(f"leaves no axis of {x}: use keep: true")
        axes = tuple(place + 1 for place in places)
        return emitter.function(REDUCTIONS[self.kind], (x, axes, self.keep), shape)


@dataclass(frozen=True)
class Select(Op):
    """One place of an axis, which goes, e.g. the first token; negative counts from the end."""

    axis: Axis
    index: Place = 0

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """E.g. (T, D) to (D,)."""
        (x,) = inputs
        place = _axis(x, self.axis)
        if not -x.shape[place] <= self.index < x.shape[place]:
            raise FitError(f"index: {self.index} is outside the {x.shape[place]} {self.axis} of {x}")
        shape = x.shape[:place] + x.shape[place + 1 :]
        if not shape:
            raise FitError(f"leaves no axis of {x}: use slice")
        return emitter.function(torch.select, (x, place + 1, self.index), shape)


@dataclass(frozen=True)
class Slice(Op):
    """The places `start` to `stop` (not included; the end by default) of an axis; negative counts from the end."""

    axis: Axis = "channels"
    start: Place = 0
    stop: Place | None = None

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """E.g. (C, H, W) to (stop - start, H, W)."""
        (x,) = inputs
        place = _axis(x, self.axis)
        size = x.shape[place]
        start = self.start + size if self.start < 0 else self.start
        stop = size if self.stop is None else self.stop + size if self.stop < 0 else self.stop
        if not 0 <= start < stop <= size:
            raise FitError(f"start: {self.start} to stop: {self.stop} is no part of the {size} {self.axis} of {x}")
        return _cut(emitter, x, place, slice(self.start or None, self.stop), stop - start)


@dataclass(frozen=True)
class Split(Op):
    """One of `parts` equal parts of the channels (of the features of tokens); a node gives one part."""

    parts: Annotated[int, Range(2, 65_536)] = 2
    index: Annotated[int, Range(0, 65_535)] = 0

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (C / parts, H, W)."""
        (x,) = inputs
        place = 1 if len(x.shape) == 2 else 0
        if x.shape[place] % self.parts or self.index >= self.parts:
            raise FitError(f"parts: {self.parts}, index: {self.index} does not split {x} into equal parts")
        size = x.shape[place] // self.parts
        return _cut(emitter, x, place, slice(self.index * size, (self.index + 1) * size), size)


def _cut(emitter: Emitter, x: Value, place: int, part: slice, size: int) -> Value:
    index = (slice(None),) * (place + 1) + (part,)
    return emitter.function(operator.getitem, (x, index), (*x.shape[:place], size, *x.shape[place + 1 :]))


def _tokens(x: Value) -> tuple[int, int]:
    if len(x.shape) != 2:
        raise FitError(f"needs tokens (T, D), got {x}")
    return x.shape[0], x.shape[1]


@dataclass(frozen=True)
class ChannelShuffle(Op):
    """Interleaves the channels of `groups` groups, so that grouped convolutions see each other's (ShuffleNet, Zhang 2018)."""

    groups: Annotated[int, Range(2, 65_536)] = 2

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W), kept."""
        (x,) = inputs
        channels, _, _ = maps(x)
        if channels % self.groups:
            raise FitError(f"groups: {self.groups} does not divide the channels of {x}")
        return emitter.function(F.channel_shuffle, (x, self.groups), x.shape)


@dataclass(frozen=True)
class Unfold(Op):
    """Each window of maps as a token, row by row; what a token holds is C rows of kernel² pixels (torch's order)."""

    kernel: Side = 3
    stride: Side = 1
    padding: Padding | None = None
    dilation: Side = 1

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (H' * W', C * kernel²); the padding defaults to half the kernel."""
        (x,) = inputs
        channels, _, _ = maps(x)
        window = _window(self.kernel, self.dilation, self.padding, self.stride)
        rows, columns = slide(x, self.dilation * (self.kernel - 1) + 1, self.stride, window[2])
        shape = (channels * self.kernel**2, rows * columns)
        return emitter.function(torch.transpose, (emitter.function(F.unfold, (x, *window), shape), 1, 2), shape[::-1])


@dataclass(frozen=True)
class Fold(Op):
    """The way back from `unfold`, `from: [tokens, maps]`: windows added up to maps of the height and width of the second."""

    many: ClassVar[bool] = True
    pair: ClassVar[bool] = True
    kernel: Side = 3
    stride: Side = 1
    padding: Padding | None = None
    dilation: Side = 1

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(H' * W', C * kernel²) and (D, H, W) to (C, H, W)."""
        if len(inputs) != 2:
            raise FitError(f"takes two inputs, the tokens and the maps whose size they take, got {len(inputs)}")
        x, like = inputs
        window = _window(self.kernel, self.dilation, self.padding, self.stride)
        rows, columns = slide(like, self.dilation * (self.kernel - 1) + 1, self.stride, window[2])
        if len(x.shape) != 2 or x.shape[0] != rows * columns or x.shape[1] % self.kernel**2:
            raise FitError(f"needs {rows * columns} tokens of a multiple of {self.kernel**2} features, got {x}")
        shape = (x.shape[1] // self.kernel**2, *like.shape[1:])
        return emitter.function(fold_like, (x, like, *window), shape)


def _window(kernel: int, dilation: int, padding: int | None, stride: int) -> tuple[int, int, int, int]:
    """As torch's unfold and fold take it: kernel, dilation, padding, stride."""
    return kernel, dilation, (dilation * (kernel - 1) + 1) // 2 if padding is None else padding, stride
