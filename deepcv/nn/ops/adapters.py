"""Values brought to the shape of others, where a link joins what does not fit."""

from typing import Literal

from torch import nn

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.layers.resize import Mode, ResizeLike
from deepcv.nn.ops.op import maps

Adapt = Literal["error", "resize", "project"]


def adapted(emitter: Emitter, inputs: tuple[Value, ...], adapt: Adapt, *, channels: bool = True) -> tuple[Value, ...]:
    """The inputs in the shape of the first: `resize` changes height and width, `project` the channels too.

    A projection is a 1×1 convolution, or for flat features a linear layer, without bias; `error` leaves all as they are.
    With `channels` off only height and width count.
    """
    if adapt == "error":
        return inputs
    first, *others = inputs
    fitted = []
    for number, x in enumerate(others, start=1):
        part = f"adapt{number}"
        if channels and x.shape != first.shape:
            x = _projected(emitter, x, first, f"{part}.project", adapt)
        if len(x.shape) == 3 and x.shape[1:] != maps(first)[1:]:
            x = resized(emitter, x, first, "bilinear", f"{part}.resize")
        fitted.append(x)
    return (first, *fitted)


def _projected(emitter: Emitter, x: Value, like: Value, part: str, adapt: Adapt) -> Value:
    if len(x.shape) != len(like.shape) or len(x.shape) == 2:
        raise FitError(f"cannot bring {x} to the shape of {like}")
    if x.shape[0] == like.shape[0]:
        return x
    if adapt != "project":
        raise FitError(f"needs equal channels, got {like} and {x}; adapt: project changes them")
    if len(x.shape) == 1:
        return emitter.module(nn.Linear(x.shape[0], like.shape[0], bias=False), x, like.shape, part)
    layer = nn.Conv2d(x.shape[0], like.shape[0], 1, bias=False)
    return emitter.module(layer, x, (like.shape[0], *x.shape[1:]), part)


def resized(emitter: Emitter, x: Value, like: Value, mode: Mode, part: str = "") -> Value:
    """Maps in the height and width that others have at run time."""
    return emitter.module(ResizeLike(mode), (x, like), (maps(x)[0], *maps(like)[1:]), part)
