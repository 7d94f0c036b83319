"""Receptive fields: which input pixels a value can depend on, by kernel, stride and dilation arithmetic.

The arithmetic follows the operations that torch runs, not the modules: whatever a layer does inside is seen. Araujo et al.
2019 (Distill, "Computing receptive fields of convolutional neural networks") derive the formulas.

A mean over the image, attention over positions or a linear layer on flattened maps sees the whole image; so, as an upper
bound, does attention within windows. Statistics of norms are left out, as is usual.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from deepcv.profiling.axes import Axes, Dimension, letters, maps, permuted, plain, regrouped, union, without
from deepcv.profiling.windows import WINDOWS, Span

_MEANS = {"mean", "sum", "amax", "amin", "max", "min", "var", "std", "prod", "logsumexp", "argmax", "var_mean",
          "linalg_vector_norm"}  # fmt: skip
_SOFTMAXES = {"_softmax", "_log_softmax", "_safe_softmax", "cumsum"}
_VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten"}
_POINTWISE = {
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "_batch_norm_with_update", "native_group_norm", "native_layer_norm",  # but for their statistics
    "cat", "split", "split_with_sizes", "expand",
    "alias", "detach", "clone", "copy", "_to_copy", "native_dropout", "channel_shuffle", "native_channel_shuffle",
    "hardswish", "hardsigmoid", "hardtanh", "elu", "leaky_relu", "_prelu_kernel", "softplus", "masked_fill", "where",
    "log_sigmoid_forward", "softshrink", "hardshrink", "mish", "glu",
}  # fmt: skip
_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "addmv", "mv"}
_ATTENTION = {
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
}  # fmt: skip
_WHOLE = Span(-math.inf, math.inf, 1)


@dataclass(frozen=True)
class Field:
    """The receptive field of each value of a tensor; `axes` says which dimensions are places along `y` and `x`."""

    y: Span
    x: Span
    axes: Axes

    def __str__(self) -> str:
        height, width = self.y.size, self.x.size
        if height is None and width is None:
            return "whole"
        return str(height) if height == width else f"{height or 'whole'}×{width or 'whole'}"

    def mixed(self, dimensions: Iterable[Dimension]) -> "Field":
        """What a value sees that mixes all places along these dimensions."""
        names = letters(*dimensions)
        return Field(_WHOLE if "y" in names else self.y, _WHOLE if "x" in names else self.x, self.axes)


class Fields(TorchDispatchMode):
    """Follows the receptive field of every tensor from the images, (N, C, H, W), on."""

    def __init__(self, *images: Tensor) -> None:
        super().__init__()
        self._fields = WeakTensorKeyDictionary()  # None: depends on the images in a way that is not known here
        self.unknown: set[str] = set()
        for image in images:
            if image.ndim == 4:
                self._fields[image] = Field(Span(0, 0, 1), Span(0, 0, 1), maps(image.shape))

    def of(self, tensor: object) -> Field | None:
        """The field of a tensor; None where it does not depend on the images, and behind an operation in `unknown`."""
        found: Field | None = self._fields.get(tensor) if isinstance(tensor, Tensor) else None
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        tensors = [one for one in tree_leaves((args, options)) if isinstance(one, Tensor) and one in self._fields]
        seen = [
            (self._fields[one], tuple(one.shape)) for one in tensors
        ]  # before: an operation in place may change them
        result = func(*args, **options)
        name = func._schema.name.partition("::")[2]
        if seen and not name.startswith("new_") and not name.endswith("_like"):
            step = _Step(name.removesuffix("_") if func._schema.is_mutable else name, func, args, self.of, seen)
            for output in tree_leaves(result):
                if isinstance(output, Tensor):
                    known = all(field is not None for field, _ in seen)
                    self._fields[output] = field = step.to(tuple(output.shape)) if known else None
                    if known and field is None:
                        self.unknown.add(step.name)
        return result


@dataclass(frozen=True)
class _Step:
    """One operation of torch, and what its inputs see."""

    name: str
    func: Any
    args: Any
    of: Callable[[object], Field | None]
    seen: Sequence[tuple[Field, tuple[int, ...]]]

    def to(self, shape: tuple[int, ...]) -> Field | None:
        """The field of an output of this shape, or None where it is not known."""
        name, args, (first, before) = self.name, self.args, self.seen[0]
        y, x = _hulls([field for field, _ in self.seen])
        if y.size is None and x.size is None:
            return Field(_WHOLE, _WHOLE, plain(*shape))  # more it cannot be
        if not letters(*(dimension for field, _ in self.seen for dimension in field.axes)):
            return Field(y, x, plain(*shape))  # no places left to mix
        if name in WINDOWS and len(before) == 4:
            return self._window(shape)
        if name in _MEANS:
            return self._mean(shape)
        if name in _SOFTMAXES:
            return first.mixed([first.axes[args[1]]])
        if name in ("permute", "transpose", "t"):
            return replace(first, axes=permuted(name, args, first.axes))
        if name in ("select", "unbind"):
            return replace(first, axes=without(first.axes, args[1:2] or [0]))
        if name in _PRODUCTS:
            return self._product(shape)
        if name in _ATTENTION:
            return self._union(shape).mixed(field.axes[-2] for field, _ in self.seen)
        if name == "constant_pad_nd":
            return self._padded(shape)
        if name == "slice":
            return self._sliced(shape)
        if name == "roll":
            return first.mixed(first.axes[place] for place in args[2])
        if name in _VIEWS and math.prod(before) == math.prod(shape):
            return replace(first, axes=regrouped(first.axes, shape))
        if name in _POINTWISE or torch.Tag.pointwise in self.func.tags:
            return self._union(shape)
        return None

    def _union(self, shape: tuple[int, ...]) -> Field:
        return Field(*_hulls([field for field, _ in self.seen]), union([field.axes for field, _ in self.seen], shape))

    def _window(self, shape: tuple[int, ...]) -> Field | None:
        (first, before), *others = self.seen
        if letters(*first.axes[:2]) or letters(first.axes[2]) - {"y"} or letters(first.axes[3]) - {"x"}:
            return None  # the maps do not lie as images do
        y, x = WINDOWS[self.name](first.y, first.x, self.args, before[2:], shape[2:])
        here = Field(y, x, maps(shape))
        return Field(*_hulls([here, *(field for field, _ in others)]), here.axes)  # others: weights made from the image

    def _padded(self, shape: tuple[int, ...]) -> Field:
        """Shifted by what is added before the first row and column, wherever these dimensions lie."""
        found = self._union(shape)
        for place, added in enumerate(self.args[1][::2], start=1):
            found = _moved(found, found.axes[-place], 1, added)
        return found

    def _sliced(self, shape: tuple[int, ...]) -> Field:
        """Each `step`-th place from `start` on."""
        first, before = self.seen[0]
        given: list[Any] = [*self.args, *(None, 0, None, None, 1)[len(self.args) :]]
        _, place, start, _, step = given
        start = start or 0
        start = min(max(start + before[place] if start < 0 else start, 0), before[place])
        return _moved(self._union(shape), first.axes[place], step, -start)

    def _mean(self, shape: tuple[int, ...]) -> Field:
        first, before = self.seen[0]
        place = 2 if self.name == "linalg_vector_norm" else 1
        (given,) = self.args[place : place + 1] or [None]
        dims = range(len(before)) if given is None or given == [] else given if isinstance(given, list) else [given]
        found = first.mixed(first.axes[place] for place in dims)
        if len(shape) == len(before):
            return replace(found, axes=union([first.axes], shape))
        return replace(found, axes=without(first.axes, dims))

    def _product(self, shape: tuple[int, ...]) -> Field:
        left, right = self.args[1:3] if self.name in ("addmm", "baddbmm", "addmv") else self.args[:2]
        inner, axes = [], list(plain(*shape))
        for tensor, place, kept in ((left, -1, -2), (right, -2, -1)):
            if (field := self.of(tensor)) is not None and tensor.ndim == len(shape) > 1:
                inner.append(field.axes[place])
                axes[kept] = field.axes[kept]
                axes[:-2] = field.axes[:-2] if letters(*field.axes[:-2]) else axes[:-2]
        return Field(*_hulls([field for field, _ in self.seen]), tuple(axes)).mixed(inner)


def _moved(field: Field, dimension: Dimension, stride: int, padding: int) -> Field:
    names = letters(dimension)
    if names == {"y"}:
        return replace(field, y=field.y.window(1, stride, padding))
    return replace(field, x=field.x.window(1, stride, padding)) if names == {"x"} else field


def _hulls(fields: Sequence[Field]) -> tuple[Span, Span]:
    return _hull([field.y for field in fields]), _hull([field.x for field in fields])


def _hull(spans: Sequence[Span]) -> Span:
    finite = [span for span in spans if not math.isinf(span.high)]
    return Span(min(s.low for s in spans), max(s.high for s in spans), max((s.step for s in finite), default=1))
