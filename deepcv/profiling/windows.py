"""Kernel, stride and dilation arithmetic: what a value sees behind a convolution, a pooling or a change of size."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Span:
    """Along one side: the value at place i sees the input from `low + i * step` to `high + i * step`."""

    low: float
    high: float
    step: float

    @property
    def size(self) -> int | None:
        """Pixels seen; None: the whole side."""
        return None if math.isinf(self.high) else math.ceil(self.high - self.low + 1)

    def window(self, extent: int, stride: float = 1, padding: float = 0) -> "Span":
        """What a kernel of this extent sees, which is `dilation * (kernel - 1) + 1`."""
        low = self.low - padding * self.step
        return Span(low, self.high + (extent - 1 - padding) * self.step, self.step * stride)

    def transposed(self, extent: int, stride: int, padding: int) -> "Span":
        """What a transposed convolution sees, at the places where most of its kernel meets input."""
        high = self.high + padding // stride * self.step
        return Span(
            high - self.high + self.low - (math.ceil(extent / stride) - 1) * self.step, high, self.step / stride
        )


Sides = tuple[Span, Span]
Size = tuple[int, ...]


def _pair(value: Any) -> tuple[int, int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return int(numbers[0]), int(numbers[-1])


def _convolution(y: Span, x: Span, args: Any, _before: Size, _after: Size) -> Sides:
    (height, width), stride, padding, dilation = _pair(args[1].shape[2:]), *(_pair(value) for value in args[3:6])
    way = Span.transposed if args[6] else Span.window
    return (
        way(y, dilation[0] * (height - 1) + 1, stride[0], padding[0]),
        way(x, dilation[1] * (width - 1) + 1, stride[1], padding[1]),
    )


def _pool(y: Span, x: Span, args: Any, _before: Size, _after: Size) -> Sides:
    kernel = _pair(args[1])
    stride = _pair(args[2]) if len(args) > 2 and args[2] else kernel
    padding = _pair(args[3]) if len(args) > 3 else (0, 0)
    dilation = _pair(args[4]) if len(args) > 4 and not isinstance(args[4], bool) else (1, 1)  # avg_pool2d: ceil_mode
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    return y.window(extents[0], stride[0], padding[0]), x.window(extents[1], stride[1], padding[1])


def _adaptive(y: Span, x: Span, _args: Any, before: Size, after: Size) -> Sides:
    extents = [
        size // wanted if size % wanted == 0 else math.ceil(size / wanted) + 1
        for size, wanted in zip(before, after, strict=True)
    ]
    whole = Span(-math.inf, math.inf, 1)
    found = [
        whole if wanted == 1 < size else span.window(extent, size / wanted)
        for span, extent, size, wanted in zip((y, x), extents, before, after, strict=True)
    ]
    return found[0], found[1]


def _resized(reach: float) -> Callable[[Span, Span, Any, Size, Size], Sides]:
    """Interpolation that looks `reach` places of its input to each side."""

    def to(y: Span, x: Span, _args: Any, before: Size, after: Size) -> Sides:
        wide = [Span(s.low - reach * s.step, s.high + reach * s.step, s.step) for s in (y, x)]
        return wide[0].window(1, before[0] / after[0]), wide[1].window(1, before[1] / after[1])

    return to


def _padded(y: Span, x: Span, args: Any, _before: Size, _after: Size) -> Sides:
    left, _, top, _ = [*args[1], 0, 0][:4]
    return y.window(1, padding=top), x.window(1, padding=left)


def _unshuffled(y: Span, x: Span, args: Any, _before: Size, _after: Size) -> Sides:
    return y.window(args[1], args[1]), x.window(args[1], args[1])


def _shuffled(y: Span, x: Span, args: Any, _before: Size, _after: Size) -> Sides:
    return y.window(1, 1 / args[1]), x.window(1, 1 / args[1])


# Name of the operation in torch's aten to the fields of its output: from those of its input, its arguments and both sizes.
WINDOWS: Mapping[str, Callable[[Span, Span, Any, Size, Size], Sides]] = MappingProxyType(
    {
        "convolution": _convolution,
        "max_pool2d_with_indices": _pool,
        "avg_pool2d": _pool,
        "_adaptive_avg_pool2d": _adaptive,
        "adaptive_max_pool2d": _adaptive,
        "upsample_nearest2d": _resized(0),
        "_upsample_nearest_exact2d": _resized(0),
        "upsample_bilinear2d": _resized(0.5),
        "upsample_bicubic2d": _resized(1.5),
        "reflection_pad2d": _padded,
        "replication_pad2d": _padded,
        "pixel_unshuffle": _unshuffled,
        "pixel_shuffle": _shuffled,
    }
)
