"""Values brought to the shape of others, where a link joins what does not fit."""

from collections.abc import Callable, Mapping
from typing import Literal

from torch import nn

from deepcv.nn.emitter import Emitter, FitError, Start, Value
from deepcv.nn.layers.resize import Mode, ResizeLike
from deepcv.nn.ops.op import maps

Adapt = Literal["error", "resize", "project"]
Begin = Callable[[nn.Module], Mapping[nn.Module, Start]]  # what draws the first weights of a projection


def adapted(emitter: Emitter, inputs: tuple[Value, ...], adapt: Adapt, begin: Begin | None = None) -> tuple[Value, ...]:
    """The inputs in the shape of the first: `resize` changes height and width, `project` the channels too.

    A projection is a 1×1 convolution, or for flat features a linear layer, without bias; `error` leaves all as they are.
    Without `begin`, which says how a projection starts, only height and width count.
    """
    if adapt == "error":
        return inputs
    first, *others = inputs
    fitted = []
    for number, x in enumerate(others, start=1):
        part = f"adapt{number}"
        if begin is not None and x.shape != first.shape:
            x = _projected(emitter, x, first, f"{part}.project", adapt, begin)
        if len(x.shape) == 3 and x.shape[1:] != maps(first)[1:]:
            x = resized(emitter, x, first, "bilinear", f"{part}.resize")
        fitted.append(x)
    return (first, *fitted)


def _projected(emitter: Emitter, x: Value, like: Value, part: str, adapt: Adapt, begin: Begin) -> Value:
    if len(x.shape) != len(like.shape) or len(x.shape) == 2:
        raise FitError(f"cannot bring {x} to the shape of {like}")
    if x.shape[0] == like.shape[0]:
        return x
    if adapt != "project":
        raise FitError(f"needs equal channels, got {like} and {x}; adapt: project changes them")
    if len(x.shape) == 1:
        linear = nn.Linear(x.shape[0], like.shape[0], bias=False)
        return emitter.module(linear, x, like.shape, part, begin(linear))
    layer = nn.Conv2d(x.shape[0], like.shape[0], 1, bias=False)
    return emitter.module(layer, x, (like.shape[0], *x.shape[1:]), part, begin(layer))


def resized(emitter: Emitter, x: Value, like: Value, mode: Mode, part: str = "") -> Value:
    """Maps in the height and width that others have at run time."""
    return emitter.module(ResizeLike(mode), (x, like), (maps(x)[0], *maps(like)[1:]), part)
